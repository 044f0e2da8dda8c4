"""Widths per layer as other programs write them in config.json, brought into our own form (`layer_widths`).

- `per_layer_config` is the field of transformers from 5.14 on: {"3": {"intermediate_size": 64, "skip": ["attention"]}}.
  Layers and fields that it does not name are as config.json says for all. transformers' own classes of our families do
  not build such models: they raise an error, or, where layers only skip, build the whole model and say nothing.
- `block_configs` is that of NVIDIA's DeciLM and Puzzle models, under the family's own name or as `nemotron-nas`, whose
  arithmetic is Llama's.
"""

from __future__ import annotations

from typing import Any

from saap_edge.errors import SaapError
from saap_edge.families import FAMILIES, Config
from saap_edge.model.modeling_saap_edge import AUTO_MAP, LINEAR_WIDTHS, SKIPS, WIDTHS, width_names, widths_by_layer
from saap_edge.model.spec import PRUNED_TYPE, ModelSpec, canonical_config, config_family, spec_from_config

__all__ = ["in_our_form", "pruned_config"]

SPARSE, BLOCKS, PUZZLE = "per_layer_config", "block_configs", "nemotron-nas"
_NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
_KEPT = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_parameters", "rope_theta", "rope_scaling",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "dtype", "torch_dtype",
    "quantization_config", "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
    "linear_value_head_dim", "linear_conv_kernel_dim", "mamba_num_heads", "mamba_head_dim", "ssm_state_size",
    "n_groups", "conv_kernel", "use_conv_bias", "time_step_min", "chunk_size", "gated_mlp",
)  # fmt: skip
# What Gemma 4 has besides; `layer_types` of other families are said by fields of our own.
_KEPT_OF_GEMMA = (
    "layer_types", "sliding_window", "global_head_dim", "num_kv_shared_layers", "hidden_size_per_layer_input",
    "vocab_size_per_layer_input", "final_logit_softcapping",
)  # fmt: skip


def pruned_config(source: Config, spec: ModelSpec, widths: list[list[int]], o_bias: bool, down_bias: bool) -> Config:
    """config.json of our own class, with these widths: [heads, kv_heads, ffn] of every layer.

    `source` and `spec` are of the model in its canonical form. Which layers are unrotated, and what is
    in the place of attention, is as in `spec`.
    """
    rotated = [int(index not in spec.unrotated) for index in range(len(widths))]
    kinds, kept = ("conv", "linear", "mamba"), (*_KEPT, *(_KEPT_OF_GEMMA if spec.gemma else ()))
    conv, linear, mamba = ([int(getattr(layer, kind)) for layer in spec.layers] for kind in kinds)
    return {name: source[name] for name in kept if name in source} | {
        "model_type": PRUNED_TYPE, "base_model_type": spec.family.model_type, "num_hidden_layers": len(widths),
        "head_dim": spec.head_dim, "layer_widths": widths, "qkv_bias": spec.qkv_bias, "o_bias": o_bias,
        "gate_up_bias": spec.gate_up_bias, "down_bias": down_bias, "qk_norm": spec.family.qk_norm,
        "norms_after_rope": spec.family.norms_after_rope, "no_rope_layers": rotated if spec.unrotated else None,
        "conv_layers": conv if spec.taps else None, "conv_taps": spec.taps or None,
        "linear_layers": linear if spec.delta else None, "gated_attention": spec.family.gated,
        "centred_norms": spec.family.centred_norms, "mamba_layers": mamba if spec.mamba else None,
        "auto_map": AUTO_MAP, "architectures": ["SaapEdgeForCausalLM"],
    }  # fmt: skip


