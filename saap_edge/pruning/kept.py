"""From values to widths, over all layers at once, on the grid the runtimes are quick on.

Three ways: take structures in the order of their values until the budget is met (`ranked_widths`), give every layer
the same widths (`uniform_widths`), or search the assignment of widths by the whole model's answers (evolve.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from saap_edge.errors import SaapError
from saap_edge.pruning.orders import Values, order_of
from saap_edge.pruning.score import KINDS
from saap_edge.pruning.space import Space, Widths
from saap_edge.pruning.surgery import Kept

__all__ = [
    "TOLERANCE", "kept_structures", "method_widths", "one_step", "ranked_widths", "tighten", "uniform_widths",
]  # fmt: skip

TOLERANCE = 0.01  # of the dense cost: plans within it count as the same budget


@dataclass(frozen=True)
class _Unit:
    """Structures of one sublayer that leave together; a sublayer's units leave in order of `step`."""

    layer: int
    kind: str
    step: int
    width: int  # what stays of the kind
    score: float


def method_widths(method: str, values: Values, space: Space, ratio: float) -> Widths:
    """Widths by a method of ORDERS that save at least `ratio` of the dense cost. Raises SaapError as `Space.check`."""
    if space.uniform_only and not order_of(method).uniform:
        raise SaapError(f"method '{method}' makes layers of different widths: {space.uniform_only}; use 'uniform'")
    return uniform_widths(space, ratio) if order_of(method).uniform else ranked_widths(values, space, ratio)


def kept_structures(values: Values, widths: Widths) -> Kept:
    """Indices that stay, `[layer][kind]` int64, ascending: the best-valued of every sublayer, as many as its width."""
    return [
        {kind: np.sort(np.argsort(-layer[kind], kind="stable")[: width[kind]]) for kind in KINDS}
        for layer, width in zip(values, widths, strict=True)
    ]


def ranked_widths(values: Values, space: Space, ratio: float) -> Widths:
    """Widths after the lowest-valued units are gone, over all layers, until `ratio` of the dense cost is saved."""
    space.check(ratio)
    units = [unit for layer, kind in space.sublayers() for unit in _units(space, layer, kind, values[layer][kind])]
    units.sort(key=lambda unit: (unit.score, unit.layer, unit.kind, unit.step))
    widths, taken = space.widest(), []
    waiting = units
    while waiting and not space.met(widths, ratio):
        late = []
        for unit in waiting:
            if space.met(widths, ratio):
                break
            after = widths[unit.layer] | {unit.kind: unit.width}
            # With query slots, a width may be off the grid until its partner has moved: such a unit waits.
            if space.fits(unit.layer, after):
                widths[unit.layer] = after
                taken.append(unit)
            else:
                late.append(unit)
        if len(late) == len(waiting):
            break
        waiting = late
    if not space.met(widths, ratio):
        raise SaapError(f"ratio {ratio:g} cannot be reached: at most {space.removed(widths):.3f} in this order")
    return _give_back(widths, taken, space, ratio)


def _units(space: Space, layer: int, kind: str, values: np.ndarray) -> Iterator[_Unit]:
    """The sublayer's units, worst first, with scores that never fall, so that sorting never skips a step."""
    options = space.options(layer, kind)[::-1]
    worst_first, reached = np.sort(values), -np.inf
    for step, (wide, narrow) in enumerate(pairwise(options)):
        gone = len(values) - np.array([wide, narrow])
        reached = max(reached, float(worst_first[gone[0] : gone[1]].mean()))
        yield _Unit(layer, kind, step, narrow, reached)


def _give_back(widths: Widths, taken: list[_Unit], space: Space, ratio: float) -> Widths:
    """Put back, dearest first, what the budget does not need: the last unit may have been larger than what lacked."""
    for unit in reversed(taken):
        options = space.options(unit.layer, unit.kind)
        if widths[unit.layer][unit.kind] != unit.width:
            continue
        wider = widths[unit.layer] | {unit.kind: options[options.index(unit.width) + 1]}
        trial = [*widths[: unit.layer], wider, *widths[unit.layer + 1 :]]
        if space.fits(unit.layer, wider) and space.met(trial, ratio):
            widths = trial
    return tighten(space, widths, ratio, space.options)


