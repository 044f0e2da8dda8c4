"""Prune, or just quantise the dense model harder? At equal file size, and at equal decode speed.

    python benchmarks/rivals.py --model FOLDER --data TEXTS --pruned FOLDER --pruned FOLDER --out rivals.json
    python benchmarks/rivals.py --shape llama-110m --out shape.json

The dense model is written in llama.cpp's types down to two bits, all but plain Q4_0 and Q8_0 with an importance matrix
of calibration text; each pruned folder as Q4_0, with the tuned codes it holds. Perplexity is deployed: of the file, in
llama.cpp, over windows of test text. Decode speed is by turns against the dense Q4_0, each file in a
child process of its own; the row of Q4_0 against itself shows the noise. The vocabulary's matrices are Q8_0 throughout.

For every pruned file four rivals among the dense ones are named: of those whose file is not larger (by more than 1 %)
the largest, and the one of lowest perplexity; of those that are not slower (median ratio at least 0.99 of the pruned
one's) the slowest, and the one of lowest perplexity. The ratio of perplexities has an interval from resampling the
windows they share; where it includes 1 nobody wins. Where no dense file is small or fast enough the closest is shown.

A model of few million weights spends its time on other things than weights, so `--shape` measures the speed of the
same types on random weights of a model's shape, dense and pruned uniformly. smollm2-135m is hidden 576, where blocks
of 256 do not fit: most K-quants and IQ types fall back to 4 and 5 bits there (column `fell back`); llama-110m is
hidden 768; tiny is for trying. About 10 minutes for a model of 7 M on one core, 40 for a shape. Ends with one JSON
line.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from frame import SAMPLES, TEST, WINDOW, load_frame
from llama_perplexity import CHUNK, chunks, halves
from result import publish
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import bootstrap
from shapes import SHAPES, dense_model, pruned_model, write_model
from speed import floor_seconds

from saap_edge.engines.worker import Worker
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.imatrix import save_importance
from saap_edge.exporting.kquants import write_kquant
from saap_edge.machine.facts import machine_facts, versions
from saap_edge.measuring.measure import BenchConditions, Subject, measure
from saap_edge.model.folder import load_model
from saap_edge.pruning.kept import uniform_widths
from saap_edge.pruning.space import Space
from saap_edge.recovery.imatrix import importance_matrix

PLAIN = ("q8_0", "q4_0")  # written by saap-edge, rounded to nearest
TYPES = (
    "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q4_0-imatrix", "iq4_nl", "iq4_xs", "q3_k_m", "iq3_m", "q3_k_s", "q2_k",
    "iq3_xxs", "iq2_m", "iq2_xxs",
)  # fmt: skip
SHAPE_TYPES = ("q8_0", "q4_k_m", "q4_0", "iq4_nl", "q3_k_m", "iq3_m", "q2_k", "iq3_xxs", "iq2_m")
BASE = "q4_0"
SLACK = 0.01  # a file so little larger or slower is as large or fast
console = Console(width=170)


@dataclass
class Row:
    """One file. `nll` is nats a predicted token in each window; `dense_bits` spreads the bits over dense weights."""

    model: str
    type: str
    subject: Subject
    bits: float
    dense_bits: float
    fallbacks: int
    nll: list[float] = field(default_factory=list)
    tok_s: float = 0.0
    ratio: dict[str, float] = field(default_factory=dict)
    prefill: dict[str, float] = field(default_factory=dict)
    rss_mib: float = 0.0
    ideal: float = 0.0
    halves: list[float] = field(default_factory=list)  # nats a token, as llama-perplexity counts

    @property
    def name(self) -> str:
        return f"{self.model} {self.type}"

    @property
    def perplexity(self) -> float:
        return float(np.exp(np.mean(self.nll)))

    def document(self) -> dict[str, Any]:
        perplexity = {"perplexity": round(self.perplexity, 4)} if self.nll else {}
        if self.halves:
            perplexity["llama_perplexity"] = round(float(np.exp(np.mean(self.halves))), 4)
        return {
            "model": self.model, "type": self.type, "file_bytes": self.subject.file_bytes,
            "projection_bytes": self.subject.projection_bytes, "bits_per_weight": round(self.bits, 3),
            "bits_per_dense_weight": round(self.dense_bits, 3), "fallbacks": self.fallbacks, **perplexity,
            "decode_tok_s": round(self.tok_s, 1), "decode_ratio": {k: round(v, 4) for k, v in self.ratio.items()},
            "prefill_ratio": {k: round(v, 4) for k, v in self.prefill.items()}, "peak_rss_mib": round(self.rss_mib, 1),
            "ideal_decode_ratio": round(self.ideal, 4),
        }  # fmt: skip


def write_types(folder: Path, name: str, types: list[str], imatrix: Path | None, out: Path) -> list[Row]:
    """The model in `folder` as one GGUF file a type; `imatrix` is for all but PLAIN."""
    out.mkdir()
    rows, source = [], out / "f16.gguf"
    if set(types) - set(PLAIN):
        write_gguf(folder, source, "f16")
    for kind in track(types, f"writing {name}", console=Console(stderr=True), transient=True):
        path = out / f"{kind}.gguf"
        if kind in PLAIN:
            summary = write_gguf(folder, path, kind)
        else:
            summary = write_kquant(folder, source, path, kind.removesuffix("-imatrix"), imatrix)
        size, count = _projections(path)
        bits = 8 * size / count
        sizes = summary["projection_bytes"], summary["file_bytes"]
        subject = Subject(f"{name} {kind}", name, "llama.cpp", f"gguf-{kind}", path, *sizes)
        rows.append(Row(name, kind, subject, bits, bits, len(summary.get("fallbacks", {}))))
    source.unlink(missing_ok=True)
    return rows


def _projections(path: Path) -> tuple[int, int]:
    """Bytes and weights of the matrices in a file's layers."""
    found = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return sum(int(t.n_bytes) for t in found), sum(int(t.n_elements) for t in found)


