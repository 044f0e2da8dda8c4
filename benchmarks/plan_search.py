"""What a plan's search is worth: seconds of each step, the divergence it reaches, and held-out perplexity after repair.

    saap-edge score --model MODEL --out RUN          and   saap-edge bank RUN/stages/score-…
    OMP_NUM_THREADS=1 python benchmarks/plan_search.py RUN/stages/bank-… --ratio 0.2 --out RESULT.json

Plans: rankings without a search; the ranking of kfac corrected by the measured divergence of every sublayer alone, at
one share of its width or three, on two windows of the search's text or on all; and the best of small moves from there.
All are repaired and judged side by side, and once more in float32 where they were judged in bfloat16. With `--samples`
the first plan is also repaired on other amounts of text. Seconds are CPU seconds: other work on the machine does not
count. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from result import publish, save

from saap_edge.api import recipe_of
from saap_edge.cache import ancestors, read_stage
from saap_edge.chain.amounts import SEARCH_WINDOWS
from saap_edge.chain.context import open_context
from saap_edge.chain.space import space_of
from saap_edge.chain.stages.score import dense_model
from saap_edge.chain.texts import HELDOUT_WINDOWS, windows
from saap_edge.model.arithmetic import uses_bfloat16
from saap_edge.progress import Progress
from saap_edge.pruning.assembly import Assembly
from saap_edge.pruning.bank import Bank
from saap_edge.pruning.kept import kept_structures, ranked_widths
from saap_edge.pruning.planner import STARTS, Planner
from saap_edge.pruning.repair import Variant, judge_variants
from saap_edge.pruning.score import load_scores
from saap_edge.pruning.search import PROBES, evolve, measured_values, on_bank
from saap_edge.pruning.space import Widths

MOVES = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path, help="folder of the bank stage")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--samples", type=int, nargs="*", default=[], help="windows of other repairs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record = read_stage(arguments.bank)
    recipe = recipe_of(record["recipe"], ratio=arguments.ratio)
    context = open_context(recipe, None, Progress().bar)
    texts, samples = windows(context, "calibration"), recipe.score.samples
    planner = Planner(
        model=dense_model(context), scores=load_scores(ancestors(arguments.bank)["score"]), bank=Bank(arguments.bank),
        space=space_of(context.spec, recipe, context.target), calibration=texts[:samples],
        search=texts[samples : samples + SEARCH_WINDOWS], heldout=windows(context, "heldout", HELDOUT_WINDOWS),
        precision=recipe.score.precision,
    )  # fmt: skip
    result: dict[str, Any] = {
        "benchmark": "plan_search", "model": context.model_name, "ratio": arguments.ratio,
        "bfloat16": uses_bfloat16(recipe.score.precision), "threads": torch.get_num_threads(),
        "calibration_windows": samples, "search_windows": SEARCH_WINDOWS, "heldout_windows": HELDOUT_WINDOWS,
        "window": recipe.score.window, "plans": {},
    }  # fmt: skip
    rows, plans = result["plans"], made(planner, arguments.ratio, result["plans"])
    save(result, arguments.out)
    judge(planner, plans, rows, planner.precision, "perplexity")
    save(result, arguments.out)
    if result["bfloat16"]:
        first = {name: plans[name] for name in ("kfac", "uniform")}
        judge(planner, first, rows, "float32", "perplexity_float32")
    result["repaired_on"] = {}
    for count in arguments.samples:
        with clock() as seconds:
            values = planner.values("kfac")
            variant = Variant(kept_structures(values, plans["kfac"]))
            found = judge_variants(
                planner.model, [variant], texts[:count], planner.heldout, precision=planner.precision
            )
        result["repaired_on"][count] = {"perplexity": round(found[1].value, 3), "seconds": round(seconds[0])}
        save(result, arguments.out)
    publish(result, arguments.out)


@contextmanager
def clock() -> Iterator[list[float]]:
    """CPU seconds of what happens inside."""
    started, found = time.process_time(), [0.0]
    yield found
    found[0] = time.process_time() - started


def made(planner: Planner, ratio: float, rows: dict[str, Any]) -> dict[str, Widths]:
    """Plans by name; their rows get seconds and divergences."""
    space, values = planner.space, planner.values("kfac")
    plans = {name: planner.widths(name, ratio)[0] for name in STARTS}
    with Assembly(planner.model, planner.bank, space, planner.search, planner.precision) as assembly:
        for name, shares, divergence in (
            ("one share, two windows", (1 - ratio,), assembly.glance),
            ("one share", (1 - ratio,), assembly.divergence),
            ("three shares", PROBES, assembly.divergence),
        ):
            with clock() as seconds:
                plans[name] = ranked_widths(measured_values(divergence, space, values, shares=shares), space, ratio)
            rows[name] = {"seconds": round(seconds[0])}
        with clock() as seconds:
            starts = [plans["three shares"], *(plans[name] for name in STARTS)]
            best = evolve(assembly, starts, ratio, MOVES, planner.seed)[0]
        name = f"three shares, {MOVES} plans tried"
        plans[name] = best.widths
        rows[name] = {"seconds": rows["three shares"]["seconds"] + round(seconds[0])}
        for name, widths in plans.items():
            divergence = assembly.divergence(on_bank(space, widths, ratio))
            rows[name] = rows.get(name, {"seconds": 0}) | {"divergence": round(divergence, 4)}
    return plans


def judge(planner: Planner, plans: dict[str, Widths], rows: dict[str, Any], precision: Any, column: str) -> None:
    """Held-out perplexity of these plans after repair, and of the dense model."""
    orders = {name: name if name in STARTS and name != "uniform" else "kfac" for name in plans}
    variants = [Variant(kept_structures(planner.values(orders[name]), widths)) for name, widths in plans.items()]
    with clock() as seconds:
        found = judge_variants(planner.model, variants, planner.calibration, planner.heldout, precision=precision)
    for name, one in zip(("dense", *plans), found, strict=True):
        rows[name] = rows.get(name, {}) | {column: round(one.value, 3)}
    rows["dense"][f"seconds_{column}"] = round(seconds[0])


if __name__ == "__main__":
    main()