def tighten(space: Space, widths: Widths, ratio: float, options: Callable[[int, str], list[int]]) -> Widths:
    """Bring a plan that saves more than TOLERANCE too much nearer to the budget: one sublayer a step wider, another
    narrower, as long as that helps. Only coarse grids on small models need it."""
    while space.removed(widths) - ratio > TOLERANCE:
        trials = [_with(widths, *wider) for wider in one_step(space, widths, 1, options)]
        trials += [_with(trial, *less) for trial in trials for less in one_step(space, trial, -1, options)]
        nearest = min((trial for trial in trials if space.met(trial, ratio)), key=space.removed, default=widths)
        if space.removed(nearest) >= space.removed(widths) - 1e-9:
            return widths
        widths = nearest
    return widths


def _with(widths: Widths, layer: int, after: dict[str, int]) -> Widths:
    return [*widths[:layer], after, *widths[layer + 1 :]]


def one_step(
    space: Space, widths: Widths, direction: int, options: Callable[[int, str], list[int]]
) -> list[tuple[int, dict[str, int]]]:
    """All ways to narrow (-1) or widen (+1) one sublayer by one step of `options`: (layer, its new widths)."""
    found = []
    for layer, kind in space.sublayers():
        choices = options(layer, kind)
        at = choices.index(widths[layer][kind]) + direction
        if 0 <= at < len(choices):
            after = widths[layer] | {kind: choices[at]}
            if space.fits(layer, after):
                found.append((layer, after))
    return found


def uniform_widths(space: Space, ratio: float) -> Widths:
    """The uniform plan: the widths, alike in all layers, that save enough and cut attention and FFN most alike.

    Where the grid is so coarse that every uniform plan misses the budget by more than TOLERANCE, some layers keep one
    step more than others, spread evenly: as uniform as an equal budget allows (never when only uniform plans may be).
    """
    space.check(ratio)
    enough, short = _uniform_candidates(space, ratio)
    if enough is None:
        raise SaapError(f"no uniform plan saves {ratio:g} of the {space.cost.unit}: choose a lower ratio")
    if space.uniform_only or space.removed(enough) - ratio <= TOLERANCE or short is None:
        return enough
    return _between(space, short, enough, ratio)


def _uniform_candidates(space: Space, ratio: float) -> tuple[Widths | None, Widths | None]:
    """The best uniform plan that saves at least `ratio`, and the best that saves less."""
    best: dict[bool, tuple[float, Widths]] = {}
    dense = space.dense()
    for kv in space.options(_free(space), "attention"):
        for ffn in space.options(_free(space), "ffn"):
            if not kv or not ffn:
                continue
            widths = [_limited(space, index, kv, ffn) for index in range(len(dense))]
            if not all(space.fits(index, layer) for index, layer in enumerate(widths)):
                continue
            over = space.removed(widths) - ratio
            first = dense[_free(space)]
            skew = abs(kv / first["attention"] - (1 - ratio)) + abs(ffn / first["ffn"] - (1 - ratio))
            badness = abs(over) + 0.25 * skew
            enough = space.met(widths, ratio)
            if enough not in best or badness < best[enough][0]:
                best[enough] = (badness, widths)
    return (best[True][1] if True in best else None), (best[False][1] if False in best else None)


def _free(space: Space) -> int:
    """The first layer that is not protected."""
    return next((layer for layer, kind in space.sublayers() if kind == "ffn"), 0)


def _limited(space: Space, index: int, kv: int, ffn: int) -> dict[str, int]:
    """These widths where the layer offers them, its dense ones where it is protected."""
    dense = space.widest()[index]
    allowed = (space.options(index, "attention"), space.options(index, "ffn"))
    return dense | {
        "attention": kv if kv in allowed[0] else dense["attention"],
        "ffn": ffn if ffn in allowed[1] else dense["ffn"],
    }


def _between(space: Space, short: Widths, enough: Widths, ratio: float) -> Widths:
    """Start from `short` and narrow FFNs, then attention, one step at a time in turn until the budget is met."""
    widths = [dict(layer) for layer in short]
    order = sorted(range(len(widths)), key=lambda i: (i * 0.618034) % 1)  # evenly spread at every count
    for kind in ("ffn", "attention", "ffn", "attention", "ffn"):
        for layer in order:
            if space.met(widths, ratio):
                return tighten(space, widths, ratio, space.options)
            options = space.options(layer, kind)
            at = options.index(widths[layer][kind])
            if at > 0 and options[at - 1] > 0:
                widths[layer][kind] = options[at - 1]
    return widths if space.met(widths, ratio) else enough
