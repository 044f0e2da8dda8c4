"""Qwen3.5, dense: gated DeltaNets in three layers of four, attention with gates and norms of q and k in the others.

A DeltaNet's value heads have a state each and share key heads, as query heads share KV heads. The text part of a model
that also sees images is read alone; so is a model without the head that predicts several tokens (MTP). The models are
handled as our own class, where queries, keys and values of a DeltaNet are projections of their own.
"""

from __future__ import annotations

import re

from saap_edge.families.base import Config, Exports, Family, Refusal, Source, refuse_common
from saap_edge.families.rope import head_dim_of, refuse_rope, rope_of

_KEPT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings",
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "dtype", "torch_dtype", "quantization_config",
    "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim",
    "linear_conv_kernel_dim",
)  # fmt: skip
# What is stacked in a stored tensor: our part of its name -> the stored one's.
_STACKED = {"in_proj_": "in_proj_qkv", "conv_": "conv1d"}
_PART = re.compile(r"(.*\.linear_attn\.)(in_proj_|conv_)([qkv])\.weight")


def spelled(config: Config) -> Config:
    """The config with positions of texts, which have one axis, whatever order the axes of images take turns in.

    >>> spelled({"rope_parameters": {"rope_theta": 1e7, "mrope_interleaved": True, "mrope_section": [11, 11, 10]}})
    {'rope_parameters': {'rope_theta': 10000000.0}}
    """
    rest = dict(config)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(rest.get(name), dict):
            rest[name] = {key: value for key, value in rest[name].items() if not key.startswith("mrope_")}
    return rest


def kinds_of(config: Config) -> list[str]:
    """The kind of every layer: three DeltaNets and one attention in turn, where config.json does not say it.

    >>> kinds_of({"num_hidden_layers": 3, "full_attention_interval": 2})
    ['linear_attention', 'full_attention', 'linear_attention']
    """
    every, kinds = int(config.get("full_attention_interval") or 4), ("linear_attention", "full_attention")
    layers = int(config.get("num_hidden_layers", every))
    said: list[str] | None = config.get("layer_types")
    return said or [kinds[(index + 1) % every == 0] for index in range(layers)]


def canonical(config: Config) -> Config:
    """The config of our own class with the same widths."""
    linear = [int(kind == "linear_attention") for kind in kinds_of(config)]
    attention = [int(config["num_attention_heads"]), int(config["num_key_value_heads"])]
    delta = [int(config["linear_num_value_heads"]), int(config["linear_num_key_heads"])]
    ffn = int(config["intermediate_size"])
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    return kept | {
        "model_type": "saap_edge", "base_model_type": "qwen3_5_text", "architectures": ["SaapEdgeForCausalLM"],
        "rope_parameters": rope_of(config), "hidden_act": "silu", "linear_layers": linear,
        "layer_widths": [[*(delta if one else attention), ffn] for one in linear], "qk_norm": True,
        "norms_after_rope": False, "gated_attention": True, "centred_norms": True,
        "qkv_bias": False, "o_bias": False, "gate_up_bias": False, "down_bias": False,
    }  # fmt: skip


def plain(config: Config) -> Config:
    """The config of transformers' class for one of ours whose layers are alike."""
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    pairs = list(zip(config["layer_widths"], config["linear_layers"], strict=True))
    heads, kv_heads, ffn = next(widths for widths, linear in pairs if not linear)
    values, keys = next(
        (tuple(widths[:2]) for widths, linear in pairs if linear),
        (config["linear_num_value_heads"], config["linear_num_key_heads"]),
    )
    kinds, rope = ("full_attention", "linear_attention"), rope_of(config)
    pairs_turned = int(head_dim_of(config) * rope["partial_rotary_factor"]) // 2
    rope |= {"mrope_interleaved": True, "mrope_section": sections(pairs_turned)}  # which other programs want
    return kept | {
        "model_type": "qwen3_5_text", "architectures": ["Qwen3_5ForCausalLM"], "rope_parameters": rope,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": ffn,
        "linear_num_value_heads": values, "linear_num_key_heads": keys,
        "layer_types": [kinds[linear] for linear in config["linear_layers"]],
    }  # fmt: skip


def sections(pairs: int) -> list[int]:
    """How many of a head's rotating pairs are of time, height and width, which take turns. In a text all are the same.

    >>> sections(32)
    [11, 11, 10]
    """
    return [-(-(pairs - axis) // 3) for axis in range(3)]


def source(config: Config, name: str) -> Source:
    """Where a tensor of ours is stored.

    >>> config = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    ...     "linear_value_head_dim": 16}
    >>> source(config, "model.layers.0.linear_attn.in_proj_k.weight")
    Source(name='model.layers.0.linear_attn.in_proj_qkv.weight', rows=(32, 64), factor=1.0, order=None, factors=None)
    """
    found = _PART.fullmatch(name)
    if not found:
        return Source(name)
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] * config["linear_value_head_dim"]
    rows = {"q": (0, keys), "k": (keys, 2 * keys), "v": (2 * keys, 2 * keys + values)}
    return Source(f"{found[1]}{_STACKED[found[2]]}.weight", rows[found[3]])


def refuse(config: Config) -> str | None:
    """Why a model cannot be handled, or None."""
    rope = rope_of(config)
    rotated = head_dim_of(config) * rope["partial_rotary_factor"]
    if reason := refuse_rope(rope, head_dim_of(config), partial=True, kinds=("default",)):
        return reason
    if rotated != int(rotated) or int(rotated) % 2:
        return f"{rotated:g} of {head_dim_of(config)} dimensions of a head would rotate, which are no pairs"
    if config.get("model_type") == "saap_edge":
        return refuse_common(config, partial=True)
    if not config.get("attn_output_gate", True):
        return "attention without gates (attn_output_gate) is not supported"
    if config.get("attention_bias"):
        return "attention with biases (attention_bias) is not supported"
    types = set(kinds_of(config))
    if odd := types - {"linear_attention", "full_attention"}:
        return f"layer_types has '{min(odd)}'"
    if "full_attention" not in types:
        return "it has no layer with attention"
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    if values % keys:
        return f"{values} value heads (linear_num_value_heads) cannot share {keys} key heads (linear_num_key_heads)"
    if config["linear_conv_kernel_dim"] < 2:
        return f"convolutions of {config['linear_conv_kernel_dim']} token (linear_conv_kernel_dim) are not supported"
    return refuse_common({name: value for name, value in config.items() if name != "layer_types"}, partial=True)


FAMILY = Family(
    model_type="qwen3_5_text",
    title="Qwen3.5",
    covers="Qwen3.5 0.8B to 27B (text; not the mixtures of experts)",
    exports=Exports(
        gguf_uniform="qwen35",
        gguf_layers=Refusal(
            "llama.cpp's 'qwen35' has one FFN width and one number of heads of each kind for all layers"
        ),
        onnx="delta-nets",
    ),
    refuse=refuse,
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "partial_rotary_factor": 0.25,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
    },
    spelled=spelled,
    canonical=canonical,
    source=source,
    plain=plain,
    qk_norm=True,
    gated=True,
    centred_norms=True,
    whole="qwen3_5",
    dropped=("model.visual.", "visual.", "mtp."),
)
