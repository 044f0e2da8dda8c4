"""How much of the front a search finds: the bundled model, Optuna's samplers against the whole grid and against lots.

    python benchmarks/search.py --work WORK --out benchmarks/results/search.json --page docs/search.md

First every point of the grid is made once, as `saap-edge frontier --over` makes a trial (WORK keeps the stages and the
figures: a second call goes on). Its objectives are the same each time: nats a token of held-out text in the file's own
runtime, and the file's size. Then searches run over these figures, by the study that `--over` uses, for every sampler
and seed, and after 10, 20 and 30 models it is seen what they have:

- `share`: the hypervolume of their front as a share of the grid's front, the worst of the grid in both as reference.
- `front`: how many of the points on the grid's front they found; two recipes that make the same file are one.
- `missed`: of the search for the best model under a size (`fit --over`), by how many percent its perplexity is above
  the best there is; `found`: how often it is the best itself.

`lots` draws points by lot, none twice. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from result import fill, publish

from saap_edge.api.recipes import recipe_of
from saap_edge.machine.facts import cpu_name, versions
from saap_edge.progress import Progress
from saap_edge.searching.axes import parsed
from saap_edge.searching.frontier import Maker
from saap_edge.searching.opening import Opened, open_search
from saap_edge.searching.run import run_search
from saap_edge.searching.samplers import STARTS, sampler
from saap_edge.searching.space import Point, Space, key_of
from saap_edge.searching.study import SharedStudy, Tried

OVER = [
    "ratio=0,0.1,0.2,0.3,0.4,0.5",
    "format=gguf-q8_0,gguf-q4_0,onnx-int4",
    "effort=quick,normal",
    "group=32,128",
]
AFTER = (10, 20, 30)
# Little calibration, so that the whole grid takes minutes on two cores.
LITTLE = {
    "score": {"samples": 16, "batches": 4, "window": 128}, "prune": {"samples": 32}, "bench": {"threads": 1}
}  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the grid's stages and figures")
    parser.add_argument("--over", nargs="+", default=OVER, help="axes with their values")
    parser.add_argument("--tokens", type=int, default=0, help="of recovery")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--size", type=float, default=2.6, help="MiB that the best model may have")
    parser.add_argument("--page", type=Path, help="page whose table is filled")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(LITTLE, tokens=arguments.tokens)
    opened = open_search(recipe, parsed(arguments.over), (), Progress())
    grid = whole_grid(opened, arguments.work)
    result: dict[str, Any] = {
        "benchmark": "search", "cpu": cpu_name(), "cores": os.cpu_count(), "versions": versions() | optuna_version(),
        "over": arguments.over, "tokens": arguments.tokens, "points": len(grid), "seeds": arguments.seeds,
        "starts": STARTS, "grid": list(grid.values()), "front": [row["point"] for row in front(list(grid.values()))],
    }  # fmt: skip
    samplers = {"ours": sampler, "tpe": tpe, "nsga2": nsga2, "lots": lots}
    result["frontier"] = {name: fronts(opened.space, grid, make, arguments.seeds) for name, make in samplers.items()}
    result["fit"] = {"size_mib": arguments.size} | {
        name: fits(opened.space, grid, make, arguments.seeds, arguments.size) for name, make in samplers.items()
    }
    if arguments.page:
        fill(arguments.page, "search", tables(result))
    publish(result, arguments.out)


def tables(result: dict[str, Any]) -> list[str]:
    """The figures as a page has them: median over the seeds, least and most in brackets."""
    titles = {"ours": "`--over` (GPSampler)", "tpe": "TPESampler", "nsga2": "NSGAIISampler", "lots": "by lot"}
    size, best = result["fit"]["size_mib"], result["seeds"]
    lines = [
        "| chosen by | models made | share of the front's area | points of the front found | best model of at most "
        f"{size} MiB: perplexity above it, % | found, of {best} searches |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in titles.items():
        for after, row in result["frontier"][name].items():
            fit = result["fit"][name][after]
            share = {each: 100 * value for each, value in row["share"].items()}
            cells = [
                title, after.removeprefix("after "), f"{span(share, 1)} %", f"{span(row['front'], 1)} of {row['of']}",
                span(fit["missed"], 2), str(fit["found"]),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def span(values: dict[str, float], digits: int) -> str:
    """A median, with the least and the most.

    >>> span({"median": 99.5, "least": 90.123, "most": 100.0}, 1)
    '99.5 [90.1, 100]'
    """
    if not values:
        return "-"
    median, least, most = (f"{round(values[name], digits):g}" for name in ("median", "least", "most"))
    return f"{median} [{least}, {most}]"


def optuna_version() -> dict[str, str]:
    import optuna

    return {"optuna": str(optuna.__version__)}


def whole_grid(opened: Opened, work: Path) -> dict[str, Row]:
    """The row of every point by its key, made where it is not there yet."""
    file = work / "grid.json"
    rows: dict[str, Row] = json.loads(file.read_text()) if file.exists() else {}
    maker, points = Maker(opened.space, opened.context, opened.known, work, Progress()), opened.space.points
    for number, (key, point) in enumerate(points.items(), 1):
        if key not in rows:
            start = time.monotonic()
            row = maker.attempt(point, ["bytes"]).row
            rows[key] = {name: row[name] for name in ("point", "heldout_perplexity", "file_bytes")}
            file.write_text(json.dumps(rows))
            print(f"{number} of {len(points)}: {key} {time.monotonic() - start:.0f} s", flush=True)
    return {key: rows[key] for key in points}


def lots(seed: int) -> Any:
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def tpe(seed: int) -> Any:
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=STARTS)


def nsga2(seed: int) -> Any:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=STARTS)


def loss(row: Row) -> tuple[float, float]:
    """(nats a token, MiB): less of both is better."""
    return math.log(row["heldout_perplexity"]), row["file_bytes"] / 2**20


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other is better than in one respect and as good in the other."""
    losses = {key_of(row["point"]): loss(row) for row in rows}

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    return [row for row in rows if not any(beats(one, losses[key_of(row["point"])]) for one in losses.values())]


