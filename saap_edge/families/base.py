"""What a model family declares. Adding a family is one file that builds a `Family`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["FFN_CHANNEL", "KV_GROUP", "Coupling", "Family"]

Config = dict[str, Any]


@dataclass(frozen=True)
class Coupling:
    """A coupled structure: the weight slices that go together (METHOD: discovery).

    `rows` are modules that lose output rows (and bias entries), `columns` modules that lose input columns.
    Module names are relative to a decoder layer.
    """

    kind: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]


# One KV group: a kv head with its n_rep query heads. The planner counts kv heads; surgery expands to rows.
KV_GROUP = Coupling("kv_group", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
FFN_CHANNEL = Coupling("ffn", ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))


@dataclass(frozen=True)
class Family:
    """A decoder family, declared, never traced.

    Attributes:
        model_type: `model_type` in config.json.
        title: the name people use.
        qkv_bias, o_bias, mlp_bias: config -> does that projection carry a bias.
        uniform_arch: llama.cpp architecture for uniform plans, or None where only `deci` works.
        refuse: config -> the reason why this model cannot be handled, or None.
    """

    model_type: str
    title: str
    qkv_bias: Callable[[Config], bool]
    o_bias: Callable[[Config], bool]
    mlp_bias: Callable[[Config], bool]
    uniform_arch: str | None
    refuse: Callable[[Config], str | None]
    attention: Coupling = KV_GROUP
    ffn: Coupling = FFN_CHANNEL


def refuse_common(config: Config) -> str | None:
    """Features no family here carries to the runtimes yet."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        return f"rope scaling '{kind}' is not supported (supported: default, llama3)"
    if config.get("hidden_act", "silu") != "silu":
        return f"hidden_act '{config['hidden_act']}' is not supported (supported: silu)"
    if config.get("quantization_config"):
        return "the weights are already quantised: give the unquantised model"
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        return "partial rotary embeddings are not supported"
    return None
