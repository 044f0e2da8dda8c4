"""From values to widths, over all layers at once, on the grid on which the runtimes are fast.

There are three ways: remove structures in the order of their values until the budget is met (`ranked_widths`), give
every layer the same widths (`uniform_widths`), or search for widths by the whole model's answers (search.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from saap_edge.errors import SaapError
from saap_edge.pruning.orders import Values, order_of
from saap_edge.pruning.score import KINDS
from saap_edge.pruning.space import Space, Widths
from saap_edge.pruning.surgery import Kept

__all__ = [
    "TOLERANCE", "kept_structures", "method_widths", "one_step", "ranked_widths", "tighten", "unequal",
    "uniform_widths",
]  # fmt: skip

TOLERANCE = 0.01  # of the dense cost: plans within it count as the same budget


@dataclass(frozen=True)
class _Unit:
    """Structures of one sublayer that leave together. The units of a sublayer leave in the order of `step`."""

    layer: int
    kind: str
    step: int
    width: int  # structures of the kind that stay afterwards
    score: float


def method_widths(method: str, values: Values, space: Space, ratio: float) -> Widths:
    """Widths by a method of ORDERS that save at least `ratio` of the dense cost.

    Raises SaapError as `Space.check`, and where the model needs equal layers and the method makes unequal ones.
    """
    if space.uniform_only and not order_of(method).uniform:
        raise unequal(method, space)
    return uniform_widths(space, ratio) if order_of(method).uniform else ranked_widths(values, space, ratio)


def unequal(method: str, space: Space) -> SaapError:
    """What is wrong with a method that makes unequal layers where the model needs equal ones."""
    return SaapError(f"method '{method}' makes layers of different widths: {space.uniform_only}; use 'uniform'")


def kept_structures(values: Values, widths: Widths) -> Kept:
    """Indices of the structures that stay, `[layer][kind]` int64, ascending: the highest-valued, as many as the width.

    >>> values = [{"attention": np.array([0.1, 0.9]), "slots": np.ones(2), "ffn": np.array([5.0, 1, 4])}]
    >>> kept = kept_structures(values, [{"attention": 1, "slots": 2, "ffn": 2}])
    >>> {kind: indices.tolist() for kind, indices in kept[0].items()}
    {'attention': [1], 'slots': [0, 1], 'ffn': [0, 2]}
    """
    return [
        {kind: np.sort(np.argsort(-layer[kind], kind="stable")[: width[kind]]) for kind in KINDS}
        for layer, width in zip(values, widths, strict=True)
    ]


def ranked_widths(values: Values, space: Space, ratio: float) -> Widths:
    """Widths once the lowest-valued units of all layers have left, as many as save `ratio` of the dense cost.

    Raises SaapError when this order cannot save that much.

    The channels of layer 1 are worth less, so they leave first:

    >>> from saap_edge.model.spec import LayerShape
    >>> space = Space((LayerShape(4, 2, 128),) * 2, hidden=64, head_dim=16)
    >>> values = [{"attention": np.full(2, 9.0), "slots": np.ones(2), "ffn": np.full(128, v)} for v in (2.0, 1.0)]
    >>> [layer["ffn"] for layer in ranked_widths(values, space, ratio=0.25)]
    [128, 32]
    """
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
    """The sublayer's units, lowest first. Their scores never fall, so that sorting never skips a step."""
    options = space.options(layer, kind)[::-1]
    worst_first, reached = np.sort(values), -np.inf
    for step, (wide, narrow) in enumerate(pairwise(options)):
        gone = len(values) - np.array([wide, narrow])
        reached = max(reached, float(worst_first[gone[0] : gone[1]].mean()))
        yield _Unit(layer, kind, step, narrow, reached)