def spread(rows: list[Row], dense: Row) -> None:
    """Bits a weight of the dense model, for rows that hold fewer weights."""
    weights = 8 * _projections(dense.subject.path)[0] / dense.bits
    for row in rows:
        row.dense_bits = 8 * _projections(row.subject.path)[0] / weights


def measure_speed(rows: list[Row], base: Row, threads: int, rounds: int) -> BenchConditions:
    """Fill in the speed of every row, by turns with `base`."""
    conditions = BenchConditions(threads, prompt_tokens=64, decode_tokens=32, rounds=rounds)
    for row in track(rows, "decoding", console=Console(stderr=True), transient=True):
        beside = replace(base.subject, name="base")  # the base itself is measured against a second process of its own
        document = measure([beside, row.subject], [("base", row.subject.name)], conditions).as_dict()
        [pair] = document["comparisons"]
        metrics, ratios = document["artifacts"][1]["metrics"], pair["ratios"]
        row.tok_s, row.rss_mib = metrics["decode_tok_s"]["median"], metrics["peak_rss_mib"]["median"]
        row.ratio, row.prefill, row.ideal = ratios["decode_tok_s"], ratios["prefill_tok_s"], pair["ideal_decode_ratio"]
    return conditions


def measure_quality(rows: list[Row], windows: list[list[int]], raw: list[list[int]], threads: int) -> None:
    """Losses on windows of 256 tokens, and on chunks of CHUNK as llama-perplexity scores them: the second half."""
    for row in track(rows, "perplexity", console=Console(stderr=True), transient=True):
        with Worker("llama.cpp", row.subject.path, threads, WINDOW) as worker:
            row.nll = [total / count for total, count in (worker.nll([window]) for window in windows)]
        if raw:
            row.halves = halves(row.subject.path, raw, threads)


