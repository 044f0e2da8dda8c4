"""Nemotron-H, dense: blocks of one sublayer each, a Mamba-2, attention without positions, or an FFN without gate.

FFN channels and KV groups leave; a Mamba-2 block stays as it is. The models are handled as our own class, in which such
a block is a layer that lacks attention, FFN or both.
"""

from __future__ import annotations

import re

from saap_edge.families.base import UNGATED_CHANNEL, Config, Exports, Family, Source, refuse_common

_KEPT = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "max_position_embeddings", "initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id", "use_cache", "dtype", "torch_dtype", "quantization_config", "mamba_num_heads", "mamba_head_dim",
    "ssm_state_size", "n_groups", "conv_kernel", "use_conv_bias", "time_step_min", "chunk_size",
)  # fmt: skip
_MAMBA, _ATTENTION, _FFN, _EXPERTS = "linear_attention", "full_attention", "mlp", "moe"
_LETTERS = {"M": _MAMBA, "*": _ATTENTION, "-": _FFN, "E": _EXPERTS}  # of hybrid_override_pattern
_OLDER = {"mamba": _MAMBA, "attention": _ATTENTION}
_OLDER_NAMES = {
    "mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_conv_bias": "use_conv_bias",
    "mamba_dt_min": "time_step_min", "mamba_chunk_size": "chunk_size",
}  # fmt: skip
# Our names -> transformers', as which the tensors are stored.
_NAMES = {
    "model.embed_tokens": "model.embeddings", "model.norm": "model.norm_f", "input_layernorm": "norm",
    "post_attention_layernorm": "norm", "self_attn": "mixer", "mlp": "mixer", "mamba": "mixer",
}  # fmt: skip
_NAME = re.compile("|".join(rf"{re.escape(name)}(?=\.)" for name in _NAMES))


def spelled(config: Config) -> Config:
    """The config with the older names of its fields replaced, which transformers' class takes too.

    >>> spelled({"num_hidden_layers": 9, "hybrid_override_pattern": "M-*", "mamba_d_conv": 4})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'num_hidden_layers': 3, 'conv_kernel': 4, 'layers_block_type': ['linear_attention', 'mlp', 'full_attention']}
    """
    rest = {name: value for name, value in config.items() if name not in (*_OLDER_NAMES, *_LISTS)}
    rest |= {name: config[old] for old, name in _OLDER_NAMES.items() if old in config}
    first, second = ([_OLDER.get(kind, kind) for kind in config.get(name) or ()] for name in _LISTS[:2])
    kinds = first or second or [_LETTERS.get(letter, letter) for letter in config.get("hybrid_override_pattern") or ""]
    if kinds:
        rest |= {"layers_block_type": kinds, "num_hidden_layers": len(kinds)}
    if first and second and first != second:
        rest["layer_types"] = second
    return rest


_LISTS = ("layers_block_type", "layer_types", "hybrid_override_pattern")


def canonical(config: Config) -> Config:
    """The config of our own class with the same widths and blocks."""
    kinds = config["layers_block_type"]
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    widths = {_MAMBA: [0, 0, 0], _ATTENTION: [heads, kv_heads, 0], _FFN: [0, 0, int(config["intermediate_size"])]}
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    return kept | {
        "model_type": "saap_edge", "base_model_type": "nemotron_h", "architectures": ["SaapEdgeForCausalLM"],
        "num_hidden_layers": len(kinds), "rms_norm_eps": config["layer_norm_epsilon"], "hidden_act": "relu2",
        "gated_mlp": False, "layer_widths": [list(widths[kind]) for kind in kinds],
        "mamba_layers": [int(kind == _MAMBA) for kind in kinds], "no_rope_layers": [0] * len(kinds),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "qkv_bias": False, "o_bias": False,
        "gate_up_bias": bool(config["mlp_bias"]), "down_bias": bool(config["mlp_bias"]),
    }  # fmt: skip


