"""Fit what `saap-edge predict` knows to published measurements, and show how far off it is on what it has not seen.

    python benchmarks/prediction.py                          # the table, from benchmarks/data/measurements.csv
    python benchmarks/prediction.py --write saap_edge/prediction/prediction.json \
      --out benchmarks/results/prediction.json

The formulas are those of saap_edge/prediction/predict.py. Unknowns are fitted in logarithms, with a factor for every
board and one for every source, both drawn towards 1: many rows of one page do not outvote a page with one row. Rows are
dropped by the rules of published.py alone. Three ways to leave out: a whole source (other sources of the same board
stay: what a prediction for a measured board is worth), all of an author's sources, a whole board (what a prediction for
a board that nobody measured is worth). Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from published import DATA, RULES, Row, read_boards, read_rows
from result import publish
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares

from saap_edge.prediction.formulas import decode_seconds, memory_rate, prefill_seconds
from saap_edge.targets import list_targets

console = Console(width=120)
COVERED = 0.8  # share of rows that an interval is to hold


@dataclass(frozen=True)
class Kind:
    """One thing to fit. `prior`: unknowns with their guess and its spread (of the logarithm); then the spreads of
    boards' and sources' factors and of a row. Set before any error was looked at."""

    name: str
    prior: dict[str, tuple[float, float]]
    board: float
    source: float
    row: float
    rate: Callable[[dict[str, float], float, Row], float]  # tokens a second, from unknowns and the board's factor
    observed: Callable[[Row], float | None]


def _decode(unknowns: dict[str, float], factor: float, row: Row) -> float:
    fit = {"decode": unknowns}
    rate = memory_rate(fit, row.target)[0] * factor
    return 1 / decode_seconds(fit, row.target, rate, row.bytes, row.weights, row.bits, row.target.threads)


def _prefill(unknowns: dict[str, float], factor: float, row: Row) -> float:
    return factor / prefill_seconds({"prefill": unknowns}, row.target, row.weights, row.bits, row.target.threads)


def _accelerated(unknowns: dict[str, float], factor: float, row: Row) -> float:
    rate = memory_rate({"accelerator": unknowns}, row.target)[0] * factor
    return 1 / decode_seconds({}, row.target, rate, row.bytes, row.weights, row.bits, 1)


KINDS = {
    "decode": Kind(
        "decode",
        {"copy": (1, 0.3), "theory": (0.65, 0.3), "dot": (0.03, 1.5), "plain": (0.1, 1.5), "layer_us": (100, 1.5)},
        0.2, 0.1, 0.1, _decode, lambda row: None if row.target.accelerator else row.decode,
    ),
    "prefill": Kind(
        "prefill", {"4": (0.4, 1.5), "8": (0.4, 1.5), "16": (0.4, 1.5), "plain": (3, 0.7)}, 0.3, 0.2, 0.3, _prefill,
        lambda row: None if row.target.accelerator else row.prefill,
    ),
    "accelerator": Kind(
        "accelerator", {"theory": (0.5, 0.5)}, 0.3, 0.2, 0.2, _accelerated,
        lambda row: row.decode if row.target.accelerator else None,
    ),
}  # fmt: skip


def fit(kind: Kind, rows: Sequence[Row]) -> tuple[dict[str, float], dict[str, float]]:
    """(unknowns, factor of every board), the most likely given the rows and the prior; robust to outliers."""
    boards, sources = sorted({row.target.name for row in rows}), sorted({row.source for row in rows})
    count, ends = len(kind.prior), (len(kind.prior), len(kind.prior) + len(boards))
    guesses = np.log([guess for guess, _ in kind.prior.values()])
    spreads = np.array([spread for _, spread in kind.prior.values()])
    observed = np.log([kind.observed(row) for row in rows])  # type: ignore[arg-type]

    def residuals(x: np.ndarray) -> np.ndarray:
        unknowns = dict(zip(kind.prior, np.exp(x[:count]), strict=True))
        of_board = dict(zip(boards, x[ends[0] : ends[1]], strict=True))
        of_source = dict(zip(sources, x[ends[1] :], strict=True))
        rates = [kind.rate(unknowns, float(np.exp(of_board[row.target.name])), row) for row in rows]
        off = np.log(rates) + [of_source[row.source] for row in rows] - observed
        own = [(x[:count] - guesses) / spreads, x[ends[0] : ends[1]] / kind.board, x[ends[1] :] / kind.source]
        return np.concatenate([off / kind.row, *own])

    start = np.concatenate([guesses, np.zeros(len(boards) + len(sources))])
    x = least_squares(residuals, start, loss="soft_l1").x
    unknowns = {name: float(value) for name, value in zip(kind.prior, np.exp(x[:count]), strict=True)}
    return unknowns, dict(zip(boards, np.exp(x[ends[0] : ends[1]]).tolist(), strict=True))


@dataclass(frozen=True)
class Left:
    """A row that a fit has not seen: `log` is the logarithm of observed over predicted; `known`: other rows of the
    board were seen."""

    row: Row
    log: float
    known: bool
    group: str

    @property
    def error(self) -> float:
        """|predicted / observed - 1|."""
        return abs(float(np.exp(-self.log)) - 1)


def leave_out(kind: Kind, rows: Sequence[Row], group_of: Callable[[Row], str]) -> list[Left]:
    """Every row predicted by a fit to the rows of all other groups."""
    found = []
    for group in sorted({group_of(row) for row in rows}):
        unknowns, factors = fit(kind, [row for row in rows if group_of(row) != group])
        for row in rows:
            if group_of(row) == group:
                name = row.target.name
                observed = kind.observed(row)
                assert observed
                predicted = kind.rate(unknowns, factors.get(name, 1.0), row)
                found.append(Left(row, float(np.log(observed / predicted)), name in factors, group))
    return found


def interval(left: Sequence[Left]) -> tuple[float, float]:
    """Factors on a prediction between which COVERED of what was observed lies; every group counts the same."""
    sizes = {group: sum(each.group == group for each in left) for group in {each.group for each in left}}
    logs = np.array([each.log for each in left])
    weights = np.array([1 / sizes[each.group] for each in left])
    order = np.argsort(logs)
    places = (np.cumsum(weights[order]) - weights[order] / 2) / weights.sum()
    low, high = np.interp([(1 - COVERED) / 2, (1 + COVERED) / 2], places, logs[order])
    return float(np.exp(min(low, 0))), float(np.exp(max(high, 0)))


def coverage(left: Sequence[Left], pools: dict[str, list[Left]]) -> float | None:
    """Share of rows inside the interval that `predict` would state, made without the row's own source and board."""
    inside = []
    for each in left:
        pool = pools.get("decode-known" if each.known else "decode-new") or next(iter(pools.values()))
        low, high = interval([other for other in pool if other.group not in (each.group, each.row.target.name)])
        inside.append(low <= np.exp(each.log) <= high)
    return round(float(np.mean(inside)), 3) if inside else None


