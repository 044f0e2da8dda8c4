"""Model families, found by `model_type`."""

from __future__ import annotations

from saap_edge.errors import SaapError
from saap_edge.families import (
    ernie,
    gemma2,
    gemma3,
    gemma4,
    granite,
    granite4,
    hunyuan,
    lfm2,
    llama,
    ministral3,
    mistral,
    nemotron_h,
    phi3,
    qwen2,
    qwen3,
    qwen3_5,
    smollm3,
)
from saap_edge.families.base import Config, Coupling, Family, Gemma, Refusal, Source
from saap_edge.registry import Registry

__all__ = ["FAMILIES", "Config", "Coupling", "Family", "Gemma", "Refusal", "Source", "family_of", "register_family"]

_MODULES = (
    llama, mistral, ministral3, qwen2, qwen3, phi3, granite, smollm3, granite4, ernie, hunyuan, lfm2, qwen3_5,
    nemotron_h, gemma2, gemma3, gemma4,
)  # fmt: skip
FAMILIES: Registry[Family] = Registry("model family", "saap_edge.families", own=[module.FAMILY for module in _MODULES])


def register_family(family: Family) -> None:
    """Add a family under its `model_type`. Raises SaapError for the name of one of saap-edge's own.

    An installed package can instead have an entry point of the group `saap_edge.families` that is a Family.
    """
    FAMILIES.register(family, replace=True)


def family_of(model_type: str) -> Family:
    """The family of a `model_type`. Raises SaapError, which lists the known ones, when there is none.

    >>> family_of("qwen3").title, family_of("qwen3").qk_norm
    ('Qwen3', True)
    """
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise SaapError(f"model family '{model_type}' is not supported (supported: {known})")
    return FAMILIES[model_type]