def volume(rows: Sequence[Row], worst: tuple[float, float]) -> float:
    """The area that a front dominates, up to the worst point."""
    area, height = 0.0, worst[1]
    for nats, size in sorted({loss(row) for row in front(rows)}):
        area += (worst[0] - nats) * (height - size)
        height = size
    return area


def searched(
    space: Space, grid: dict[str, Row], make: Callable[[int], Any], seed: int, directions: Sequence[Any],
    attempt: Callable[[Row], Tried],
) -> list[Row]:  # fmt: skip
    """The rows that one search tries, in its order."""
    tried: list[Row] = []

    def look(point: Point) -> Tried:
        row = grid[key_of(point)]
        tried.append(row)
        return attempt(row)

    with tempfile.TemporaryDirectory() as folder:
        study = SharedStudy(Path(folder) / "study.journal", {"seed": seed}, directions, space, make, 1000 * seed)
        run_search(study, space, max(AFTER), look, Progress())
    return tried


def fronts(space: Space, grid: dict[str, Row], make: Callable[[int], Any], seeds: int) -> dict[str, Any]:
    everything = list(grid.values())
    worst = max(loss(row)[0] for row in everything), max(loss(row)[1] for row in everything)
    best, whole = {loss(row) for row in front(everything)}, volume(everything, worst)
    shares: dict[int, list[float]] = {number: [] for number in AFTER}
    found: dict[int, list[int]] = {number: [] for number in AFTER}
    for seed in range(seeds):
        rows = searched(
            space,
            grid,
            make,
            seed,
            ["minimize", "minimize"],
            lambda row: Tried([*loss(row)], {"point": row["point"]}, {}),
        )
        for number in AFTER:
            shares[number].append(round(volume(rows[:number], worst) / whole, 4))
            found[number].append(len(best & {loss(row) for row in rows[:number]}))
    return {
        f"after {number}": {
            "share": summary(shares[number]), "front": summary(found[number]), "of": len(best),
        }
        for number in AFTER
    }  # fmt: skip


def fits(space: Space, grid: dict[str, Row], make: Callable[[int], Any], seeds: int, size: float) -> dict[str, Any]:
    best = min(row["heldout_perplexity"] for row in grid.values() if loss(row)[1] <= size)
    missed: dict[int, list[float]] = {number: [] for number in AFTER}
    for seed in range(seeds):
        rows = searched(
            space, grid, make, seed, ["minimize"],
            lambda row: Tried([loss(row)[0]], {"point": row["point"]}, {"file_mib": (loss(row)[1] - size) / size}),
        )  # fmt: skip
        for number in AFTER:
            kept = [row["heldout_perplexity"] for row in rows[:number] if loss(row)[1] <= size]
            missed[number].append(round(100 * (min(kept) / best - 1), 3) if kept else math.inf)
    return {
        f"after {number}": {
            "missed": summary([value for value in missed[number] if value < math.inf]),
            "found": sum(value == 0 for value in missed[number]),
            "none": sum(value == math.inf for value in missed[number]),
        }
        for number in AFTER
    }  # fmt: skip


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most over the seeds."""
    return {"median": round(statistics.median(values), 4), "least": min(values), "most": max(values)} if values else {}


if __name__ == "__main__":
    main()
