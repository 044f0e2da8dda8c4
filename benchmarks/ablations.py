"""Which part of the method brings what: fusion, fluctuation, comparability across layers, repair, search, rounds.

    python benchmarks/ablations.py --model FOLDER --data TEXTS --out benchmarks/results/ablations-NAME.json

Each line changes one thing and leaves the rest. Perplexity on the test text after repair (without it where the line
says so), mean over calibration seeds; nothing is chosen on that text. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from frame import Frame, load_frame
from result import publish
from rich.console import Console
from rich.progress import track
from rich.table import Table

from saap_edge.model.perplexity import perplexity
from saap_edge.pruning.assembly import Assembly
from saap_edge.pruning.kept import kept_structures, ranked_widths
from saap_edge.pruning.orders import Values
from saap_edge.pruning.planner import Planner
from saap_edge.pruning.repair import repair, restored
from saap_edge.pruning.search import evolve, measured_values, on_bank
from saap_edge.pruning.settings import RankingSettings
from saap_edge.pruning.space import Widths
from saap_edge.pruning.surgery import cut

Made = tuple[Widths, Values]
Make = Callable[[Planner, float], Made]
Judge = Callable[[Frame, Planner, Made], float]
VIEWS = ("element", "wanda", "flap", "obs")


def by(method: str, rounds: int = 1, **ranking: Any) -> Make:
    """The plan of a method, with other ranking settings or in rounds."""

    def make(planner: Planner, ratio: float) -> Made:
        return replace(planner, ranking=RankingSettings(**ranking), rounds=rounds).widths(method, ratio)

    return make


def banked(planner: Planner, ratio: float) -> Made:
    """kfac's plan at widths that the bank holds, where repairs of every kind can be compared."""
    widths, values = planner.widths("kfac", ratio)
    return on_bank(planner.space, widths, ratio), values


def slots(planner: Planner, ratio: float) -> Made:
    return replace(planner, space=replace(planner.space, slots=True)).widths("kfac", ratio)


def corrected(planner: Planner, ratio: float) -> Made:
    """kfac's values corrected by the divergence measured at a few widths of every sublayer."""
    values = planner.values("kfac")
    with Assembly(planner.model, planner.bank, planner.space, planner.search) as assembly:
        return ranked_widths(measured_values(assembly.divergence, assembly.space, values), planner.space, ratio), values


def searched(evaluations: int, start: str | None = None) -> Make:
    def make(planner: Planner, ratio: float) -> Made:
        planner = replace(planner, effort=replace(planner.effort, evaluations=evaluations))
        if start is None:
            return planner.widths("search", ratio)  # and the best six of it judged after real repair
        with Assembly(planner.model, planner.bank, planner.space, planner.search) as assembly:
            first = planner.widths(start, ratio)[0]
            return evolve(assembly, [first], ratio, evaluations, planner.seed)[0].widths, planner.values("kfac")

    return make


def repaired(mix: float, bias: bool = False) -> Judge:
    """Perplexity after sequential repair."""

    def judge(frame: Frame, planner: Planner, made: Made) -> float:
        with restored(frame.model):
            repair(frame.model, kept_structures(made[1], made[0]), planner.calibration, mix, bias)
            return measure(frame, frame.model)

    return judge


def unrepaired(frame: Frame, planner: Planner, made: Made) -> float:
    return measure(frame, cut(frame.model, kept_structures(made[1], made[0])))


def one_shot(frame: Frame, planner: Planner, made: Made) -> float:
    """Every sublayer repaired on the dense model's activations: the bank's weights."""
    with Assembly(planner.model, planner.bank, planner.space, planner.search) as assembly:
        assembly.divergence(made[0])
        return measure(frame, frame.model)


def measure(frame: Frame, model: Any) -> float:
    return perplexity(model, next(iter(frame.tests.values()))).value


