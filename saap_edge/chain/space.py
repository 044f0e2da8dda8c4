"""The widths that a plan of a recipe may choose, and what they cost on its target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saap_edge.formats import format_of

if TYPE_CHECKING:
    from saap_edge.model.spec import ModelSpec
    from saap_edge.pruning.space import Space
    from saap_edge.recipe import Recipe
    from saap_edge.targets import Target

__all__ = ["grids_of", "space_of", "target_settings", "will_be_uniform"]


def space_of(spec: ModelSpec, recipe: Recipe, target: Target) -> Space:
    """The widths that a plan of a recipe may choose, and their cost on the target."""
    from saap_edge.pruning.space import Space, model_cost

    prune = recipe.prune
    bandwidth = target.decode_bandwidth if prune.unit == "latency" else 1.0
    cost = model_cost(spec, prune.unit, target.quantisation["gguf"], prune.context, bandwidth)
    attention_grid, grid = grids_of(spec, recipe, target)
    return Space(
        shapes=spec.layers, hidden=spec.hidden, head_dim=spec.head_dim, cost=cost, grid=grid, protect=prune.protect,
        minimum=prune.minimum, slots=prune.query_slots, depth=prune.depth, trim=prune.off_grid == "trim",
        uniform_only=_why_uniform(spec, recipe), attention_grid=attention_grid, only=prune.only,
    )  # fmt: skip


def grids_of(spec: ModelSpec, recipe: Recipe, target: Target) -> tuple[int, int]:
    """Grids of heads and FFN. The recipe's where it has one; else the target's, or that of the formats to export."""
    from saap_edge.pruning.space import block_grids

    if recipe.prune.grid:
        return recipe.prune.grid, recipe.prune.grid
    block = max((grid for name in recipe.export.formats if (grid := format_of(name).grid)), default=target.grid)
    return block_grids(spec, target.grid, block)


def target_settings(spec: ModelSpec, recipe: Recipe, target: Target) -> dict[str, Any]:
    """The properties of the target that a plan depends on."""
    cost = space_of(spec, recipe, target).cost
    return {"grids": grids_of(spec, recipe, target), "cost": [cost.per_weight, cost.per_kv_head, cost.fixed]}


def will_be_uniform(spec: ModelSpec, recipe: Recipe) -> bool:
    """Whether the plan will be uniform, because the family allows nothing else or the recipe asks for it."""
    return _why_uniform(spec, recipe) is not None


def _why_uniform(spec: ModelSpec, recipe: Recipe) -> str | None:
    """Why all layers must have the same widths, or None."""
    # Whoever asks for a uniform model wants one that any reader of such models can take: not nearly uniform.
    asked = "the recipe asks for a uniform plan" if recipe.prune.method == "uniform" else None
    return spec.family.uniform_only or asked