def rivals(rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Each pruned row beside its rivals, by every rule that can be judged."""
    dense = [row for row in rows if row.model == "dense"]
    for row in rows:
        if row.model == "dense":
            continue
        small = [rival for rival in dense if rival.subject.file_bytes <= (1 + SLACK) * row.subject.file_bytes]
        fast = [rival for rival in dense if rival.ratio["ratio"] >= (1 - SLACK) * row.ratio["ratio"]]
        smallest, fastest = min(dense, key=_size), max(dense, key=_speed)
        yield compare(row, "size: nearest", max(small, key=_size, default=None), smallest)
        yield compare(row, "speed: nearest", min(fast, key=_speed, default=None), fastest)
        if row.nll:
            yield compare(row, "size: best", min(small, key=_perplexity, default=None), smallest)
            yield compare(row, "speed: best", min(fast, key=_perplexity, default=None), fastest)


def _size(row: Row) -> float:
    return row.subject.file_bytes


def _speed(row: Row) -> float:
    return row.ratio["ratio"]


def _perplexity(row: Row) -> float:
    return row.perplexity


def compare(row: Row, rule: str, rival: Row | None, closest: Row) -> dict[str, Any]:
    """The pair as figures; `winner` by the interval of the ratio of perplexities, dense over pruned.

    Where no dense file is small or fast enough, `closest` is shown instead and nobody wins.
    """
    other = rival or closest
    found: dict[str, Any] = {
        "pruned": row.name, "rule": rule, "dense": other.type, "qualifies": rival is not None,
        "bytes": [row.subject.file_bytes, other.subject.file_bytes],
        "decode_ratio": [round(row.ratio["ratio"], 4), round(other.ratio["ratio"], 4)],
    }  # fmt: skip
    if row.nll:
        gain = np.array(other.nll) - np.array(row.nll)
        interval = bootstrap((gain,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
        low, high = np.exp([interval.confidence_interval.low, interval.confidence_interval.high])
        figures = zip(("ratio", "low", "high"), (np.exp(gain.mean()), low, high), strict=True)
        verdict = "pruned" if low > 1 else "dense" if high < 1 else "neither"
        found |= {
            "perplexity": [round(row.perplexity, 4), round(other.perplexity, 4)],
            "perplexity_ratio": {key: round(float(value), 4) for key, value in figures},
            "winner": verdict if rival else None,
        }
    return found


def show_costs(rows: list[Row]) -> None:
    table = Table(title="cost card: bytes of weights read per token, and the time one thread needs to read them")
    for column in ("file", "file kB", "MB/token", "bits/weight", "bits/dense weight", "floor ms/token", "fell back"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for row in rows:
        table.add_row(
            row.name, f"{row.subject.file_bytes / 1e3:,.0f}", f"{row.subject.projection_bytes / 1e6:.2f}",
            f"{row.bits:.2f}", f"{row.dense_bits:.2f}", f"{1000 * floor_seconds(row.subject):.2f}",
            str(row.fallbacks or ""),
        )  # fmt: skip
    console.print(table)


def show_rows(rows: list[Row], title: str) -> None:
    quality = any(row.nll for row in rows)
    table = Table(title=title)
    columns = (
        "file",
        "file kB",
        "bits/dense weight",
        *(("perplexity", "llama-perplexity") if quality else ()),
        "tok/s",
    )
    for column in (*columns, "decode over dense Q4_0 [95 %]", "ideal", "prefill", "RSS MiB", "fell back"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for row in sorted(rows, key=lambda row: -row.subject.file_bytes):
        table.add_row(
            row.name, f"{row.subject.file_bytes / 1e3:,.0f}", f"{row.dense_bits:.2f}",
            *((f"{row.perplexity:.2f}", f"{np.exp(np.mean(row.halves)):.2f}" if row.halves else "") if quality else ()),
            f"{row.tok_s:.0f}", _interval(row.ratio), f"{row.ideal:.2f}", f"{row.prefill['ratio']:.2f}",
            f"{row.rss_mib:.0f}", str(row.fallbacks or ""),
        )  # fmt: skip
    console.print(table)


def show_pairs(pairs: list[dict[str, Any]]) -> None:
    table = Table(title="pruned beside its dense rivals: pruned / dense")
    quality = any("winner" in pair for pair in pairs)
    columns = ("pruned", "rival by", "dense", "file kB", "decode ratio")
    for column in (*columns, *(("perplexity", "dense over pruned [95 %]", "better") if quality else ())):
        table.add_column(column, justify="left" if column in columns[:3] else "right")
    for pair in pairs:
        dense = pair["dense"] if pair["qualifies"] else f"none (closest: {pair['dense']})"
        figures = [
            " / ".join(f"{size / 1e3:,.0f}" for size in pair["bytes"]),
            " / ".join(f"{x:.2f}" for x in pair["decode_ratio"]),
        ]
        if quality:
            figures += [
                " / ".join(f"{x:.2f}" for x in pair["perplexity"]), _interval(pair["perplexity_ratio"]),
                pair["winner"] or "",
            ]  # fmt: skip
        table.add_row(pair["pruned"], pair["rule"], dense, *figures)
    console.print(table)


def _interval(ratio: dict[str, float]) -> str:
    return f"{ratio['ratio']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def of_model(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    frame = load_frame(args.model, args.data, None)
    windows = frame.tests[args.data.name][: args.windows].tolist()
    imatrix = save_importance(importance_matrix(frame.model, frame.order(0)[:SAMPLES]), scratch)
    dense = write_types(
        args.model, "dense", list(dict.fromkeys([*(args.types or TYPES), BASE])), imatrix, scratch / "dense"
    )
    base = next(row for row in dense if row.type == BASE)
    pruned: list[Row] = []
    for index, folder in enumerate(args.pruned):
        own, out = scratch / f"pruned-{index}-imatrix", scratch / f"pruned-{index}"
        if set(args.pruned_types) - set(PLAIN):
            own.mkdir()
            own = save_importance(importance_matrix(load_model(folder), frame.order(0)[:SAMPLES]), own)
        pruned += write_types(folder, _label(folder), args.pruned_types, own, out)
    spread(pruned, base)
    rows = dense + pruned
    show_costs(rows)
    raw = chunks(args.model, args.raw, args.windows // 2) if args.raw else []
    measure_quality(rows, windows, raw, args.threads)
    conditions = measure_speed(rows, base, args.threads, args.rounds)
    pairs = list(rivals(rows))
    text = f"{len(windows)} windows of {WINDOW} tokens, {args.data.name}"
    show_rows(
        rows, f"{frame.name}: perplexity in llama.cpp over {text}; {args.threads} thread(s), {args.rounds} rounds"
    )
    show_pairs(pairs)
    return {
        "model": frame.name, "windows": len(windows), "window": WINDOW, "text": args.data.name,
        "llama_perplexity": {"text": args.raw.name, "chunk": CHUNK, "chunks": len(raw)} if args.raw else None,
        "calibration_windows": SAMPLES, "conditions": asdict(conditions),
        "rows": [row.document() for row in rows], "pairs": pairs,
    }  # fmt: skip


def _label(folder: Path) -> str:
    """A folder's name; of `.../35/model` as the recover stage leaves it, that of the folder above."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def of_shape(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    types = list(dict.fromkeys([*(args.types or SHAPE_TYPES), BASE]))
    rows: list[Row] = []
    for name, folder, imatrix in random_models(args.shape, args.ratios, scratch):
        rows += write_types(folder, name, types, imatrix, scratch / f"files-{folder.name}")
    base = next(row for row in rows if row.type == BASE)
    spread(rows, base)
    show_costs(rows)
    conditions = measure_speed(rows, base, args.threads, args.rounds)
    pairs = list(rivals([row for row in rows if row.model == "dense" or row.type == BASE]))
    show_rows(rows, f"{args.shape}, random weights; {args.threads} thread(s), {args.rounds} rounds")
    show_pairs(pairs)
    return {
        "shape": args.shape, "conditions": asdict(conditions), "rows": [row.document() for row in rows], "pairs": pairs,
    }  # fmt: skip


def random_models(shape: str, ratios: list[float], scratch: Path) -> Iterator[tuple[str, Path, Path]]:
    """(name, folder, importance matrix of ones) of the dense model and of uniformly pruned ones."""
    size = SHAPES[shape]
    dense = dense_model(size)
    space = Space((size.widths,) * size.layers, size.hidden, size.head_dim)
    for name, ratio in [("dense", 0.0), *((f"pruned {ratio:.0%}", ratio) for ratio in ratios)]:
        model: Any = dense
        if ratio:
            model = pruned_model(dense, [space.shape(layer) for layer in uniform_widths(space, ratio)])
        folder = write_model(model, scratch / f"model-{name.split()[-1].rstrip('%')}")
        ones = {
            key: np.ones(weight.shape[1], dtype=np.float32)
            for key, weight in model.named_parameters()
            if "_proj" in key
        }
        yield name, folder, save_importance(ones, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="Hugging Face folder of the dense model")
    parser.add_argument("--data", type=Path, help="folder of texts (train, valid, test; or one file)")
    parser.add_argument("--pruned", type=Path, action="append", default=[], help="a pruned version; repeat it")
    parser.add_argument("--pruned-types", nargs="+", choices=TYPES, default=[BASE], help="of the pruned versions")
    parser.add_argument("--raw", type=Path, help="text for a column in the way of llama-perplexity (wiki.test.raw)")
    parser.add_argument("--types", nargs="+", choices=TYPES, help="of the dense model, and of all models of --shape")
    parser.add_argument("--windows", type=int, default=TEST, help=f"test windows of {WINDOW} tokens")
    parser.add_argument("--shape", choices=list(SHAPES), help="measure speed on random weights of this shape")
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[0.2, 0.35, 0.5], help="of the shape's pruned models"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count, in random order")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()
    if not args.shape and not (args.model and args.data):
        parser.error("give --model and --data, or --shape")
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {"benchmark": "rivals", "machine": machine_facts(), "versions": versions()}
    with tempfile.TemporaryDirectory(prefix="saap-edge-rivals-") as name:
        if args.model:
            result |= of_model(args, Path(name))
        if args.shape:
            result["shape"] = of_shape(args, Path(name))
    publish(result, args.out)


if __name__ == "__main__":
    main()
