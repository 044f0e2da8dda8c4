"""Plans: make one from widths; refuse one that does not fit the model or breaks a rule of a runtime."""

from __future__ import annotations

from saap_edge.documents.plan import Candidate, Plan, PlanLayer, load_plan, save_plan
from saap_edge.errors import SaapError
from saap_edge.model.spec import ATTENDS_NOWHERE, DeltaNet, LayerShape, ModelSpec, attends_nowhere, head_width
from saap_edge.pruning.space import GRID, Cost, Space, Widths, kv_unit

__all__ = ["Candidate", "Plan", "PlanLayer", "check_fits", "check_plan", "load_plan", "make_plan", "save_plan"]


def make_plan(method: str, order: str, ratio: float, space: Space, widths: Widths) -> Plan:
    """The plan of these widths, without candidates.

    >>> space = Space((LayerShape(4, 2, 128),), hidden=64, head_dim=16)
    >>> plan = make_plan("kfac", "kfac", 0.3, space, [{"attention": 1, "slots": 2, "ffn": 96}])
    >>> plan.layers[0].heads, plan.layers[0].ffn, plan.parameters, round(plan.achieved_ratio, 3)
    ((4, 2), (128, 96), (36864, 24576), 0.333)
    """
    after = [space.shape(layer, before) for layer, before in zip(widths, space.shapes, strict=True)]
    count = Cost(gated=space.cost.gated, delta=space.cost.delta, matrices=space.cost.matrices)
    weights = [
        round(sum(count.layer(shape, space.hidden, space.head_dim) for shape in shapes))
        for shapes in (space.shapes, after)
    ]
    return Plan(
        method=method,
        order=order,
        unit=space.cost.unit,
        ratio=ratio,
        achieved_ratio=space.removed(widths),
        parameters=(weights[0], weights[1]),
        layers=[
            PlanLayer(
                layer=i,
                heads=(b.heads, a.heads),
                kv_heads=(b.kv_heads, a.kv_heads),
                ffn=(b.ffn, a.ffn),
                conv=b.conv,
                linear=b.linear,
                mamba=b.mamba,
                head_dim=b.head_dim,
                kv=b.kv,
            )
            for i, (b, a) in enumerate(zip(space.shapes, after, strict=True))
        ],
    )


def check_fits(plan: Plan, spec: ModelSpec) -> None:
    """Refuse a plan that does not fit a model of that shape. Raises SaapError as `check_plan`."""
    why, no_depth = spec.family.uniform_only, spec.no_depth
    check_plan(plan, list(spec.layers), spec.head_dim, uniform_only=why, no_depth=no_depth, delta=spec.delta)


def check_plan(
    plan: Plan,
    dense: list[LayerShape],
    head_dim: int,
    *,
    uniform_only: str | None = None,
    no_depth: str | None = None,
    delta: DeltaNet | None = None,
) -> None:
    """Refuse a plan that does not fit the model or breaks a runtime's rule.

    Raises SaapError that names the layer, the rule and a remedy. llama.cpp and ONNX Runtime need query heads divisible
    by kv heads (llama.cpp aborts otherwise), and widths on the grid of 32 unless the layer keeps its dense width. A
    layer may lose its whole attention, FFN or both (width 0), but not every layer may lose both.

    Args:
        dense: widths of the model's layers before pruning.
        uniform_only: why all layers must have the same widths (Family.uniform_only), or None.
        no_depth: why nothing may be gone whole (ModelSpec.no_depth), or None.
        delta: the sizes of a DeltaNet's heads; None for models without.
    """
    if len(plan.layers) != len(dense):
        raise SaapError(f"the plan has {len(plan.layers)} layers, the model {len(dense)}")
    for index, (layer, shape) in enumerate(zip(plan.layers, dense, strict=True)):
        where = f"plan, layer {index}"
        if layer.layer != index:
            raise SaapError(f"{where}: it says layer {layer.layer}; layers must be listed in order")
        if layer.before != shape:
            raise SaapError(f"{where}: made for {layer.before}, but the model has {shape}")
        pairs = ((shape.kv_heads, layer.after.kv_heads), (shape.ffn, layer.after.ffn))
        if no_depth and any(before and not after for before, after in pairs):
            raise SaapError(f"{where}: attention or FFN cannot be removed whole, because {no_depth}: keep some of both")
        _check_layer(where, layer.after, shape, head_width(shape, head_dim, delta))
        if uniform_only and layer.after != plan.layers[0].after:
            raise SaapError(
                f"{where}: its widths differ from layer 0's, but {uniform_only}: give all layers the same widths"
            )
    if all(layer.after.gone for layer in plan.layers):
        raise SaapError("plan: every layer is gone: keep attention or FFN in at least one")
    if attends_nowhere([layer.after for layer in plan.layers]):
        raise SaapError(f"plan: {ATTENDS_NOWHERE}")


def _check_layer(where: str, after: LayerShape, dense: LayerShape, head_dim: int) -> None:
    if not 0 <= after.kv_heads <= dense.kv_heads or not (after.ffn == 0 or GRID <= after.ffn <= max(dense.ffn, GRID)):
        raise SaapError(
            f"{where}: {after.kv_heads} kv heads and FFN {after.ffn} must lie within 0..{dense.kv_heads} and "
            f"{GRID}..{dense.ffn}, or FFN 0 to remove it"
        )
    if (after.heads > 0) != (after.kv_heads > 0):
        raise SaapError(
            f"{where}: {after.heads} query heads with {after.kv_heads} kv heads are half an attention: keep both, or "
            "set both to 0 to remove it"
        )
    if dense.kv and after.kv_heads != dense.kv_heads:
        why = "later layers read" if dense.kv == "lent" else "it reads from an earlier layer"
        raise SaapError(
            f"{where}: its {dense.kv_heads} kv heads stay, because they are those that {why}: take query heads (slots) "
            "or FFN channels instead"
        )
    if after.kv_heads:
        _check_attention(where, after, dense, head_dim)
    if after.ffn != dense.ffn and after.ffn % GRID:
        raise SaapError(
            f"{where}: FFN width {after.ffn} is not a multiple of {GRID}, so down_proj would stay unquantised and run "
            f"slower than dense: use {after.ffn // GRID * GRID or GRID} or {-(-after.ffn // GRID) * GRID}"
        )


def _check_attention(where: str, after: LayerShape, dense: LayerShape, head_dim: int) -> None:
    if after.heads % after.kv_heads:
        raise SaapError(
            f"{where}: {after.heads} query heads do not divide by {after.kv_heads} kv heads, and llama.cpp aborts on "
            "that: keep whole kv groups"
        )
    group = dense.heads // dense.kv_heads
    if after.heads > after.kv_heads * group:
        raise SaapError(
            f"{where}: {after.kv_heads} kv heads have at most {after.kv_heads * group} query heads, not {after.heads}"
        )
    if after.heads != dense.heads and after.heads * head_dim % GRID:
        raise SaapError(
            f"{where}: {after.heads} heads of {head_dim} are {after.heads * head_dim} wide, not a multiple of {GRID}, "
            f"so o_proj would stay unquantised: keep a multiple of {kv_unit(group, head_dim)} kv heads"
        )