def plain(config: Config) -> Config:
    """The config of transformers' class for one of ours whose layers are alike."""
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    widths = config["layer_widths"]
    ffn = max(ffn for *_, ffn in widths) or config["intermediate_size"]
    heads, kv_heads = max((heads, kv_heads) for heads, kv_heads, _ in widths)
    kinds = [
        _MAMBA if mamba else _ATTENTION if layer[0] else _FFN
        for layer, mamba in zip(widths, config["mamba_layers"], strict=True)
    ]
    return kept | {
        "model_type": "nemotron_h", "architectures": ["NemotronHForCausalLM"], "layers_block_type": kinds,
        "num_hidden_layers": len(kinds), "layer_norm_epsilon": config["rms_norm_eps"], "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": ffn, "mlp_hidden_act": "relu2",
        "mamba_hidden_act": "silu", "mlp_bias": config["down_bias"], "use_bias": False, "attention_bias": False,
    }  # fmt: skip


def source(config: Config, name: str) -> Source:
    """Where a tensor of ours is stored.

    >>> [source({}, f"model.{name}.weight").name for name in ("layers.3.mlp.up_proj", "layers.0.mamba.norm", "norm")]
    ['model.layers.3.mixer.up_proj.weight', 'model.layers.0.mixer.norm.weight', 'model.norm_f.weight']
    """
    return Source(_NAME.sub(lambda found: _NAMES[found[0]], name))


def refuse(config: Config) -> str | None:
    """Why a model cannot be handled, or None."""
    if config.get("model_type") == "saap_edge":
        return refuse_common(config, "relu2")
    kinds = config.get("layers_block_type") or [_EXPERTS]  # transformers' default has some
    if _EXPERTS in kinds:
        return "mixtures of experts are not supported"
    if config.get("layer_types"):
        return "layers_block_type and layer_types say different blocks"
    if odd := set(kinds) - set(_LETTERS.values()):
        return f"layers_block_type has '{min(odd)}'"
    for kind, name in ((_ATTENTION, "attention"), (_MAMBA, "a Mamba-2")):
        if kind not in kinds:
            return f"it has no block with {name}"
    for field, wanted in (("mlp_hidden_act", "relu2"), ("mamba_hidden_act", "silu")):
        if config[field] != wanted:
            return f"{field} '{config[field]}' is not supported (supported: {wanted})"
    if config["use_bias"]:
        return "Mamba-2 blocks whose projections have biases (use_bias) are not supported"
    if config["tie_word_embeddings"]:
        return "transformers' class has a head of its own, whatever tie_word_embeddings says: set it to false"
    if config["conv_kernel"] < 2:
        return f"convolutions of {config['conv_kernel']} token (conv_kernel) are not supported"
    heads, groups = config["mamba_num_heads"], config["n_groups"]
    if heads % groups:
        return f"{heads} heads of a Mamba-2 (mamba_num_heads) cannot share {groups} groups (n_groups)"
    return None


FAMILY = Family(
    model_type="nemotron_h",
    title="Nemotron-H",
    covers="Nemotron-H 4B, 8B, 47B, 56B, Nemotron Nano 2 9B and 12B, Nemotron 3 Nano 4B (not the mixtures of experts)",
    exports=Exports(gguf_uniform="nemotron_h", gguf_layers="nemotron_h", onnx="mamba"),
    mlp_bias=lambda config: bool(config["mlp_bias"]),
    refuse=refuse,
    defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 21504,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-5,
        "mlp_hidden_act": "relu2",
        "mlp_bias": False,
        "use_bias": False,
        "mamba_hidden_act": "silu",
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
        "use_conv_bias": True,
        "time_step_min": 0.001,
        "chunk_size": 128,
    },
    spelled=spelled,
    canonical=canonical,
    source=source,
    plain=plain,
    dropped=("mtp.",),
    stem="backbone.",
    ffn=UNGATED_CHANNEL,
)
