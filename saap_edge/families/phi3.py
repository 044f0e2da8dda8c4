"""Phi-3, Phi-4 and Phi-4-mini: Llama with q, k, v in one matrix and gate and up in another. Handled as Llama.

The variants with long contexts (longrope) keep the context of pretraining, within which transformers too takes the
short factors; what attention multiplies by what turns is folded into the queries. Phi-4-mini turns the first part of
every head only: as Llama it turns all of it, the rest by a frequency of next to nothing.
"""

from dataclasses import replace

from saap_edge.families.base import (
    LLAMA_EXPORTS,
    Config,
    Family,
    Source,
    as_llama,
    refuse_by_layer,
    refuse_common,
    within_window,
)
from saap_edge.families.rope import attention_factor, head_dim_of, refuse_rope, rope_of

STILL = 1e30  # a factor on a wavelength after which no position turns


def spelled(config: Config) -> Config:
    """transformers' Phi-3 takes every kind of scaling for longrope."""
    rope = rope_of(config)
    kind = "longrope" if rope["rope_type"] in ("su", "yarn") else rope["rope_type"]
    return {**config, "rope_parameters": {**rope, "rope_type": kind}, "rope_scaling": None}


def refuse(config: Config) -> str | None:
    if reason := refuse_by_layer(config):
        return reason
    config = spelled(config)
    reason = refuse_rope(rope_of(config), head_dim_of(config), True, ("default", "longrope"))
    return reason or refuse_common(config, partial=True)


def rotated(config: Config) -> int:
    """Dimensions of a head that turn."""
    return int(head_dim_of(config) * rope_of(config)["partial_rotary_factor"])


def canonical(config: Config) -> Config:
    """Llama's config; where only a part of a head turns, with a factor for every pair of it (longrope's form)."""
    llama = within_window(as_llama(spelled(config)), config.get("sliding_window"))
    part, whole = rotated(config), head_dim_of(config)
    rope = rope_of(spelled(config))
    if part == whole and rope["rope_type"] == "default":
        return llama
    theta, short = rope["rope_theta"], rope.get("short_factor") or [1.0] * (part // 2)
    # Llama's frequencies are those of the whole head: the factors make Phi's out of them.
    factors = [factor * theta ** (2 * pair / part - 2 * pair / whole) for pair, factor in enumerate(short)]
    factors += [STILL] * ((whole - part) // 2)
    context = llama["max_position_embeddings"]
    fixed = {"rope_type": "longrope", "rope_theta": theta, "short_factor": factors, "long_factor": factors}
    fixed |= {"original_max_position_embeddings": context, "factor": 1.0, "attention_factor": 1.0}
    scaled = {name: rope[name] for name in ("original_max_position_embeddings", "factor") if name in rope}
    return llama | {"rope_parameters": fixed | scaled}


def turned(config: Config, source: Source, query: bool) -> Source:
    """Rows of a head of q or k as Llama's form has them: what turns at the start of each half."""
    part, whole = rotated(config), head_dim_of(config)
    turning, still = range(part), range(part, whole)
    first = (*turning[: part // 2], *still[: (whole - part) // 2])
    order = (*first, *turning[part // 2 :], *still[(whole - part) // 2 :])
    factor = attention_factor(rope_of(spelled(config))) ** 2 if query else 1.0
    factors = tuple(factor if row < part else 1.0 for row in order)
    return replace(source, order=order if part < whole else None, factors=factors if factor != 1.0 else None)


def source(config: Config, name: str) -> Source:
    """Rows of `qkv_proj` are all queries, then keys, then values; of `gate_up_proj` the gate, then up."""
    head_dim, heads = head_dim_of(config), config["num_attention_heads"]
    q, kv, ffn = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim, config["intermediate_size"]
    parts = {
        "q_proj": ("qkv_proj", 0, q), "k_proj": ("qkv_proj", q, kv), "v_proj": ("qkv_proj", q + kv, kv),
        "gate_proj": ("gate_up_proj", 0, ffn), "up_proj": ("gate_up_proj", ffn, ffn),
    }  # fmt: skip
    for part, (fused, start, rows) in parts.items():
        if f".{part}." in name:
            rows_of = Source(name.replace(part, fused), (start, start + rows))
            return turned(config, rows_of, part == "q_proj") if part in ("q_proj", "k_proj") else rows_of
    return Source(name)


FAMILY = Family(
    model_type="phi3",
    title="Phi-3",
    covers="Phi-3-mini, Phi-3-medium, Phi-4, Phi-4-mini",
    exports=LLAMA_EXPORTS,
    refuse=refuse,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    canonical=canonical,
    source=source,
)
