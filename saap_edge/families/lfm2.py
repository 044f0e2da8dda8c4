"""LFM2 and LFM2.5, dense: short convolutions in some layers, attention with norms of q and k in the others.

A convolution gates its input, sees the last few tokens of each channel, and gates again. Its channels are those of the
residual stream, so that none of them leaves alone. The models are handled as our own class, which has Llama's names.
"""

from __future__ import annotations

import re

from saap_edge.families.base import Config, Exports, Family, Refusal, Source, refuse_common
from saap_edge.families.rope import head_dim_of, rope_of

_KEPT = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers",
    "max_position_embeddings", "initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id", "use_cache", "dtype", "torch_dtype", "quantization_config",
)  # fmt: skip
# Our names -> transformers', as which the tensors are stored.
_NAMES = {
    "model.norm": "model.embedding_norm", "input_layernorm": "operator_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "self_attn.out_proj", "self_attn.q_norm": "self_attn.q_layernorm",
    "self_attn.k_norm": "self_attn.k_layernorm", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}  # fmt: skip
_NAME = re.compile("|".join(map(re.escape, _NAMES)))


def spelled(config: Config) -> Config:
    """The config with the older names of its fields replaced: Liquid AI's own, which transformers' class takes too.

    >>> spelled({"num_hidden_layers": 3, "full_attn_idxs": [2], "block_ff_dim": 96, "tie_embedding": False})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'num_hidden_layers': 3, 'layer_types': ['conv', 'conv', 'full_attention'], 'intermediate_size': 96,
     'tie_word_embeddings': False}
    """
    rest = {name: value for name, value in config.items() if name not in ("full_attn_idxs", *_OLDER)}
    types = config.get("layer_types")
    if types is None and isinstance(config.get("num_hidden_layers"), int):
        attention = config.get("full_attn_idxs")
        layers = range(config["num_hidden_layers"])
        types = ["full_attention" if attention is None or index in attention else "conv" for index in layers]
    if types is not None:
        rest["layer_types"] = types
    return rest | {name: config[old] for old, name in _OLDER.items() if config.get(old) is not None}


_OLDER = {"block_ff_dim": "intermediate_size", "tie_embedding": "tie_word_embeddings"}


def ffn_width(config: Config) -> int:
    """The FFN's width, which transformers' class computes from `intermediate_size`.

    >>> ffn_width({"intermediate_size": 6656, "block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.0,
    ...     "block_multiple_of": 256})
    4608
    """
    width, factor = int(config["intermediate_size"]), config["block_ffn_dim_multiplier"]
    if not config["block_auto_adjust_ff_dim"]:
        return width
    width = int(2 * width / 3)
    if factor is None:
        return width
    whole: int = config["block_multiple_of"]
    return -(-int(factor * width) // whole) * whole


def canonical(config: Config) -> Config:
    """The config of our own class with the same widths, norms and convolutions."""
    heads, layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
    kv_heads, ffn = int(config["num_key_value_heads"]), ffn_width(config)
    conv = [int(kind == "conv") for kind in config.get("layer_types") or ["full_attention"] * layers]
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    return kept | {
        "model_type": "saap_edge", "base_model_type": "lfm2", "architectures": ["SaapEdgeForCausalLM"],
        "rms_norm_eps": config["norm_eps"], "rope_parameters": rope_of(config), "intermediate_size": ffn,
        "hidden_act": "silu", "head_dim": head_dim_of(config),
        "layer_widths": [[0, 0, ffn] if one else [heads, kv_heads, ffn] for one in conv],
        "conv_layers": conv, "conv_taps": config["conv_L_cache"], "qk_norm": True, "norms_after_rope": False,
        "qkv_bias": False, "o_bias": False, "gate_up_bias": False, "down_bias": False,
    }  # fmt: skip


def plain(config: Config) -> Config:
    """The config of transformers' class for one of ours whose layers are alike."""
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    heads, kv_heads, ffn = max(config["layer_widths"])
    return kept | {
        "model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "norm_eps": config["rms_norm_eps"],
        "rope_parameters": rope_of(config), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": config["head_dim"], "intermediate_size": ffn, "block_auto_adjust_ff_dim": False,
        "conv_L_cache": config["conv_taps"], "conv_bias": False,
        "layer_types": ["conv" if one else "full_attention" for one in config["conv_layers"]],
    }  # fmt: skip


def source(config: Config, name: str) -> Source:
    """Where a tensor of ours is stored.

    >>> source({}, "model.layers.3.mlp.up_proj.weight").name
    'model.layers.3.feed_forward.w3.weight'
    """
    return Source(_NAME.sub(lambda found: _NAMES[found[0]], name))


def refuse(config: Config) -> str | None:
    """Why a model cannot be handled, or None."""
    if config.get("model_type") == "saap_edge":
        return refuse_common(config)
    if config["conv_bias"]:
        return "convolutions with biases (conv_bias) are not supported"
    if config["conv_L_cache"] < 2:
        return f"convolutions of {config['conv_L_cache']} token (conv_L_cache) are not supported"
    types = set(config.get("layer_types") or ())
    if odd := types - {"conv", "full_attention"}:
        return f"layer_types has '{min(odd)}'"
    if types == {"conv"}:
        return "it has no layer with attention"
    if ffn_width(config) < 1:
        return f"its FFN would be {ffn_width(config)} wide (intermediate_size, block_ffn_dim_multiplier)"
    return refuse_common({name: value for name, value in config.items() if name != "layer_types"})


_FIXED = "llama.cpp's 'lfm2' has one FFN width for all layers"

FAMILY = Family(
    model_type="lfm2",
    title="LFM2",
    covers="LFM2 and LFM2.5 230M to 2.6B (text; not the mixtures of experts)",
    exports=Exports(
        gguf_uniform="lfm2",
        gguf_layers=Refusal(_FIXED),
        onnx="convolutions",
        gguf_kv_by_layer=True,
    ),
    refuse=refuse,
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 128_000,
        "tie_word_embeddings": True,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    spelled=spelled,
    canonical=canonical,
    source=source,
    plain=plain,
    qk_norm=True,
)
