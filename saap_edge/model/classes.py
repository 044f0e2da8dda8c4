"""transformers' classes for what a config.json describes, our own of per-layer widths among them."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from saap_edge.families import Config
from saap_edge.model.modeling_saap_edge import SaapEdgeConfig, SaapEdgeForCausalLM
from saap_edge.model.spec import PRUNED_TYPE, for_transformers_4

__all__ = ["TRANSFORMERS_4", "parsed_config"]

AutoConfig.register(PRUNED_TYPE, SaapEdgeConfig)
AutoModelForCausalLM.register(SaapEdgeConfig, SaapEdgeForCausalLM)

TRANSFORMERS_4 = transformers.__version__.startswith("4.")


def parsed_config(config: Config) -> Any:
    """transformers' config of a config.json. Raises whatever it raises for one that it refuses."""
    words = for_transformers_4(config)
    parsed = AutoConfig.for_model(**{name: value for name, value in words.items() if name != "architectures"})
    if getattr(parsed, "attn_logit_softcapping", None):
        parsed._attn_implementation = "eager"  # the default of transformers 4 drops the cap without a word
    return parsed
