"""Adding pruning orders, families and metrics of the gate from outside. docs/adding.md has a longer example of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saap_edge.documents.bench import BenchedArtifact
    from saap_edge.families import Family
    from saap_edge.gating import Kind
    from saap_edge.pruning.orders import Values

__all__ = ["register_family", "register_metric", "register_order"]


def register_order(name: str, values: Callable[..., Values], uniform: bool = False) -> None:
    """Add a pruning order, whose name `method` and recipes then take.

    Args:
        name: its name.
        values: called with (scores, space, bank, ranking, seed). Returns a figure of every structure, for every layer
            and kind ("attention", "slots", "ffn"): float64 [structures]. Structures with the lowest figures leave
            first.
        uniform: give every layer the same widths.

    Raises SaapError where the name is one of saap-edge's own.

    Examples:
        >>> def late_first(scores, space, bank, ranking, seed):
        ...     def figures(layer, kind):
        ...         weights = scores.view(layer, kind, "magnitude").mean(0)
        ...         return weights / (1 + weights.max()) - layer
        ...
        ...     layers = range(len(space.shapes))
        ...     return [{kind: figures(layer, kind) for kind in ("attention", "slots", "ffn")} for layer in layers]
        >>> se.register_order("late-first", late_first)
        >>> scored = se.score("model", recipe="recipe.yaml", out="out")
        >>> se.plan(scored, ratio=0.2, method="late-first").plan.order
        'late-first'
    """
    from saap_edge.pruning import orders

    orders.register_order(name, values, uniform)


def register_family(family: Family) -> None:
    """Add a model family under its `model_type`. Raises SaapError where that is one of saap-edge's own.

    Examples:
        >>> from dataclasses import replace
        >>> from saap_edge.families import FAMILIES
        >>> se.register_family(replace(FAMILIES["llama"], model_type="my_llama", title="My Llama"))
        >>> FAMILIES["my_llama"].exports.gguf_uniform
        'llama'
    """
    from saap_edge import families

    families.register_family(family)


def register_metric(name: str, kind: Kind | str, figure: Callable[[BenchedArtifact, Any], Any]) -> None:
    """Add a metric of the gate, which budgets may then limit.

    Args:
        name: its name.
        kind: what it rests on: "counted", "on the board", "side by side", "predicted" or "against the baseline".
        figure: called with (artifact of the bench document, `gating.figures.Evidence`). Returns a number, a
            `gating.figures.Figure` with its interval, or None where the artifact has no such figure. Only what was
            counted may come without an interval.

    Raises SaapError where the name is one of saap-edge's own.

    Examples:
        >>> def bits_per_parameter(artifact, evidence):
        ...     return 8 * artifact.metrics.file_bytes / artifact.metrics.parameters
        >>> se.register_metric("bits_per_parameter", "counted", bits_per_parameter)
        >>> se.gate(run, {"limits": {"bits_per_parameter": {"max": 16}}}).verdict
        'pass'
    """
    from saap_edge import gating

    gating.register_metric(name, gating.Kind(kind), figure)
