"""Search: try many plans and judge each by the whole model's answers.

A plan is assembled from the bank of repaired sublayers. It is judged by KL(dense || assembled), the divergence of
next-token distributions, on calibration text that the bank was not built on. The search starts from the plans of the
one-pass orders, the uniform plan and a ranking corrected by measurement, and makes small moves that keep the budget
(after SlimGPT, arXiv 2412.18110, and Tyr-the-Pruner, arXiv 2503.09657).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from saap_edge.pruning.assembly import Assembly
from saap_edge.pruning.bank import offered
from saap_edge.pruning.kept import one_step, tighten
from saap_edge.pruning.orders import Values
from saap_edge.pruning.settings import PROBES
from saap_edge.pruning.space import Space, Widths

__all__ = ["PROBES", "Member", "evolve", "measured_values", "on_bank", "probe_count"]

POPULATION = 8  # plans kept from one round to the next


def measured_values(
    divergence: Callable[[Widths], float],
    space: Space,
    values: Values,
    progress: Callable[[], None] = lambda: None,
    shares: tuple[float, ...] = PROBES,
) -> Values:
    """Correct `values`, which predict losses, by measured ones; returns the corrected values.

    Every sublayer alone is narrowed to these shares of its width, and the `divergence` of that plan is measured. The
    ratio of measured to predicted loss multiplies the values; between the widths its logarithm is interpolated.
    `progress` is called after each measurement.
    """
    dense = space.dense()
    corrected = [dict(layer) for layer in values]
    for layer, kind in space.sublayers():
        predicted = np.sort(values[layer][kind]) * space.structure_cost(layer, kind)
        full = dense[layer][kind]
        points = []
        for width in _probed(space, layer, kind, shares):
            measured = divergence([*dense[:layer], dense[layer] | {kind: width}, *dense[layer + 1 :]])
            gone = full - width
            ratio = max(measured, 1e-9) / max(float(predicted[:gone].sum()), 1e-12)
            points.append((gone, float(np.log(ratio))))
            progress()
        if points:
            counts, logs = zip(*sorted(points), strict=True)
            rank = np.argsort(np.argsort(values[layer][kind], kind="stable"), kind="stable")
            corrected[layer][kind] = values[layer][kind] * np.exp(np.interp(rank + 1, counts, logs))
    return corrected


def probe_count(space: Space, shares: tuple[float, ...] = PROBES) -> int:
    """Number of plans that `measured_values` tries."""
    return sum(len(_probed(space, layer, kind, shares)) for layer, kind in space.sublayers())


def _probed(space: Space, layer: int, kind: str, shares: tuple[float, ...]) -> list[int]:
    dense = space.dense()[layer]
    stored = banked_options(space, layer, kind)
    inside = [width for width in stored if 0 < width < dense[kind] and space.fits(layer, dense | {kind: width})]
    return (
        sorted({min(inside, key=lambda width: abs(width - share * dense[kind])) for share in shares}) if inside else []
    )


@cache
def banked_options(space: Space, layer: int, kind: str) -> list[int]:
    """Widths of a kind that the bank stores, ascending; for the dense width it stores nothing."""
    sublayer = "ffn" if kind == "ffn" else "attention"
    position = 1 if kind == "slots" else 0
    return sorted({width[position] for width in offered(space, layer, sublayer)})


@dataclass(frozen=True)
class Member:
    """A plan that was tried, and its divergence in nats per token, on all windows and on the first panel."""

    divergence: float
    widths: Widths
    glance: float


def evolve(
    assembly: Assembly,
    starts: list[Widths],
    ratio: float,
    evaluations: int,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> list[Member]:
    """The best plans found, at most POPULATION, the best first.

    Starts are brought to widths that the bank holds. `evaluations` counts plans that are tried; one that is worse than
    all of the best on the first panel is not run on the second. A plan saves at least `ratio` of the dense cost.
    """
    rng, space = np.random.default_rng(seed), assembly.space
    members: list[Member] = []
    seen: set[str] = set()
    for widths in (on_bank(space, start, ratio) for start in starts):
        if str(widths) not in seen:
            seen.add(str(widths))
            glance = assembly.glance(widths)
            members.append(Member(assembly.rest(widths, glance), widths, glance))
            progress()
    for _ in range(evaluations - len(members)):
        members = sorted(members, key=lambda member: member.divergence)[:POPULATION]
        parent = members[min(int(rng.exponential(1.5)), len(members) - 1)]
        child = _mutate(space, parent.widths, ratio, rng)
        progress()
        if str(child) in seen:
            continue
        seen.add(str(child))
        glance = assembly.glance(child)
        if glance <= max(member.glance for member in members):
            members.append(Member(assembly.rest(child, glance), child, glance))
    return sorted(members, key=lambda member: member.divergence)[:POPULATION]


def on_bank(space: Space, widths: Widths, ratio: float) -> Widths:
    """The same plan at the nearest widths that the bank stores, then narrowed or widened to the budget."""
    moved = [
        layer
        | {kind: min(banked_options(space, index, kind), key=lambda width: abs(width - layer[kind])) for kind in layer}
        for index, layer in enumerate(widths)
    ]
    for index, layer in enumerate(moved):
        if not space.fits(index, layer):
            moved[index] = dict(widths[index]) | {"ffn": layer["ffn"]}
    return _to_budget(space, moved, ratio, np.random.default_rng(0)) or moved


def _to_budget(space: Space, widths: Widths, ratio: float, rng: np.random.Generator) -> Widths | None:
    """Take random steps until the plan saves `ratio` and no step wider would; None when there is no step left."""
    widths, options = list(widths), partial(banked_options, space)
    for _ in range(200):
        if space.met(widths, ratio):
            break
        steps = one_step(space, widths, -1, options)
        if not steps:
            return None
        layer, after = steps[rng.integers(len(steps))]
        widths[layer] = after
    for _ in range(200):
        # Widen wherever the budget still holds.
        slack = [
            (layer, after)
            for layer, after in one_step(space, widths, 1, options)
            if space.met([*widths[:layer], after, *widths[layer + 1 :]], ratio)
        ]
        if not slack:
            return tighten(space, widths, ratio, options)
        layer, after = slack[rng.integers(len(slack))]
        widths[layer] = after
    return widths


def _mutate(space: Space, widths: Widths, ratio: float, rng: np.random.Generator) -> Widths:
    """Make one or two sublayers a step narrower, and others wider in exchange."""
    child = list(widths)
    for _ in range(1 + int(rng.random() < 0.3)):
        steps = one_step(space, child, -1, partial(banked_options, space))
        if steps:
            layer, after = steps[rng.integers(len(steps))]
            child[layer] = after
    return _to_budget(space, child, ratio, rng) or widths
