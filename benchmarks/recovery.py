"""What recovery brings, measured where it ships: perplexity of the exported files in llama.cpp and ONNX Runtime.

    python benchmarks/recovery.py --model M --data D --work W --out benchmarks/results/recovery-NAME.json

One pruned and repaired model a ratio and calibration seed (`auto` plans, kept in W), recovered in every way with the
same number of training tokens on the same text, exported and run in both engines over the same test windows. All rows
of one ratio and seed have the same weights' count, and all but Q4_K_M the same file size; that one's is printed beside.

  no tuning        the pruned model: rounded to nearest, with gptq's codes, and llama.cpp's Q4_K_M
  LoRA             adapters in full precision, merged, then rounded to nearest (Q4_0), or llama.cpp's Q4_K_M
  group            group fine-tuning, gptq's codes: all tokens in full precision before them ("weights"), in the blocks'
                   scales after them ("blocks"), or half in each ("both"); the first also in groups of 128, in Q4_1
                   (GGUF only) and with zero points (ONNX only)
  through          adapters of weights and scales trained through the rounding, from codes rounded to nearest

"text" learns the next token, "distilled" the dense model's distribution of it. Q4_K_M is given the importance matrix of
the calibration text; it needs widths in multiples of 256: on this grid of 32 some tensors fall back to larger types.
In brackets beside it: what it would give at Q4_0's bytes, pruned more, read off between the ratios measured.

Runs of several seeds may share W and be started side by side; a run with all seeds then only prints. It resumes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import SAMPLES, SEARCH, WINDOW, Frame, load_frame, texts_of
from methods import plan
from result import publish
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils import logging

from saap_edge.artifacts import engine_of
from saap_edge.engines.worker import Worker
from saap_edge.exporting.imatrix import save_importance
from saap_edge.exporting.write import export_artifacts
from saap_edge.model.folder import load_model, save_model
from saap_edge.model.perplexity import perplexity, text_windows
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.pruning.kept import kept_structures
from saap_edge.pruning.repair import repair, restored
from saap_edge.pruning.surgery import cut
from saap_edge.recovery.imatrix import importance_matrix
from saap_edge.recovery.run import Texts, recover
from saap_edge.recovery.settings import RecoverSettings

TEST_WINDOWS = 96
WAYS = ["none", "text", "taught", "formats", "both", "blocks", "through"]
BLOCKS, K_QUANT = ("gguf-q4_0", "onnx-int4"), "gguf-q4_k_m"
DEFAULT = "group, distilled: weights"  # what the recipe's defaults are


@dataclass(frozen=True)
class Way:
    """A way to recover: settings of the recipe, and the formats whose files it is measured in, each a row's name."""

    name: str
    rows: dict[str, tuple[str, ...]]
    settings: dict[str, Any]
    group: int = 32

    @property
    def work(self) -> str:
        """Ways that train the same weights share them."""
        return "taught" if self.name == "formats" else self.name