CLASSES: dict[str, Callable[[Row], bool]] = {
    "Arm CPUs with dotprod": lambda row: "dotprod" in row.target.isa,
    "Arm CPUs without": lambda row: "neon" in row.target.isa and "dotprod" not in row.target.isa,
    "x86 CPUs": lambda row: "avx2" in row.target.isa,
    "all CPUs": lambda row: not row.target.accelerator,
    "accelerators": lambda row: row.target.accelerator is not None,
}
WAYS: dict[str, Callable[[Row], str]] = {
    "source": lambda row: row.source, "author": lambda row: row.author, "board": lambda row: row.target.name,
}  # fmt: skip


def summarise(left: Sequence[Left]) -> dict[str, Any]:
    errors = np.array([each.error for each in left])
    return {
        "rows": len(left), "boards": len({each.row.target.name for each in left}),
        "sources": len({each.row.source for each in left}), "median": round(float(np.median(errors)), 4),
        "p80": round(float(np.quantile(errors, 0.8)), 4), "worst": round(float(errors.max()), 4),
    }  # fmt: skip


def memory_fit() -> dict[str, dict[str, float]]:
    """Resident MiB as a base and a multiple of the file, from data/memory.csv, and how far off rows are."""
    with (DATA / "memory.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = np.array([[float(row["file_mib"]), float(row["peak_mib"])] for row in rows if row["kind"] == kind])
        design = np.stack([np.ones(len(own)), own[:, 0]], axis=1) / own[:, 1:]  # relative errors count
        base, of_file = np.linalg.lstsq(design, np.ones(len(own)), rcond=None)[0]
        off = own[:, 1] / (base + of_file * own[:, 0])
        low, high = min(0.9, float(off.min())), max(1.1, float(off.max()))
        if kind == "gguf-mapped":  # of a large model nearly all is repacked, and kept twice
            high = max(high, 2 / of_file)
        found[kind] = {
            "base_mib": round(float(base), 1), "of_file": round(float(of_file), 3),
            "low": round(low, 3), "high": round(float(high), 3),
        }  # fmt: skip
    return found


def show(results: dict[str, dict[str, list[Left]]]) -> dict[str, Any]:
    """The table for people; returns the same for the JSON line."""
    table = Table(title="|predicted / observed - 1| of rows that the fit had not seen")
    for column in ("what", "boards", "left out", "rows", "boards", "sources", "median", "80 %", "worst", "inside 80 %"):
        table.add_column(column, justify="left" if column in ("what", "left out") else "right")
    found: dict[str, Any] = {}
    for kind, ways in results.items():
        for name, belongs in CLASSES.items():
            for way, left in ways.items():
                own = [each for each in left if belongs(each.row)]
                if not own:
                    continue
                figures = summarise(own) | {"inside": coverage(own, _groups(kind, ways))}
                found.setdefault(kind, {}).setdefault(name, {})[way] = figures
                inside = "" if figures["inside"] is None else f"{figures['inside']:.0%}"
                table.add_row(
                    kind, name, way, str(figures["rows"]), str(figures["boards"]), str(figures["sources"]),
                    *(f"{figures[key]:.1%}" for key in ("median", "p80", "worst")), inside,
                )  # fmt: skip
    console.print(table)
    return found


def show_boards(ways: dict[str, list[Left]]) -> dict[str, Any]:
    """Decode by board: its other sources seen, and nothing of it seen."""
    table = Table(title="decode by board: median of |predicted / observed - 1|")
    for column in ("board", "rows", "sources", "a source left out", "the board left out"):
        table.add_column(column, justify="left" if column == "board" else "right")
    found: dict[str, Any] = {}
    for name in sorted({each.row.target.name for each in ways["source"]}):
        own = {way: [each for each in left if each.row.target.name == name] for way, left in ways.items()}
        found[name] = {way: summarise(left) for way, left in own.items() if way != "author"}
        figures = found[name]
        table.add_row(
            name, str(figures["source"]["rows"]), str(figures["source"]["sources"]),
            f"{figures['source']['median']:.0%}" if own["source"][0].known else "", f"{figures['board']['median']:.0%}",
        )  # fmt: skip
    console.print(table)
    return found


def show_rows(left: Sequence[Left]) -> None:
    table = Table(title="decode, every row with its source left out")
    for column in ("board", "model", "quantisation", "engine", "observed", "predicted", "error", "source"):
        table.add_column(column, justify="right" if column in ("observed", "predicted", "error") else "left")
    for each in sorted(left, key=lambda each: (each.row.target.name, each.row.model)):
        row, predicted = each.row, each.row.decode * float(np.exp(-each.log))
        table.add_row(
            row.target.name, row.model, row.quantisation, row.engine[:12], f"{row.decode:.2f}", f"{predicted:.2f}",
            f"{np.exp(-each.log) - 1:+.0%}", row.author,
        )  # fmt: skip
    console.print(table)


def _groups(name: str, ways: dict[str, list[Left]]) -> dict[str, list[Left]]:
    """Which rows make which interval. `decode-known`: of boards of which another source was seen; of prefill and
    accelerators there are too few for that."""
    if name != "decode":
        return {name: ways["board" if name == "accelerator" else "source"]}
    return {"decode-known": [each for each in ways["source"] if each.known], "decode-new": ways["board"]}


def coefficients(rows: Sequence[Row], results: dict[str, dict[str, list[Left]]], data: Path) -> dict[str, Any]:
    """What saap-edge ships: unknowns, boards' factors, intervals, and on what they rest."""
    document: dict[str, Any] = {"boards": {}, "intervals": {}, "evidence": {"inside": {}}}
    for name, kind in KINDS.items():
        own = [row for row in rows if kind.observed(row)]
        unknowns, factors = fit(kind, own)
        document[name] = {key: float(f"{value:.4g}") for key, value in unknowns.items()}
        for board, factor in factors.items():
            what = "prefill" if name == "prefill" else "decode"
            if board in list_targets():
                sources = len({row.source for row in own if row.target.name == board})
                document["boards"].setdefault(board, {})[what] = {"factor": float(f"{factor:.4g}"), "sources": sources}
        for group, left in _groups(name, results[name]).items():
            document["intervals"][group] = [float(f"{edge:.3f}") for edge in interval(left)]
            document["evidence"]["inside"][group] = coverage(left, {group: left})
    document["memory"] = memory_fit()
    document["evidence"] |= {
        "rows": len(rows), "sources": len({row.source for row in rows}),
        "smallest_bytes": round(min(row.bytes for row in rows)),
        "data_sha256": hashlib.sha256(data.read_bytes()).hexdigest(),
    }  # fmt: skip
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", type=Path, nargs="?", default=DATA / "measurements.csv")
    parser.add_argument("boards", type=Path, nargs="*", default=[DATA / "boards"], help="folders of further targets")
    parser.add_argument("--rows", action="store_true", help="show every row's error")
    parser.add_argument("--write", type=Path, help="save the coefficients that saap-edge ships")
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()

    rows, dropped = read_rows(args.measurements, read_boards(args.boards))
    for rule, count in dropped.items():
        console.print(f"dropped {count:3}  {rule}: {RULES[rule]}", soft_wrap=True)
    results: dict[str, dict[str, list[Left]]] = {}
    with console.status("fitting"):
        for name, kind in KINDS.items():
            own = [row for row in rows if kind.observed(row)]
            results[name] = {way: leave_out(kind, own, group_of) for way, group_of in WAYS.items()}
        fitted = coefficients(rows, results, args.measurements)
    if args.rows:
        show_rows(results["decode"]["source"])
    boards, found = show_boards(results["decode"]), show(results)
    if args.write:
        args.write.write_text(json.dumps(fitted, indent=1) + "\n", encoding="utf-8")
    result = {
        "benchmark": "prediction",
        "rows": len(rows),
        "dropped": dict(dropped),
        "errors": found,
        "boards": boards,
        "fit": fitted,
    }
    publish(result, args.out)


if __name__ == "__main__":
    main()
