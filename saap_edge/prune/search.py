"""From scores to widths: which structures leave, over all layers at once, on the grid the runtimes are quick on.

Three ways, each a pure function of saved scores:
  saap     the paper's: fused importance and its fluctuation, standardised within (layer, kind), lowest leave first
  taylor   element-wise importance per parameter, compared across layers as it stands (LLM-Pruner's score, ours order)
  uniform  every layer the same widths, the structures inside a layer in the order of fused importance
No one of them wins on every model, so `auto` in the recipe builds all three and keeps the best on held-out text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from saap_edge.errors import SaapError
from saap_edge.model.spec import LayerShape, ModelSpec
from saap_edge.prune.fusion import fluctuation, fuse, standardise
from saap_edge.prune.plan import GRID, Plan, kv_unit, layer_cost, make_plan
from saap_edge.prune.score import KINDS, Scores

__all__ = ["METHODS", "check_ratio", "kept_structures", "plan_from_scores", "structure_scores"]

METHODS = ("saap", "taylor", "uniform")


@dataclass(frozen=True)
class _Unit:
    """Structures of one sublayer that leave together; a sublayer's units leave in order of `step`."""

    layer: int
    kind: str
    step: int
    count: int
    parameters: int
    score: float


def structure_scores(scores: Scores, order: str, fluctuation_weight: float) -> list[dict[str, np.ndarray]]:
    """One figure per structure, `[layer][kind]` float64 [structures]; the lowest leaves first.

    `order` is "saap" (ASI), "taylor" (element-wise mean) or "uniform" (fused importance without fluctuation).
    Raises SaapError when the scores carry nothing to rank by.
    """
    if order == "taylor":
        return [{kind: layer[kind][1].mean(0).astype(np.float64) for kind in KINDS} for layer in scores.values]
    flat = np.concatenate([layer[kind] for layer in scores.values for kind in KINDS], axis=2)
    sizes = [layer[kind].shape[2] for layer in scores.values for kind in KINDS]
    try:
        fusion = fuse(flat)
    except ValueError as error:
        raise SaapError(f"these scores cannot be ranked: {error}") from None
    groups = np.repeat(np.arange(len(sizes)), sizes)
    weight = fluctuation_weight if order == "saap" else 0.0
    asi = standardise(fusion.importance, groups) - weight * standardise(fluctuation(fusion.per_batch), groups)
    parts = iter(np.split(asi, np.cumsum(sizes)[:-1]))
    return [{kind: next(parts) for kind in KINDS} for _ in scores.values]


def plan_from_scores(scores: Scores, method: str, ratio: float, fluctuation_weight: float) -> Plan:
    """The plan of one method that removes at least `ratio` of the attention and FFN parameters.

    Raises SaapError when so much cannot be removed with one unit left in every sublayer.
    """
    if method == "uniform":
        after = _uniform_widths(scores, ratio)
    else:
        after = _global_widths(scores, structure_scores(scores, method, fluctuation_weight), method, ratio)
    return make_plan(method, fluctuation_weight, ratio, scores.shapes, after, scores.hidden, scores.head_dim)


def kept_structures(scores: Scores, plan: Plan) -> list[dict[str, np.ndarray]]:
    """Indices that stay, `[layer][kind]` int64, ascending: the best-scored of every sublayer, as many as its width.

    Raises SaapError when the plan names an order that these scores do not have.
    """
    if plan.order not in METHODS:
        raise SaapError(f"the plan's order '{plan.order}' is unknown (known: {', '.join(METHODS)})")
    ranked = structure_scores(scores, plan.order, plan.fluctuation)
    widths = [{"attention": shape.kv_heads, "ffn": shape.ffn} for shape in plan.shapes]
    return [
        {kind: np.sort(np.argsort(-layer[kind], kind="stable")[: width[kind]]) for kind in KINDS}
        for layer, width in zip(ranked, widths, strict=True)
    ]


def check_ratio(spec: ModelSpec, ratio: float) -> None:
    """Raise SaapError when `ratio` cannot be reached on the grid: known from the shape, before any scoring."""
    sizes = [{"attention": shape.kv_heads, "ffn": shape.ffn} for shape in spec.layers]
    blank = [{kind: np.ones((2, 2, size[kind]), dtype=np.float32) for kind in KINDS} for size in sizes]
    plan_from_scores(Scores(blank, list(spec.layers), spec.hidden, spec.head_dim, {}), "taylor", ratio, 0.0)