def in_our_form(config: Config) -> Config:
    """The config itself, or our own form of one that has widths per layer in another.

    Raises SaapError when it says what is not known, contradicts itself, or is of a family without widths per layer.

    >>> config = in_our_form({"model_type": "llama", "vocab_size": 100, "hidden_size": 16, "num_attention_heads": 4,
    ...     "intermediate_size": 32, "num_hidden_layers": 2, "per_layer_config": {"1": {"skip": ["mlp"]}}})
    >>> config["model_type"], config["base_model_type"], config["layer_widths"]
    ('saap_edge', 'llama', [[4, 4, 32], [4, 4, 0]])
    """
    known = FAMILIES.get(str(config.get("model_type")))
    if known and known.by_layer and config.get(SPARSE) is not None and not config.get(BLOCKS):
        return config
    said = [name for name in (SPARSE, BLOCKS) if config.get(name)]
    rest = {name: value for name, value in config.items() if name not in (SPARSE, BLOCKS)}
    if config.get("model_type") == PUZZLE:
        if said != [BLOCKS]:
            raise SaapError(f"a '{PUZZLE}' model without {BLOCKS} is not supported")
        rest["model_type"] = "llama"
    if not said:
        return config if len(rest) == len(config) else rest
    if len(said) > 1:
        raise SaapError(f"both {SPARSE} and {BLOCKS} say what layers have: one of them is wrong")
    sparse = said == [SPARSE]
    needed = (*_NEEDED, "intermediate_size") if sparse else _NEEDED
    missing = [name for name in needed if rest.get(name) is None]
    if missing:
        raise SaapError(f"{said[0]} needs {', '.join(missing)} beside it, for all layers")
    if rest["model_type"] == PRUNED_TYPE:
        return _ours(rest, config[said[0]], sparse)
    family, _ = config_family(rest)
    reason = family.uniform_only or (family.source and "its tensors are stored in a layout of one width for all")
    if reason:
        raise SaapError(f"this {family.title} model cannot be handled: {said[0]} gives its layers widths: {reason}")
    if sparse:
        first = spec_from_config(rest).attention
        usual = rest | dict(zip(WIDTHS, (first.heads, first.kv_heads, first.ffn), strict=True))
        widths = _sparse(rest, config[SPARSE], usual)
    else:
        widths = _blocks(rest, config[BLOCKS])
        # These models have no width for all, and say null.
        rest |= {"intermediate_size": max(ffn for *_, ffn in widths), "num_key_value_heads": None}
    canonical = canonical_config(rest)
    spec = spec_from_config(canonical)
    return pruned_config(canonical, spec, widths, spec.o_bias, spec.down_bias)


def _ours(config: Config, layers: Any, sparse: bool) -> Config:
    """A folder of ours: what it says twice must be the same; what it says once is enough."""
    if not sparse:
        raise SaapError(f"a '{PRUNED_TYPE}' model says its widths in layer_widths: {BLOCKS} is not read beside it")
    usual = config | {name: config.get(name) or config["num_attention_heads"] for name in WIDTHS}
    widths, ours = _sparse(config, layers, usual), config.get("layer_widths")
    if ours is not None and list(map(list, ours)) != widths:
        raise SaapError(f"layer_widths and {SPARSE} say different widths: one of them is wrong")
    return config | {"layer_widths": widths}


