"""What may come from outside: pruning orders, families, metrics of the gate. docs/adding.md has an example of each."""

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
    """Add a pruning order under a name that `method` may then be.

    Args:
        values: (scores, space, bank, ranking, seed) -> for every layer a figure of every structure, by kind
            ("attention", "slots", "ffn"), float64 [structures]; the lowest leaves first.
        uniform: every layer gets the same widths.

    Raises SaapError for a name of saap-edge's own.
    """
    from saap_edge.pruning import orders

    orders.register_order(name, values, uniform)


def register_family(family: Family) -> None:
    """Add a model family under its `model_type`. Raises SaapError for one of saap-edge's own."""
    from saap_edge import families

    families.register_family(family)


def register_metric(name: str, kind: Kind | str, figure: Callable[[BenchedArtifact, Any], Any]) -> None:
    """Add a metric that budgets may have limits on.

    Args:
        kind: what it rests on: "counted", "on the board", "side by side", "predicted" or "against the baseline".
        figure: (artifact of the bench document, evidence) -> a number, a `gating.figures.Figure` with its interval, or
            None where there is none. Only what was counted may do without an interval.

    Raises SaapError for a name of saap-edge's own.
    """
    from saap_edge import gating

    gating.register_metric(name, gating.Kind(kind), figure)
