"""Orders of removal: one figure per structure, lowest leaves first. Each method is a pure function of scores and bank.

saap                 the paper's: fused importance minus lambda times its fluctuation, standardised within (layer, kind)
fused                the same fusion over other views (`prune.ranking.views`)
kfac                 loss of removing a structure after repair, under Kronecker-factored curvature (bank.py); ours
obs                  output error of removing it after repair: Optimal Brain Surgeon with the layer's own Gram matrix
llm-pruner-element   first- plus second-order Taylor, summed over elements (2305.11627), per cost
llm-pruner-vector    first-order Taylor of the whole slice (2305.11627), per cost
flap                 FLAP's WIFV (2312.11983), standardised within (layer, kind)
wanda-sp             Wanda's norm times weight, summed (as FLAP's authors adapt it); equal widths in every layer
magnitude            sum of |w|, per cost
random               random, by seed
shortgpt             whole layers by block influence (2403.03853); the last one in part, so that budgets are equal
uniform              equal widths in every layer; inside a layer the order of kfac

"Per cost": divided by what the structure costs in the budget's unit. Numbers in brackets are arXiv papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from saap_edge.errors import SaapError
from saap_edge.pruning.bank import Bank
from saap_edge.pruning.fusion import fluctuation, fuse, standardise
from saap_edge.pruning.score import KINDS, SUBLAYERS, Scores
from saap_edge.pruning.settings import OUTSIDE_ORDERS, RankingSettings
from saap_edge.pruning.space import Space

__all__ = ["ORDERS", "Order", "Values", "order_of", "register_order", "structure_values"]

Values = list[dict[str, np.ndarray]]  # [layer][kind] float64 [structures]; the lowest leaves first


@dataclass(frozen=True)
class Order:
    """A method: its values, and how widths follow from them.

    Another package adds one by `register_order`, or as an entry point of the group `saap_edge.orders`.

    Attributes:
        values: (scores, space, bank, ranking, seed) -> the value of every structure.
        uniform: every layer gets the same widths.
        name: only of one from outside.
    """

    values: Callable[[Scores, Space, Bank | None, RankingSettings, int], Values]
    uniform: bool = False
    name: str = ""


def structure_values(
    method: str, scores: Scores, space: Space, bank: Bank | None, ranking: RankingSettings, seed: int = 0
) -> Values:
    """Values of a method of ORDERS, `[layer][kind]` float64 [structures]; the lowest leaves first.

    Raises SaapError for an unknown method, a missing bank, or scores that cannot be fused.
    """
    return order_of(method).values(scores, space, bank, ranking, seed)


def order_of(method: str) -> Order:
    """The order of that name, of this package or from outside. Raises SaapError when there is none.

    >>> order_of("kfac").uniform, order_of("uniform").uniform
    (False, True)
    """
    if method in ORDERS:
        return ORDERS[method]
    if method not in OUTSIDE_ORDERS:
        raise SaapError(f"the order '{method}' is unknown (known: {', '.join((*ORDERS, *OUTSIDE_ORDERS))})")
    found: Order = OUTSIDE_ORDERS[method]
    return found


def register_order(name: str, values: Callable[..., Values], uniform: bool = False) -> None:
    """Add a pruning order under a name that recipes and `--method` can then use.

    Args:
        values: (scores, space, bank, ranking, seed) -> for every layer and kind ("attention", "slots", "ffn") a figure
            per structure, float64 [structures]; the lowest leaves first.
        uniform: every layer gets the same widths.

    Raises SaapError for a name of saap-edge's own.
    """
    OUTSIDE_ORDERS.register(Order(values, uniform, name), replace=True)


def _fused(views: tuple[str, ...] | None) -> Callable[[Scores, Space, Bank | None, RankingSettings, int], Values]:
    def values(scores: Scores, space: Space, bank: Bank | None, ranking: RankingSettings, seed: int) -> Values:
        kinds = KINDS if space.slots else SUBLAYERS
        flat, parts = _flat(scores, bank, views or ranking.views, kinds)
        layer = np.repeat(np.arange(len(parts)), parts)
        kind = layer % len(kinds)
        by = {"model": np.zeros_like(layer), "kind": kind, "layer": layer}
        try:
            fusion = fuse(flat, by[ranking.sigma], ranking.scale)
        except ValueError as error:
            raise SaapError(f"these scores cannot be ranked: {error}") from None
        unstable = fluctuation(fusion.per_batch)
        if ranking.log_fluctuation:
            unstable = np.log(unstable + 1e-12)
        if ranking.standardise == "none":
            order = fusion.importance - ranking.fluctuation * unstable
        else:
            groups = layer if ranking.standardise == "layer" else kind
            order = standardise(fusion.importance, groups) - ranking.fluctuation * standardise(unstable, groups)
        split = _split(order, parts, scores, kinds)
        return _per_cost(split, space) if ranking.per_cost else split

    return values


def _flat(
    scores: Scores, bank: Bank | None, views: tuple[str, ...], kinds: tuple[str, ...]
) -> tuple[np.ndarray, list[int]]:
    """Views [K, B, S] of all structures of these kinds, and the number of structures in each layer and kind."""
    batches = scores.values[0]["ffn"].shape[1]
    rows = []
    for name in views:
        parts = [
            np.tile(_need(bank, name).obs[i][kind], (batches, 1)) if name == "obs" else scores.view(i, kind, name)
            for i in range(len(scores.values))
            for kind in kinds
        ]
        rows.append(np.concatenate(parts, axis=1))
    return np.stack(rows), [part.shape[1] for part in parts]


def _split(flat: np.ndarray, parts: list[int], scores: Scores, kinds: tuple[str, ...]) -> Values:
    pieces = iter(np.split(flat, np.cumsum(parts)[:-1]))
    blank = [{kind: np.zeros(layer[kind].shape[2]) for kind in KINDS} for layer in scores.values]
    return [layer | {kind: next(pieces) for kind in kinds} for layer in blank]


def _per_cost(values: Values, space: Space) -> Values:
    return [
        {kind: figures / space.structure_cost(index, kind) for kind, figures in layer.items()}
        for index, layer in enumerate(values)
    ]


def _view(name: str, per_cost: bool) -> Callable[[Scores, Space, Bank | None, RankingSettings, int], Values]:
    def values(scores: Scores, space: Space, bank: Bank | None, ranking: RankingSettings, seed: int) -> Values:
        means: Values = [
            {kind: scores.view(i, kind, name).mean(0).astype(np.float64) for kind in KINDS}
            for i in range(len(scores.values))
        ]
        if per_cost:
            return _per_cost(means, space)
        return [{kind: standardise(v, np.zeros(len(v))) for kind, v in layer.items()} for layer in means]

    return values


def _banked(name: str) -> Callable[[Scores, Space, Bank | None, RankingSettings, int], Values]:
    def values(scores: Scores, space: Space, bank: Bank | None, ranking: RankingSettings, seed: int) -> Values:
        return _per_cost(getattr(_need(bank, name), name), space)

    return values


def _need(bank: Bank | None, name: str) -> Bank:
    if bank is None:
        raise SaapError(f"the order '{name}' needs a bank: run `saap-edge bank` first")
    return bank


def _random(scores: Scores, space: Space, bank: Bank | None, ranking: RankingSettings, seed: int) -> Values:
    rng = np.random.default_rng(seed)
    chance: Values = [{kind: rng.random((layer[kind].shape[2],)) for kind in KINDS} for layer in scores.values]
    return chance


def _influence(scores: Scores, space: Space, bank: Bank | None, ranking: RankingSettings, seed: int) -> Values:
    """Values by which layers leave one after the other; inside a layer, structures leave in the order of wanda."""
    inside = _view("wanda", per_cost=False)(scores, space, bank, ranking, seed)
    rank = np.argsort(np.argsort(scores.influence))
    return [
        {kind: 1000.0 * rank[index] + np.argsort(np.argsort(v)) / len(v) for kind, v in layer.items()}
        for index, layer in enumerate(inside)
    ]


ORDERS: dict[str, Order] = {
    "saap": Order(_fused(("vector", "element"))),
    "fused": Order(_fused(None)),
    "kfac": Order(_banked("costs")),
    "obs": Order(_banked("obs")),
    "llm-pruner-element": Order(_view("element", per_cost=True)),
    "llm-pruner-vector": Order(_view("vector", per_cost=True)),
    "flap": Order(_view("flap", per_cost=False)),
    "wanda-sp": Order(_view("wanda", per_cost=False), uniform=True),
    "magnitude": Order(_view("magnitude", per_cost=True)),
    "random": Order(_random),
    "shortgpt": Order(_influence),
    "uniform": Order(_banked("costs"), uniform=True),
}