def _total(scores: Scores, shapes: list[LayerShape]) -> int:
    return sum(layer_cost(shape, scores.hidden, scores.head_dim) for shape in shapes)


def _unit_size(scores: Scores, layer: int, kind: str) -> int:
    shape = scores.shapes[layer]
    return GRID if kind == "ffn" else kv_unit(shape.heads // shape.kv_heads, scores.head_dim)


def _structure_parameters(scores: Scores, layer: int, kind: str) -> int:
    shape = scores.shapes[layer]
    group = shape.heads // shape.kv_heads
    return 3 * scores.hidden if kind == "ffn" else 2 * scores.hidden * scores.head_dim * (group + 1)


def _units(scores: Scores, layer: int, kind: str, values: np.ndarray, per_cost: bool) -> Iterator[_Unit]:
    """The sublayer's units, worst first. The first may be short, to reach the grid; the last one is never offered."""
    size, parameters = _unit_size(scores, layer, kind), _structure_parameters(scores, layer, kind)
    worst_first = np.sort(values)
    start, step = 0, 0
    while len(values) - start > size:
        count = (len(values) - start) % size or size
        mean = float(worst_first[start : start + count].mean())
        yield _Unit(layer, kind, step, count, count * parameters, mean / parameters if per_cost else mean)
        start, step = start + count, step + 1


def _global_widths(scores: Scores, ranked: list[dict[str, np.ndarray]], method: str, ratio: float) -> list[LayerShape]:
    units = [
        unit
        for layer, kinds in enumerate(ranked)
        for kind in KINDS
        for unit in _units(scores, layer, kind, kinds[kind], per_cost=method == "taylor")
    ]
    # Unit means rise inside a sublayer because its structures are sorted, so this order never skips a step.
    units.sort(key=lambda unit: (unit.score, unit.layer, unit.kind, unit.step))
    goal = ratio * _total(scores, scores.shapes)
    removed, gone = 0, [dict.fromkeys(KINDS, 0) for _ in ranked]
    for unit in units:
        if removed >= goal:
            break
        gone[unit.layer][unit.kind] += unit.count
        removed += unit.parameters
    if removed < goal:
        _refuse(scores, ratio, removed)
    return [_narrow(shape, left["attention"], left["ffn"]) for shape, left in zip(scores.shapes, gone, strict=True)]


def _narrow(shape: LayerShape, kv_gone: int, ffn_gone: int) -> LayerShape:
    kv_heads = shape.kv_heads - kv_gone
    return LayerShape(kv_heads * (shape.heads // shape.kv_heads), kv_heads, shape.ffn - ffn_gone)


def _uniform_widths(scores: Scores, ratio: float) -> list[LayerShape]:
    """Of all uniform widths that remove enough, the ones closest to removing `ratio` of attention and of FFN alike."""
    shape = scores.shapes[0]
    goal = (1 - ratio) * _total(scores, scores.shapes)
    best: tuple[float, LayerShape] | None = None
    for kv_heads in _widths(shape.kv_heads, _unit_size(scores, 0, "attention")):
        for ffn in _widths(shape.ffn, GRID):
            widths = _narrow(shape, shape.kv_heads - kv_heads, shape.ffn - ffn)
            slack = goal - _total(scores, [widths] * len(scores.shapes))
            if slack < 0:
                continue
            skew = abs(kv_heads / shape.kv_heads - (1 - ratio)) + abs(ffn / shape.ffn - (1 - ratio))
            badness = slack / goal + 0.25 * skew
            if best is None or badness < best[0]:
                best = (badness, widths)
    if best is None:
        smallest = _narrow(shape, shape.kv_heads - _unit_size(scores, 0, "attention"), shape.ffn - GRID)
        _refuse(scores, ratio, _total(scores, scores.shapes) - _total(scores, [smallest] * len(scores.shapes)))
    assert best is not None
    return [best[1]] * len(scores.shapes)


def _widths(dense: int, unit: int) -> list[int]:
    return sorted({dense, *range(unit, dense, unit)})


def _refuse(scores: Scores, ratio: float, removable: int) -> None:
    most = removable / _total(scores, scores.shapes)
    raise SaapError(f"ratio {ratio:g} cannot be reached: with one unit left in every layer at most {most:.3f} can go")