USUAL = repaired(0.6)
LINES: list[tuple[str, str, Make, Judge]] = [
    ("paper", "saap: vector and element, fused", by("saap"), USUAL),
    ("fusion", "vector alone", by("fused", views=("vector",)), USUAL),
    ("fusion", "element alone", by("fused", views=("element",)), USUAL),
    ("fusion", "logarithms", by("saap", scale="log"), USUAL),
    ("fusion", "sigma per kind", by("saap", sigma="kind"), USUAL),
    ("fusion", "sigma per layer and kind", by("saap", sigma="layer"), USUAL),
    ("fusion", "four views: element, wanda, flap, obs", by("fused", views=VIEWS), USUAL),
    ("fusion", "four views, logarithms", by("fused", views=VIEWS, scale="log"), USUAL),
    ("fluctuation", "lambda 0.5", by("saap", fluctuation=0.5), USUAL),
    ("fluctuation", "lambda 1", by("saap", fluctuation=1.0), USUAL),
    ("across layers", "standardised within kinds only", by("saap", standardise="kind"), USUAL),
    ("across layers", "not standardised", by("saap", standardise="none"), USUAL),
    ("across layers", "not standardised, per cost", by("saap", standardise="none", per_cost=True), USUAL),
    ("across layers", "element per cost (LLM-Pruner)", by("llm-pruner-element"), USUAL),
    ("across layers", "kfac: loss after repair, per cost", by("kfac"), USUAL),
    ("repair", "none", banked, unrepaired),
    ("repair", "one shot, dense activations", banked, one_shot),
    ("repair", "sequential, local target", banked, repaired(0.0)),
    ("repair", "sequential, mix 0.3", banked, repaired(0.3)),
    ("repair", "sequential, mix 0.6: the default", banked, USUAL),
    ("repair", "sequential, mix 0.8", banked, repaired(0.8)),
    ("repair", "sequential, dense target", banked, repaired(1.0)),
    ("repair", "mix 0.6 and biases", banked, repaired(0.6, bias=True)),
    ("search", "kfac corrected by measurement", corrected, USUAL),
    ("search", "from uniform, 200 plans", searched(200, "uniform"), USUAL),
    ("search", "from all, 50 plans", searched(50), USUAL),
    ("search", "from all, 200 plans", searched(200), USUAL),
    ("rounds", "kfac, 2 rounds", by("kfac", 2), USUAL),
    ("rounds", "kfac, 4 rounds", by("kfac", 4), USUAL),
    ("rounds", "element per cost, 4 rounds", by("llm-pruner-element", 4), USUAL),
    ("rounds", "saap, 4 rounds", by("saap", 4), USUAL),
    ("structures", "kfac with query slots", slots, USUAL),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of texts (train, valid, test; or one file)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.35, 0.5])
    parser.add_argument("--seeds", type=int, default=2, help="calibration seeds")
    parser.add_argument("--groups", nargs="+", help="only these groups of lines")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    frame = load_frame(args.model, args.data, None)
    lines = [line for line in LINES if not args.groups or line[0] in args.groups]
    found: dict[tuple[str, str, float], list[float]] = {}
    for seed in range(args.seeds):
        with frame.planner(seed) as planner, tempfile.TemporaryDirectory() as scratch:
            again = replace(planner, rescore=lambda p=planner, s=scratch: frame.look(p.calibration, p.space, Path(s)))
            work = [(line, ratio) for line in lines for ratio in args.ratios]
            for (group, name, make, judge), ratio in track(work, f"seed {seed}", console=Console(stderr=True)):
                found.setdefault((group, name, ratio), []).append(judge(frame, again, make(again, ratio)))
    rows = [
        {"group": group, "line": name} | {f"{ratio:g}": spread(found[group, name, ratio]) for ratio in args.ratios}
        for group, name, _, _ in lines
    ]
    text = next(iter(frame.tests))
    dense = measure(frame, frame.model)
    table = Table(
        "part", "change", *(f"{ratio:.0%}" for ratio in args.ratios), title=f"{frame.name}, dense {dense:.1f}"
    )
    for row in rows:
        table.add_row(
            row["group"], row["line"], *(f"{row[f'{r:g}'][0]} ± {row[f'{r:g}'][1] / 2:.1f}" for r in args.ratios)
        )
    Console(width=120).print(table)
    result = {
        "benchmark": "ablations",
        "model": frame.name,
        "text": text,
        "dense": round(dense, 2),
        "seeds": args.seeds,
        "rows": rows,
    }
    publish(result, args.out)


def spread(values: list[float]) -> list[float]:
    """[mean, largest minus smallest]."""
    return [round(statistics.mean(values), 2), round(max(values) - min(values), 2)]


if __name__ == "__main__":
    main()
