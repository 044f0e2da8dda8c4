"""Structured pruning methods in one frame: which is best at 20, 35 and 50 %, cut, repaired, and recovered?

    python benchmarks/methods.py --model FOLDER --data TEXTS --out benchmarks/results/methods-NAME.json

Every method sees the same model, the same calibration windows, the same grid of widths and the same budget (attention
and FFN parameters), for several calibration seeds. Perplexity is measured on two test texts that nothing was chosen
on: as cut, after least-squares repair, and (first seed) after the same recovery, in 4 bits. `auto` is what saap-edge
does by default: it builds several plans, searches from them, and keeps the best on held-out text.

Rows are kept as they are made (OUT.rows.jsonl), so that a run that died goes on. Prints a table, then one JSON line.
About 10 minutes for a model of 0.3 M parameters and an hour and a half for one of 7 M, on one core.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from frame import BATCHES, HELDOUT, SAMPLES, SEARCH, TEST, WINDOW, Frame, load_frame
from result import publish
from rich.console import Console
from rich.progress import track
from rich.table import Table

from saap_edge.exporting.gguf import write_gguf
from saap_edge.model.blocks import BLOCK_FORMATS
from saap_edge.model.folder import save_model, spec_of
from saap_edge.model.perplexity import perplexity
from saap_edge.pruning.kept import kept_structures
from saap_edge.pruning.orders import Values
from saap_edge.pruning.plan import make_plan
from saap_edge.pruning.planner import AUTO, METHODS, Planner
from saap_edge.pruning.repair import repair, restored
from saap_edge.pruning.space import Widths
from saap_edge.pruning.surgery import cut
from saap_edge.recovery.heldout import Heldout
from saap_edge.recovery.start import in_blocks
from saap_edge.recovery.teacher import DenseTeacher
from saap_edge.recovery.train import Training, train

Q4_0 = BLOCK_FORMATS["q4_0"]
RECOVERY = Training(tokens=0, batch=8, learning_rate=3e-3, distillation=1.0)  # a short one, through the rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of texts (train, valid, test; or one file)")
    parser.add_argument("--other", type=Path, help="second test text (default: the bundled one)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.35, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of calibration; 0 recovers too")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "auto"], choices=[*METHODS, "auto"])
    parser.add_argument("--tokens", type=int, default=32_768, help="of recovery; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    frame = load_frame(args.model, args.data, args.other)
    journal = args.out.with_suffix(".rows.jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []
    with journal.open("a", encoding="utf-8") as file:
        for row in make_rows(frame, args, {(r["seed"], r["ratio"], r["method"]) for r in rows}):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    result = document(frame, args, rows)
    for table in tables(result):
        Console(width=140).print(table)
    publish(result, args.out)
    journal.unlink()


def make_rows(frame: Frame, args: argparse.Namespace, done: set[tuple[int, float, str]]) -> Iterator[dict[str, Any]]:
    for seed in args.seeds:
        wanted = [(ratio, method) for ratio in args.ratios for method in args.methods]
        wanted = [(ratio, method) for ratio, method in wanted if (seed, ratio, method) not in done]
        if not wanted:
            continue
        made: dict[tuple[float, str], tuple[Widths, Values]] = {}
        judged: dict[tuple[float, str], dict[str, Any]] = {}
        with frame.planner(seed) as planner:
            for ratio, method in track(wanted, f"{frame.name}, seed {seed}", console=Console(stderr=True)):
                widths, values, used = plan(planner, made, method, ratio)
                if (ratio, used) not in judged:
                    judged[ratio, used] = judge(frame, planner, widths, values, seed, args.tokens)
                yield {"seed": seed, "ratio": ratio, "method": method, "plan": used} | judged[ratio, used]


def plan(
    planner: Planner, made: dict[tuple[float, str], tuple[Widths, Values]], method: str, ratio: float
) -> tuple[Widths, Values, str]:
    """Widths and values of a method, each made once; `auto` takes the best of its plans on held-out text."""

    def one(name: str) -> tuple[Widths, Values]:
        if (ratio, name) not in made:
            # Block influence removes whole layers: it alone may.
            depth = replace(planner, space=replace(planner.space, depth=name == "shortgpt"))
            made[ratio, name] = depth.widths(name, ratio)
        return made[ratio, name]

    if method != "auto":
        return *one(method), method
    chosen, _ = planner.choose({name: [one(name)] for name in AUTO}, "auto", ratio)
    return *one(chosen.method), chosen.method


def judge(frame: Frame, planner: Planner, widths: Widths, values: Values, seed: int, tokens: int) -> dict[str, Any]:
    """Perplexities of one plan as cut, repaired and recovered, and what it removes."""
    kept = kept_structures(values, widths)
    pruned = cut(frame.model, kept)
    figures: dict[str, Any] = {"cut": measure(frame, pruned)}
    with restored(frame.model):
        repair(frame.model, kept, planner.calibration)
        pruned = cut(frame.model, kept)
    figures["repaired"] = measure(frame, pruned)
    if seed == 0:
        figures["gguf_q4_0_bytes"] = file_bytes(frame, pruned)
    if seed == 0 and tokens:
        torch.manual_seed(0)
        student = in_blocks(pruned, spec_of(pruned).family, Q4_0, rank=16, through=True)
        windows, training = frame.order(seed)[SAMPLES + SEARCH :], replace(RECOVERY, tokens=tokens)
        with tempfile.TemporaryDirectory() as work:
            train(student, DenseTeacher(frame.model), windows, Heldout(frame.heldout[:8]), training, Path(work))
        figures["recovered"] = measure(frame, student)
    summary = make_plan("", "", 0.0, planner.space, widths)
    removed = {"removed": round(summary.achieved_ratio, 4), "parameters": list(summary.parameters)}
    return removed | {"model_parameters": sum(p.numel() for p in pruned.parameters())} | figures


def measure(frame: Frame, model: Any) -> dict[str, float]:
    return {name: round(perplexity(model, windows).value, 3) for name, windows in frame.tests.items()}


def file_bytes(frame: Frame, model: Any) -> int:
    """Size of the model as a Q4_0 GGUF."""
    with tempfile.TemporaryDirectory() as scratch:
        save_model(model, frame.folder, scratch)
        return int(write_gguf(Path(scratch), Path(scratch) / "model.gguf", "q4_0")["file_bytes"])


def document(frame: Frame, args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    hashes = {
        name: hashlib.sha256(w.numpy().tobytes()).hexdigest()[:12]
        for name, w in (("heldout", frame.heldout), *frame.tests.items())
    }
    in_4_bits = in_blocks(copy.deepcopy(frame.model), spec_of(frame.model).family, Q4_0)
    return {
        "benchmark": "methods", "model": frame.name, "dense": measure(frame, frame.model),
        "dense_4_bits": measure(frame, in_4_bits), "window": WINDOW,
        "calibration_windows": SAMPLES, "batches": BATCHES, "search_windows": SEARCH, "heldout_windows": HELDOUT,
        "test_windows": TEST, "token_sha256": hashes, "recovery_tokens": args.tokens, "seeds": args.seeds,
        "dense_parameters": sum(p.numel() for p in frame.model.parameters()),
        "dense_gguf_q4_0_bytes": file_bytes(frame, frame.model),
        "summary": summarise(frame, rows), "rows": rows,
    }  # fmt: skip


def summarise(frame: Frame, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread (largest minus smallest) over seeds, by ratio and method."""
    found = []
    for ratio, method in dict.fromkeys((row["ratio"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["ratio"], row["method"]) == (ratio, method)]
        line: dict[str, Any] = {
            "ratio": ratio,
            "method": method,
            "removed": statistics.mean(r["removed"] for r in mine),
        }
        for stage in ("cut", "repaired", "recovered"):
            for text in frame.tests:
                values = [row[stage][text] for row in mine if stage in row]
                if values:
                    line[f"{stage}/{text}"] = [round(statistics.mean(values), 2), round(max(values) - min(values), 2)]
        line["gguf_q4_0_bytes"] = next((r["gguf_q4_0_bytes"] for r in mine if "gguf_q4_0_bytes" in r), None)
        found.append(line)
    return found


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """One table a ratio, sorted by perplexity after repair on the first text: mean ± half the spread over seeds."""
    texts = list(result["dense"])
    for ratio in dict.fromkeys(line["ratio"] for line in result["summary"]):
        title = (
            f"{result['model']}, {ratio:.0%} (dense: {', '.join(f'{t} {v:.1f}' for t, v in result['dense'].items())})"
        )
        table = Table(title=title)
        for column in (
            "method",
            "removed",
            "Q4_0 bytes",
            *(f"{s}\n{t}" for s in ("cut", "repaired", "recovered") for t in texts),
        ):
            table.add_column(column, justify="left" if column == "method" else "right")
        lines = [line for line in result["summary"] if line["ratio"] == ratio]
        for line in sorted(lines, key=lambda line: line[f"repaired/{texts[0]}"][0]):
            size = line["gguf_q4_0_bytes"]
            cells = [line["method"], f"{line['removed']:.3f}", f"{size:,}" if size else ""]
            for stage in ("cut", "repaired", "recovered"):
                for text in texts:
                    figure = line.get(f"{stage}/{text}")
                    cells.append("" if figure is None else f"{figure[0]:.1f} ± {figure[1] / 2:.1f}")
            table.add_row(*cells)
        yield table


if __name__ == "__main__":
    main()