def _give_back(widths: Widths, taken: list[_Unit], space: Space, ratio: float) -> Widths:
    """Put back units that the budget does not need, highest-valued first: the last may have overshot the budget."""
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
    """Bring a plan that saves over TOLERANCE more than `ratio` nearer to it, and return it.

    One sublayer becomes a step wider and perhaps another a step narrower, as long as that helps. Only coarse grids on
    small models need it. `options` gives the widths of a layer and kind, ascending.
    """
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
    """All ways to narrow (-1) or widen (+1) one sublayer by one step of `options`: (layer, its new widths).

    >>> from saap_edge.model.spec import LayerShape
    >>> space = Space((LayerShape(4, 2, 96),), hidden=64, head_dim=16)
    >>> one_step(space, space.dense(), -1, space.options)
    [(0, {'attention': 1, 'slots': 2, 'ffn': 96}), (0, {'attention': 2, 'slots': 2, 'ffn': 64})]
    """
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
    """The uniform plan: equal widths in all layers that save enough and cut attention and FFN by similar shares.

    On a coarse grid every uniform plan may miss the budget by more than TOLERANCE. Then some layers, spread evenly,
    keep one step more than others, unless `space.uniform_only` forbids it. Raises SaapError when no uniform plan saves
    `ratio`.

    >>> from saap_edge.model.spec import LayerShape
    >>> space = Space((LayerShape(8, 4, 256),) * 2, hidden=128, head_dim=16)
    >>> uniform_widths(space, ratio=0.25) == [{"attention": 3, "slots": 2, "ffn": 192}] * 2
    True
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
    free, linear, wide = _free(space), _free_linear(space), _free_ffn(space)
    first = dense[free] | {"ffn": dense[wide]["ffn"]}
    keys = [count for count in space.options(linear, "attention") if count] if linear is not None else [0]
    for kv, key, ffn in product(space.options(free, "attention"), keys, space.options(wide, "ffn")):
        if (first["attention"] and not kv) or (first["ffn"] and not ffn):
            continue
        shares_of = [layer["ffn"] // max(first["ffn"], 1) or 1 for layer in dense]  # FFNs of some layers may be wider
        widths = [_limited(space, index, kv, key, ffn * times) for index, times in enumerate(shares_of)]
        if not all(space.fits(index, layer) for index, layer in enumerate(widths)):
            continue
        over = space.removed(widths) - ratio
        chosen = ((kv, first["attention"]), (ffn, first["ffn"]))
        shares = [width / whole if whole else 1 - ratio for width, whole in chosen]
        shares += [key / dense[linear]["attention"]] if linear is not None else []
        skew = sum(abs(share - (1 - ratio)) for share in shares)
        badness = abs(over) + 0.25 * skew
        enough = space.met(widths, ratio)
        if enough not in best or badness < best[enough][0]:
            best[enough] = (badness, widths)
    return (best[True][1] if True in best else None), (best[False][1] if False in best else None)


def _free(space: Space) -> int:
    """The first layer that is not protected, one with attention if there is any."""
    free = _unprotected(space)
    return next((layer for layer in free if space.shapes[layer].attends), free[0])


def _free_ffn(space: Space) -> int:
    """The layer of `_free`; the first that is not protected and has an FFN, where that layer has none."""
    first = _free(space)
    return first if space.shapes[first].ffn else _unprotected(space)[0]


def _free_linear(space: Space) -> int | None:
    """The first layer with a DeltaNet that is not protected; None where there is none."""
    return next((layer for layer in _unprotected(space) if space.shapes[layer].linear), None)


def _unprotected(space: Space) -> list[int]:
    alone = any(shape.mamba for shape in space.shapes)  # layers with an FFN are no others with attention
    found = dict.fromkeys(layer for layer, kind in space.sublayers() if kind == "ffn" or alone)
    return list(found) or list(range(len(space.shapes)))


def _limited(space: Space, index: int, kv: int, keys: int, ffn: int) -> dict[str, int]:
    """These widths if the layer offers them; its dense ones if it is protected. `keys`: of a DeltaNet."""
    dense, kv = space.widest()[index], keys if space.shapes[index].linear else kv
    allowed = (space.options(index, "attention"), space.options(index, "ffn"))
    return dense | {
        "attention": kv if kv in allowed[0] else dense["attention"],
        "ffn": ffn if ffn in allowed[1] else dense["ffn"],
    }


def _between(space: Space, short: Widths, enough: Widths, ratio: float) -> Widths:
    """Start from `short` and narrow FFNs, then attention, one step at a time in turn until the budget is met."""
    widths = [dict(layer) for layer in short]
    order = sorted(range(len(widths)), key=lambda i: (i * 0.618034) % 1)  # golden ratio: the first n are spread evenly
    for kind in ("ffn", "attention", "ffn", "attention", "ffn"):
        for layer in order:
            if space.met(widths, ratio):
                return tighten(space, widths, ratio, space.options)
            options = space.options(layer, kind)
            at = options.index(widths[layer][kind])
            if at > 0 and options[at - 1] > 0:
                widths[layer][kind] = options[at - 1]
    return widths if space.met(widths, ratio) else enough