def ways(tokens: int) -> list[Way]:
    nearest: dict[str, Any] = {"start": "nearest", "weights": 1.0}
    through = {"weights": 0.0, "through": True, "learning_rate": 1e-3}
    text, untuned = {"distillation": 0.0}, {"tokens": 0}
    listed = [
        Way("none", {"no tuning, Q4_0": BLOCKS, "no tuning, Q4_K_M": (K_QUANT,)}, nearest | untuned),
        Way("none", {"no tuning, gptq": BLOCKS}, untuned),
        Way("text", {"LoRA, text, Q4_0": BLOCKS, "LoRA, text, Q4_K_M": (K_QUANT,)}, nearest | text),
        Way("taught", {"LoRA, distilled, Q4_0": BLOCKS, "LoRA, distilled, Q4_K_M": (K_QUANT,)}, nearest),
        Way("text", {"group, text: weights": BLOCKS}, text | {"weights": 1.0}),
        Way("taught", {"group, distilled: weights": BLOCKS}, {"weights": 1.0}),
        Way("formats", {"group, distilled: groups of 128": BLOCKS}, {"weights": 1.0}, 128),
        Way("formats", {"group, distilled: Q4_1": ("gguf-q4_1",)}, {"weights": 1.0, "format": "q4_1"}),
        Way("formats", {"group, distilled: zero points": ("onnx-int4",)}, {"weights": 1.0, "format": "int4_zp"}),
        Way("both", {"group, distilled: both": BLOCKS}, {"weights": 0.5}),
        Way("blocks", {"group, distilled: blocks": BLOCKS}, {"weights": 0.0}),
        Way("through", {"through, distilled": BLOCKS}, nearest | through),
    ]
    return [replace(way, settings={"tokens": tokens, **way.settings}) for way in listed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of texts (train, valid, test; or one file)")
    parser.add_argument("--work", type=Path, required=True, help="folder for pruned models and finished rows")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.35, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of calibration and of training")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="what to measure that is not there yet")
    parser.add_argument("--tokens", type=int, default=131_072, help="training tokens of every way")
    parser.add_argument("--keep", type=Path, help="keep the default's recovered folders of the first seed here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()

    frame = load_frame(args.model, args.data, None)
    args.work.mkdir(parents=True, exist_ok=True)
    cases = [(seed, ratio) for seed in args.seeds for ratio in args.ratios]
    rows = []
    for seed, ratio in cases:
        rows += case(frame, args, seed, ratio)
    result = {
        "benchmark": "recovery", "model": frame.name, "tokens": args.tokens, "window": WINDOW, "seeds": args.seeds,
        "test_tokens": TEST_WINDOWS * (WINDOW - 1), "heldout_windows": len(frame.heldout),
        "settings": RecoverSettings().model_dump(mode="json", exclude={"tokens"}), "dense": dense(frame, args),
        "summary": summarise(rows), "rows": rows,
    }  # fmt: skip
    for table in tables(result):
        Console(width=140).print(table)
    publish(result, args.out)


def case(frame: Frame, args: argparse.Namespace, seed: int, ratio: float) -> list[dict[str, Any]]:
    """All rows of a ratio and seed; finished ones are read."""
    pruned = pruned_folder(frame, args.work, seed, ratio)
    journal = args.work / f"rows-{seed}-{ratio:g}-{args.tokens}.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []
    done, scratch = {row["way"] for row in rows}, args.work / f"scratch-{seed}-{ratio:g}"
    wanted = [way for way in ways(args.tokens) if way.name in args.ways and not set(way.rows) <= done]
    order = frame.order(seed)
    texts = Texts(order[:SAMPLES], order[SAMPLES + SEARCH :], frame.heldout)
    with journal.open("a", encoding="utf-8") as file:
        for way in track(wanted, f"seed {seed}, {ratio:.0%}", console=Console(stderr=True)):
            for row in measure(frame, args, pruned, texts, way, scratch, seed):
                rows.append({"seed": seed, "ratio": ratio} | row)
                file.write(json.dumps(rows[-1]) + "\n")
                file.flush()
    shutil.rmtree(scratch, ignore_errors=True)
    return rows


def pruned_folder(frame: Frame, work: Path, seed: int, ratio: float) -> Path:
    """The model pruned by `auto` and repaired, made when it is not there."""
    folder = work / f"pruned-{seed}-{ratio:g}"
    if not folder.is_dir():
        with frame.planner(seed) as planner:
            widths, values, _ = plan(planner, {}, "auto", ratio)
            kept = kept_structures(values, widths)
            with restored(frame.model):
                repair(frame.model, kept, planner.calibration)
                pruned = cut(frame.model, kept)
        partial = work / f"partial-{seed}-{ratio:g}"
        partial.mkdir(exist_ok=True)
        save_model(pruned, frame.folder, partial)
        partial.rename(folder)
    return folder


def measure(
    frame: Frame, args: argparse.Namespace, pruned: Path, texts: Texts, way: Way, scratch: Path, seed: int
) -> Iterator[dict[str, Any]]:
    """Recover in one way, export, and run the files."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    settings = RecoverSettings(**way.settings)
    recovered = recover(
        frame.folder, pruned, texts, settings, group=way.group, seed=seed, out=out, work=scratch / way.work
    )
    formats = tuple(name for names in way.rows.values() for name in names)
    imatrix = save_importance(importance_matrix(load_model(out / "model"), texts.calibration), out)
    exported = out / "export"
    exported.mkdir()
    manifest = export_artifacts(out / "model", exported, formats, "pruned", {}, lambda _: None, way.group, imatrix)
    test = test_windows(frame, args.data)
    found = {
        artifact.format: {
            "perplexity": deployed(exported / artifact.path, artifact.format, test, args.threads),
            "bytes": artifact.bytes,
        }
        for artifact in manifest.artifacts
    }
    if args.keep and DEFAULT in way.rows and seed == args.seeds[0]:
        shutil.copytree(out / "model", args.keep / pruned.name, dirs_exist_ok=True)
    in_full = perplexity(load_model(out / "model"), test).value
    for name, names in way.rows.items():
        yield {
            "way": name, "full_precision": in_full, "heldout": recovered["after"], "kept": recovered["kept"],
            "files": {format: found[format] for format in names},
        }  # fmt: skip


def test_windows(frame: Frame, data: Path) -> torch.Tensor:
    """More of the test text than the frame's: ways differ by little."""
    _, _, test = texts_of(data)
    return text_windows(load_tokenizer(frame.folder), test, WINDOW, TEST_WINDOWS)


def deployed(path: Path, artifact_format: str, windows: torch.Tensor, threads: int) -> float:
    """Perplexity of a file in its engine."""
    with Worker(engine_of(artifact_format), path, threads, WINDOW) as worker:
        total, count = worker.nll(windows.tolist())
    return float(torch.tensor(total / count).exp())


def dense(frame: Frame, args: argparse.Namespace) -> dict[str, Any]:
    """The dense model in the same files, rounded to nearest."""
    formats, test = (*BLOCKS, K_QUANT), test_windows(frame, args.data)
    with tempfile.TemporaryDirectory() as name:
        manifest = export_artifacts(frame.folder, Path(name), formats, "dense", {}, lambda _: None)
        files = {
            a.format: {"perplexity": deployed(Path(name) / a.path, a.format, test, args.threads), "bytes": a.bytes}
            for a in manifest.artifacts
        }
    return {"full_precision": perplexity(frame.model, test).value, "files": files}


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over seeds, and every way's difference from the default, seed by seed."""
    found = []
    for ratio, way in dict.fromkeys((row["ratio"], row["way"]) for row in rows):
        mine = {row["seed"]: row for row in rows if (row["ratio"], row["way"]) == (ratio, way)}
        default = {row["seed"]: row for row in rows if (row["ratio"], row["way"]) == (ratio, DEFAULT)}
        line: dict[str, Any] = {"ratio": ratio, "way": way, "seeds": len(mine)}
        line["full_precision"] = statistics.mean(row["full_precision"] for row in mine.values())
        for name in dict.fromkeys(name for row in mine.values() for name in row["files"]):
            values = [row["files"][name]["perplexity"] for row in mine.values()]
            # Another engine or type is compared with the default's file in llama.cpp.
            twin = name if name in BLOCKS else BLOCKS[0]
            own = {seed: row["files"][twin]["perplexity"] for seed, row in default.items()}
            line[name] = {
                "perplexity": statistics.mean(values), "range": [min(values), max(values)],
                "bytes": statistics.mean(row["files"][name]["bytes"] for row in mine.values()),
                "over_default": [round(mine[s]["files"][name]["perplexity"] - own[s], 3) for s in mine if s in own],
            }  # fmt: skip
        found.append(line)
    for line in found:
        if K_QUANT in line:
            line["at_bytes_of_q4_0"] = at_bytes(found, line)
    return found


def at_bytes(lines: list[dict[str, Any]], line: dict[str, Any]) -> float | None:
    """What a Q4_K_M way would give were its files as small as Q4_0's: pruned more, read between the ratios measured.

    None at the highest ratio, beyond which nothing was measured.
    """
    size = next(other[BLOCKS[0]]["bytes"] for other in lines if other["ratio"] == line["ratio"] and BLOCKS[0] in other)
    same = [(other[K_QUANT]["bytes"], other[K_QUANT]["perplexity"]) for other in lines if other["way"] == line["way"]]
    sizes, perplexities = zip(*sorted(same), strict=True)
    return float(np.interp(size, sizes, perplexities)) if sizes[0] <= size else None


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """One table a ratio, best first."""
    dense = result["dense"]
    files = ", ".join(f"{name} {f['perplexity']:.2f} ({f['bytes'] / 1e3:.0f} kB)" for name, f in dense["files"].items())
    for ratio in dict.fromkeys(line["ratio"] for line in result["summary"]):
        lines = [line for line in result["summary"] if line["ratio"] == ratio]
        table = Table(title=f"{result['model']}, {ratio:.0%} pruned, {result['tokens']:,} tokens; dense: {files}")
        for column in ("way", "seeds", "fp32", "llama.cpp", "ONNX Runtime", "kB", "over the default, by seed"):
            table.add_column(column, justify="left" if column == "way" else "right")
        for line in sorted(lines, key=lambda line: next(iter(files_of(line).values()))["perplexity"]):
            formats = files_of(line)
            first, other = next(iter(formats.values())), formats.get("onnx-int4")
            equal = f" ({line['at_bytes_of_q4_0']:.2f})" if line.get("at_bytes_of_q4_0") else ""
            shown = f"{first['perplexity']:.2f}{equal}" if first is not other else ""
            table.add_row(
                line["way"], str(line["seeds"]), f"{line['full_precision']:.2f}", shown,
                f"{other['perplexity']:.2f}" if other else "", f"{first['bytes'] / 1e3:.0f}",
                " ".join(f"{value:+.2f}" for value in first["over_default"]),
            )  # fmt: skip
        yield table


def files_of(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in (*BLOCKS, K_QUANT, "gguf-q4_1") if name in line}


if __name__ == "__main__":
    main()
