"""Model families, found by `model_type`."""

from __future__ import annotations

from saap_edge.errors import SaapError
from saap_edge.families import llama, qwen2
from saap_edge.families.base import Coupling, Family

__all__ = ["FAMILIES", "Coupling", "Family", "family_of"]

FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in (llama, qwen2)}


def family_of(model_type: str) -> Family:
    """The family of a `model_type`. Raises SaapError naming the families there are."""
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise SaapError(f"model family '{model_type}' is not supported (supported: {known})")
    return FAMILIES[model_type]
