"""transformers' classes for what a config.json describes, including our own for widths per layer."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

try:
    from transformers.initialization import no_init_weights
except ImportError:  # transformers 4
    from transformers.modeling_utils import no_init_weights  # type: ignore[attr-defined,no-redef]

from saap_edge.families import Config
from saap_edge.model.modeling_saap_edge import SaapEdgeConfig, SaapEdgeForCausalLM
from saap_edge.model.spec import PRUNED_TYPE, for_transformers_4

__all__ = ["TRANSFORMERS_4", "check_class", "empty_model", "parsed_config"]

AutoConfig.register(PRUNED_TYPE, SaapEdgeConfig)
AutoModelForCausalLM.register(SaapEdgeConfig, SaapEdgeForCausalLM)

TRANSFORMERS_4 = transformers.__version__.startswith("4.")
# Numbers that JSON does not have are objects in the files that transformers 5 writes: {"__float__": "Infinity"}.
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def parsed_config(config: Config) -> Any:
    """transformers' config object of a config.json. Raises whatever transformers raises when it refuses it."""
    words = {name: _with_floats(value) for name, value in for_transformers_4(config).items()}
    parsed = AutoConfig.for_model(**{name: value for name, value in words.items() if name != "architectures"})
    if getattr(parsed, "attn_logit_softcapping", None):
        parsed._attn_implementation = "eager"  # the default of transformers 4 silently drops the cap
    return parsed


def _with_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_floats(each) for each in value]
    if isinstance(value, dict) and value.keys() == {"__float__"}:
        return _FLOATS.get(value["__float__"], value)
    return value


def empty_model(parsed: Any) -> Any:
    """transformers' model without weights: only buffers (tables of frequencies, say) have values."""
    with no_init_weights(), init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(parsed)


def check_class(config: Config) -> None:
    """Build transformers' model with one layer, or all where they need each other, and no weights.

    That checks more than the config object does.

    Raises whatever transformers raises, and ValueError when rotary frequencies are not finite.
    """
    parsed = parsed_config(config)
    if not getattr(parsed, "kv_sharing_modes", None):  # else layers need others
        parsed.num_hidden_layers = 1
    for name, table in empty_model(parsed).named_buffers():
        if not bool(torch.isfinite(table).all()):
            raise ValueError(f"{name} would hold values that are no finite numbers")
