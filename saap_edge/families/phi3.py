"""Phi-3, Phi-4 and Phi-4-mini: Llama with q, k, v in one matrix and gate and up in another. Handled as Llama.

Variants with long contexts (longrope) are limited to the context of pretraining, within which transformers uses the
short factors. Their attention factor is folded into the queries. Phi-4-mini rotates only the first part of every head.
As Llama all of the head rotates, but the rest so slowly that its angle stays zero.
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

STILL = 1e30  # a factor on a wavelength: the angle stays zero at every position


def spelled(config: Config) -> Config:
    """The config with its kind of rope as transformers' Phi-3 reads it: "su" and "yarn" mean longrope."""
    rope = rope_of(config)
    kind = "longrope" if rope["rope_type"] in ("su", "yarn") else rope["rope_type"]
    return {**config, "rope_parameters": {**rope, "rope_type": kind}, "rope_scaling": None}


def refuse(config: Config) -> str | None:
    """Why this Phi-3 cannot be handled, or None (`Family.refuse`)."""
    if reason := refuse_by_layer(config):
        return reason
    config = spelled(config)
    reason = refuse_rope(rope_of(config), head_dim_of(config), True, ("default", "longrope"))
    return reason or refuse_common(config, partial=True)


def rotated(config: Config) -> int:
    """Number of a head's dimensions that rotate."""
    return int(head_dim_of(config) * rope_of(config)["partial_rotary_factor"])


def canonical(config: Config) -> Config:
    """Llama's config. If only a part of each head rotates, it has a factor for every pair, in the form of longrope."""
    llama = within_window(as_llama(spelled(config)), config.get("sliding_window"))
    part, whole = rotated(config), head_dim_of(config)
    rope = rope_of(spelled(config))
    if part == whole and rope["rope_type"] == "default":
        return llama
    theta, short = rope["rope_theta"], rope.get("short_factor") or [1.0] * (part // 2)
    # Llama's frequencies are spread over the whole head; the factors turn them into Phi's.
    factors = [factor * theta ** (2 * pair / part - 2 * pair / whole) for pair, factor in enumerate(short)]
    factors += [STILL] * ((whole - part) // 2)
    context = llama["max_position_embeddings"]
    fixed = {"rope_type": "longrope", "rope_theta": theta, "short_factor": factors, "long_factor": factors}
    fixed |= {"original_max_position_embeddings": context, "factor": 1.0, "attention_factor": 1.0}
    scaled = {name: rope[name] for name in ("original_max_position_embeddings", "factor") if name in rope}
    return llama | {"rope_parameters": fixed | scaled}


def turned(config: Config, source: Source, query: bool) -> Source:
    """`source` with the rows of each head in Llama's order: rotating ones at the start of each half."""
    part, whole = rotated(config), head_dim_of(config)
    turning, still = range(part), range(part, whole)
    first = (*turning[: part // 2], *still[: (whole - part) // 2])
    order = (*first, *turning[part // 2 :], *still[(whole - part) // 2 :])
    factor = attention_factor(rope_of(spelled(config))) ** 2 if query else 1.0
    factors = tuple(factor if row < part else 1.0 for row in order)
    return replace(source, order=order if part < whole else None, factors=factors if factor != 1.0 else None)


def source(config: Config, name: str) -> Source:
    """Where a tensor comes from (`Family.source`).

    `qkv_proj` has the rows of all queries, then keys, then values; `gate_up_proj` those of gate, then up.

    >>> config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
    >>> found = source(config, "model.layers.0.self_attn.v_proj.weight")
    >>> found.name, found.rows
    ('model.layers.0.self_attn.qkv_proj.weight', (96, 128))
    """
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
