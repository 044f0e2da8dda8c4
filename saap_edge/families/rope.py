"""Rotary parameters of config.json, in its old and new fields (transformers' `standardize_rope_params`)."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["attention_factor", "head_dim_of", "refuse_rope", "rope_of", "yarn_scale"]

Config = dict[str, Any]

# Fields that each kind must have. For yarn and longrope transformers computes a missing factor from the contexts.
_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": (),
    "longrope": ("short_factor", "long_factor"), "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
_OF_A_CONTEXT = ("llama3", "yarn", "longrope")  # kinds that start from the context of pretraining


def head_dim_of(config: Config) -> int:
    """Dimensions of a head: `head_dim`, or hidden size / heads.

    >>> head_dim_of({"hidden_size": 576, "num_attention_heads": 9})
    64
    """
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rope_of(config: Config) -> Config:
    """Rotary parameters: `rope_type`, `rope_theta` and the fields of the kind, defaults included.

    If the config has a set for each type of layer, the result is that of full attention.

    >>> rope_of({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    {'factor': 2.0, 'rope_type': 'linear', 'rope_theta': 500000.0, 'partial_rotary_factor': 1.0}
    """
    stored: Config = config.get("rope_scaling") or config.get("rope_parameters") or {}
    rope = dict(stored.get("full_attention", stored))
    rope["rope_type"] = kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    rope["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if kind in _OF_A_CONTEXT:
        context = int(config.get("max_position_embeddings", 2048))
        first = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = int(first or context)
        if rope.get("factor") is None:
            rope["factor"] = context / rope["original_max_position_embeddings"]
    return rope


def refuse_rope(rope: Config, head_dim: int, partial: bool, kinds: tuple[str, ...] = tuple(_NEEDED)) -> str | None:
    """Why no exporter can write these parameters (of `rope_of`), or None. `partial`: not all dimensions need rotate."""
    kind, share = rope["rope_type"], rope["partial_rotary_factor"] or 1.0
    if kind not in kinds:
        return f"rope scaling '{kind}' is not supported (supported: {', '.join(kinds)})"
    missing = [name for name in _NEEDED[kind] if rope.get(name) is None]
    if missing:
        return f"rope scaling '{kind}' lacks {', '.join(missing)}"
    odd = next((name for name, value in rope.items() if not _possible(name, value)), None)
    if odd:
        return f"rope scaling '{kind}' has {odd} {rope[odd]!r}: it takes positive numbers"
    if share != 1.0 and not partial:
        return "partial rotary embeddings are not supported"
    for name in ("short_factor", "long_factor") if kind == "longrope" else ():
        if len(rope[name]) != int(head_dim * share) // 2:
            return f"rope scaling 'longrope' has {len(rope[name])} figures as {name}, not {int(head_dim * share) // 2}"
    return None


def _possible(name: str, value: Any) -> bool:
    """Whether a field has positive numbers only; fields that have no numbers are not checked."""
    if name in ("rope_type", "type", "truncate", "finetuned") or value is None:
        return True
    values = value if isinstance(value, list) else [value]
    return all(type(each) in (int, float) and 0 < each < math.inf for each in values)


def attention_factor(rope: Config | None) -> float:
    """The factor on rotated queries and keys (transformers' `attention_scaling`). `rope` None: plain rope.

    >>> round(attention_factor({"rope_type": "yarn", "factor": 4.0}), 4)
    1.1386
    """
    if rope is None or rope["rope_type"] not in ("yarn", "longrope"):
        return 1.0
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = float(rope["factor"])
    if rope["rope_type"] == "longrope":
        return math.sqrt(1 + max(math.log(factor), 0) / math.log(rope["original_max_position_embeddings"]))
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    return yarn_scale(factor, mscale) / yarn_scale(factor, all_dim) if mscale and all_dim else yarn_scale(factor)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """The attention factor of the YaRN paper (arXiv 2309.00071), which llama.cpp applies by itself."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0