def _sparse(config: Config, layers: Any, usual: Config) -> list[list[int]]:
    """Widths by `per_layer_config`; `usual` has those of layers that it does not name."""
    count, linear = int(config["num_hidden_layers"]), config.get("linear_layers")
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise SaapError(f"{SPARSE} is no object with an object for each layer")
    for key, layer in layers.items():
        if not str(key).isdecimal() or int(key) >= count:
            raise SaapError(f"{SPARSE} names a layer '{key}', and there are layers 0 to {count - 1}")
        names = width_names(linear, int(key))
        known = {*names, "skip"}
        odd = [name for name, value in layer.items() if name not in known and value != config.get(name, ...)]
        if odd:
            raise SaapError(f"{SPARSE}: layer {key} has a {odd[0]} of its own (known: {', '.join(sorted(known))})")
        for name in names:
            _width(f"{SPARSE}: layer {key}: {name}", layer.get(name, 1))
        skipped = layer.get("skip", [])
        if not isinstance(skipped, list) or not set(skipped) <= set(SKIPS):
            raise SaapError(f"{SPARSE}: layer {key} skips {skipped!r} (known: {', '.join(SKIPS)})")
    if len({int(key) for key in layers}) < len(layers):
        raise SaapError(f"{SPARSE} names a layer twice")
    if config.get("head_dim") is None and any("num_attention_heads" in layer for layer in layers.values()):
        raise SaapError(f"{SPARSE} gives layers heads of their own, and config.json has no head_dim")
    if linear and not all(config.get(name) for name in LINEAR_WIDTHS):
        raise SaapError(f"{SPARSE} beside linear_layers needs {', '.join(LINEAR_WIDTHS)}, for all layers")
    return widths_by_layer(layers, usual, count)


def _width(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        raise SaapError(f"{where} is {value!r}: it takes a number from 1")
    return value


# Fields of a block that change nothing where they say so.
_NOTHING: tuple[Any, ...] = (None, False, 0, [], {})
_OF_ATTENTION = ("n_heads_in_group", "num_key_value_heads", "no_op")
_OF_FFN = ("ffn_mult", "intermediate_size", "no_op", "hidden_act", "gated")


def _blocks(config: Config, blocks: Any) -> list[list[int]]:
    """Widths by `block_configs`."""
    count, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if not isinstance(blocks, list) or len(blocks) != count:
        raise SaapError(f"{BLOCKS} is no list of {count} layers, as num_hidden_layers says")
    widths = []
    for index, block in enumerate(blocks):
        attention, ffn = (_part(block, name, index) for name in ("attention", "ffn"))
        for name, part, known in (("attention", attention, _OF_ATTENTION), ("ffn", ffn, _OF_FFN)):
            odd = [key for key, value in part.items() if key not in known and value not in _NOTHING]
            if odd:
                raise SaapError(f"{BLOCKS}: layer {index}: its {name} has {odd[0]} {part[odd[0]]!r}, which is not read")
        kv_heads = _kv_heads(attention, heads, f"{BLOCKS}: layer {index}")
        widths.append([heads if kv_heads else 0, kv_heads, _ffn(ffn, config, f"{BLOCKS}: layer {index}")])
    return widths


def _part(block: Any, name: str, index: int) -> dict[str, Any]:
    part = block.get(name) if isinstance(block, dict) else None
    if not isinstance(part, dict):
        raise SaapError(f"{BLOCKS}: layer {index} does not say its {name}")
    return part


def _kv_heads(attention: dict[str, Any], heads: int, where: str) -> int:
    if attention.get("no_op"):
        return 0
    if attention.get("num_key_value_heads") is not None:
        return _width(f"{where}: num_key_value_heads", attention["num_key_value_heads"])
    return heads // _width(f"{where}: n_heads_in_group", attention.get("n_heads_in_group"))


def _ffn(ffn: dict[str, Any], config: Config, where: str) -> int:
    """The FFN's width; from `ffn_mult` as DeciLM computes it, in multiples of 256."""
    if ffn.get("no_op"):
        return 0
    if ffn.get("hidden_act", config.get("hidden_act", "silu")) not in (None, config.get("hidden_act", "silu")):
        raise SaapError(f"{where} has hidden_act {ffn['hidden_act']!r}, and the model another")
    if ffn.get("gated") is False:
        raise SaapError(f"{where} has an FFN without gate, which is not supported")
    if ffn.get("intermediate_size") is not None:
        return _width(f"{where}: intermediate_size", ffn["intermediate_size"])
    factor = ffn.get("ffn_mult")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < 1e6:
        raise SaapError(f"{where}: ffn_mult is {factor!r}: it takes a positive number")
    return -(-int(2 * factor * config["hidden_size"] / 3) // 256) * 256
