"""Speed of pruned against dense on a model where weights matter, beside the ideal from bytes read per token.

    python benchmarks/speed.py --shape smollm2-135m --threads 1 --out benchmarks/results/speed.json

Decoding one token reads every weight once, so it is bound by memory: the ideal speed-up is the ratio of the bytes read
(weights, scales and KV cache). Where a cache holds the pruned model but not the dense one, reading gets faster too:
the column "floors" is the ratio of the times one thread needs to read as many bytes. Prefill is bound by arithmetic.

The weights are random, in the shape of a known model, pruned at random but non-uniform widths on the runtimes' grid.
Dense and pruned run by turns, each in a child process of its own. SmolLM2-135M's shape needs 4 GB of disk
in the temporary folder and about 8 minutes on 2 cores, Qwen2.5-0.5B's 16 GB and half an hour. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from result import publish
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, Shape, dense_model, pruned_model, random_widths, write_model

from saap_edge.artifacts import Artifact, engine_of
from saap_edge.exporting.write import export_artifacts
from saap_edge.measuring.document import compared
from saap_edge.measuring.measure import BenchConditions, Subject, measure
from saap_edge.probe.board import measure_bandwidth

FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-fp32", "onnx-int8", "onnx-int4")
console = Console(width=120)


def write_models(shape: Shape, scratch: Path, ratios: list[float]) -> dict[str, Path]:
    """The dense model and its pruned versions as Hugging Face folders."""
    dense = dense_model(shape)
    folders = {"dense": write_model(dense, scratch / "model-dense")}
    for ratio in ratios:
        model = pruned_model(dense, random_widths(shape, ratio))
        folders[f"{ratio:.0%}"] = write_model(model, scratch / f"model-{ratio:g}")
    return folders


def export(folders: dict[str, Path], scratch: Path, formats: list[str], group: int) -> dict[str, dict[str, Subject]]:
    """Artifacts by model and format."""
    found: dict[str, dict[str, Subject]] = {}
    for name, folder in folders.items():
        out = scratch / f"export-{folder.name}"
        out.mkdir()
        manifest = export_artifacts(folder, out, tuple(formats), name, {}, lambda _: None, group)

        def subject(artifact: Artifact, out: Path = out, name: str = name) -> Subject:
            return Subject(
                f"{name} {artifact.format}", name, engine_of(artifact.format), artifact.format, out / artifact.path,
                artifact.projection_bytes, artifact.bytes,
            )  # fmt: skip

        found[name] = {artifact.format: subject(artifact) for artifact in manifest.artifacts}
    return found


def floor_seconds(subject: Subject) -> float:
    """Seconds one thread needs to read as many bytes as a token does, over and over: caches count, as they do there."""
    size = subject.projection_bytes
    return size / measure_bandwidth(max(1, size >> 20), rounds=9)[1] / 1e9


def show_costs(subjects: dict[str, dict[str, Subject]], floors: dict[str, dict[str, float]]) -> None:
    table = Table(title="cost card: bytes of weights read per token, and the time one thread needs to read them")
    for column in ("format", "model", "MB/token", "read at GB/s", "floor ms/token", "ceiling tok/s"):
        table.add_column(column, justify="right")
    for name, formats in subjects.items():
        for kind, subject in formats.items():
            size, seconds = subject.projection_bytes, floors[name][kind]
            figures = (size / 1e6, size / seconds / 1e9, 1000 * seconds, 1 / seconds)
            table.add_row(kind, name, *(f"{figure:.1f}" for figure in figures))
    console.print(table)


def show_results(rows: list[dict]) -> None:
    table = Table(title="decode, dense against pruned, by turns")
    for column in (
        "format",
        "pruned",
        "dense tok/s",
        "pruned tok/s",
        "speed-up [95 %]",
        "ideal",
        "of ideal",
        "floors",
        "prefill",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["format"], row["pruned"], f"{row['dense_tok_s']:.0f}", f"{row['pruned_tok_s']:.0f}",
            f"{row['speedup']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", f"{row['ideal']:.2f}",
            f"{row['speedup'] / row['ideal']:.2f}", f"{row['floor_ratio']:.2f}", f"{row['prefill_speedup']:.2f}",
        )  # fmt: skip
    console.print(table)


def row_of(ratio: str, pair: dict, floors: dict[str, dict[str, float]]) -> dict:
    decode, kind = pair["ratios"]["decode_tok_s"], pair["candidate"]["format"]
    dense, pruned = pair["base"]["metrics"], pair["candidate"]["metrics"]
    return {
        "format": kind, "pruned": ratio, "dense_tok_s": round(dense["decode_tok_s"]["median"], 1),
        "pruned_tok_s": round(pruned["decode_tok_s"]["median"], 1), "speedup": round(decode["ratio"], 4),
        "low": round(decode["low"], 4), "high": round(decode["high"], 4), "ideal": round(pair["ideal_decode_ratio"], 4),
        "floor_ratio": round(floors["dense"][kind] / floors[ratio][kind], 3),
        "of_ideal": round(decode["ratio"] / pair["ideal_decode_ratio"], 3),
        "prefill_speedup": round(pair["ratios"]["prefill_tok_s"]["ratio"], 3),
        "dense_bytes_per_token": dense["bytes_per_token"], "pruned_bytes_per_token": pruned["bytes_per_token"],
        "dense_peak_rss_mib": round(dense["peak_rss_mib"]["median"], 1),
        "pruned_peak_rss_mib": round(pruned["peak_rss_mib"]["median"], 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count, in random order (default 15)")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), help="artifacts to measure")
    parser.add_argument("--group", type=int, default=32, help="inputs that share a scale in ONNX")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="saap-edge-speed-") as name:
        scratch = Path(name)
        with console.status("building and exporting"):
            subjects = export(write_models(SHAPES[args.shape], scratch, args.ratios), scratch, args.formats, args.group)
        bandwidth = measure_bandwidth()[1]
        floors = {name: {kind: floor_seconds(s) for kind, s in formats.items()} for name, formats in subjects.items()}
        show_costs(subjects, floors)
        conditions = BenchConditions(args.threads, prompt_tokens=64, decode_tokens=32, rounds=args.rounds)
        rows = []
        for ratio in list(subjects)[1:]:
            sides = [(subjects["dense"][kind], subjects[ratio][kind]) for kind in args.formats]
            with console.status(f"measuring {ratio}"):
                names = [(dense.name, pruned.name) for dense, pruned in sides]
                document = measure([subject for pair in sides for subject in pair], names, conditions)
            rows += [row_of(ratio, pair, floors) for pair in compared(document)]
        show_results(rows)
    result = {
        "benchmark": "speed", "shape": f"{args.shape}, random weights", "onnx_group": args.group,
        "machine": document.machine.as_dict(), "conditions": document.conditions.as_dict(),
        "read_bandwidth_gb_s": round(bandwidth, 2), "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


if __name__ == "__main__":
    main()
