"""Gemma 4, dense: layers with a window and without, whose heads differ in size, and embeddings of every layer's own.

The last layers may borrow keys and values: each reads those of the last layer of its kind that has its own. The text
part of a model that also sees images or hears is read alone. Models are handled as our own class, whose layers differ
in heads and in the width of the FFN.
"""

from __future__ import annotations

from typing import Any

from saap_edge.families.base import Config, Exports, Family, Gemma, Source, refuse_common
from saap_edge.families.gemma2 import GELU
from saap_edge.families.rope import refuse_rope, rope_of

_KEPT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "head_dim", "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings", "bos_token_id",
    "eos_token_id", "pad_token_id", "use_cache", "dtype", "torch_dtype", "quantization_config", "sliding_window",
    "num_kv_shared_layers", "hidden_size_per_layer_input", "vocab_size_per_layer_input", "final_logit_softcapping",
)  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"
_EVERY = 6  # without layer_types: every so many layers one has no window
_ROPE: Config = {
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
}
_BY_LAYER = ("head_dim", "num_key_value_heads")  # what transformers' class reads in per_layer_config
NO_DEPTH = (
    "its layers also add embeddings of their own, and lend keys and values to later ones, so that saap-edge takes no "
    "whole sublayers out of them"
)


def kinds_of(config: Config) -> list[str]:
    """The kind of every layer. The last has no window, whatever config.json says, as in transformers' class.

    >>> kinds_of({"num_hidden_layers": 2, "layer_types": ["sliding_attention", "sliding_attention"]})
    ['sliding_attention', 'full_attention']
    """
    count = int(config["num_hidden_layers"])
    said = config.get("layer_types") or [FULL if (index + 1) % _EVERY == 0 else SLIDING for index in range(count)]
    return [*said[:-1], FULL]


def heads_of(config: Config) -> list[tuple[int, int]]:
    """(size of a head, KV heads) of every layer: by `per_layer_config`, or by the older fields for all without window.

    >>> heads_of({"num_hidden_layers": 2, "head_dim": 256, "num_key_value_heads": 2, "global_head_dim": 512})
    [(256, 2), (512, 2)]
    """
    usual, kinds = (int(config["head_dim"]), int(config["num_key_value_heads"])), kinds_of(config)
    if config.get("per_layer_config") is not None:
        layers = {int(index): layer for index, layer in config["per_layer_config"].items()}
        named = [layers.get(index, {}) for index in range(len(kinds))]
        size, heads = _BY_LAYER
        return [(int(layer.get(size, usual[0])), int(layer.get(heads, usual[1]))) for layer in named]
    fewer = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
    full = int(config.get("global_head_dim") or 512), int(fewer or usual[1])
    return [full if kind == FULL else usual for kind in kinds]


def canonical(config: Config) -> Config:
    """The config of our own class with the same widths."""
    kinds, heads, ffn = kinds_of(config), int(config["num_attention_heads"]), int(config["intermediate_size"])
    first = len(kinds) - int(config.get("num_kv_shared_layers") or 0)
    wide = 2 if config.get("use_double_wide_mlp") else 1
    own, kept = heads_of(config), {name: config[name] for name in _KEPT if config.get(name) is not None}
    return kept | {
        "model_type": "saap_edge", "base_model_type": "gemma4_text", "architectures": ["SaapEdgeForCausalLM"],
        "rope_parameters": {kind: dict(config["rope_parameters"][kind]) for kind in (SLIDING, FULL)},
        "hidden_act": GELU, "layer_types": kinds, "global_head_dim": own[-1][0],
        "layer_widths": [
            [heads, kv_heads, ffn * (wide if index >= first else 1)] for index, (_, kv_heads) in enumerate(own)
        ],
        "qk_norm": True, "norms_after_rope": False, "gated_attention": False, "centred_norms": False,
        "qkv_bias": False, "o_bias": False, "gate_up_bias": False, "down_bias": False,
    }  # fmt: skip


def plain(config: Config) -> Config | None:
    """The config of transformers' class for one of ours, or None where its layers differ in what that class has once.

    Layers with a window and without may have other KV heads, query heads are the same in all, and FFNs of layers that
    borrow keys and values may be twice as wide. The class reads `per_layer_config`, but cannot be built where layers of
    one type differ in it (transformers 5.24).
    """
    widths, borrowed = config["layer_widths"], int(config.get("num_kv_shared_layers") or 0)
    own = {ffn for *_, ffn in widths[: len(widths) - borrowed]}
    theirs = {ffn for *_, ffn in widths[len(widths) - borrowed :]} if borrowed else own
    heads = {queries for queries, *_ in widths}
    shared = {(kind, kv_heads) for kind, (_, kv_heads, _) in zip(config["layer_types"], widths, strict=True)}
    alike = (len(own), len(theirs), len(heads), len(shared)) == (1, 1, 1, len({*config["layer_types"]}))
    if not alike or (theirs != own and theirs != {2 * max(own)}):
        return None
    kept = {name: config[name] for name in _KEPT if config.get(name) is not None}
    full = {"head_dim": config["global_head_dim"]}
    return kept | {
        "model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"], "layer_types": config["layer_types"],
        "rope_parameters": {kind: config["rope_parameters"][kind] for kind in (SLIDING, FULL)},
        "num_attention_heads": max(heads), "num_key_value_heads": widths[0][1], "intermediate_size": max(own),
        "use_double_wide_mlp": theirs != own, "attention_k_eq_v": False, "hidden_activation": GELU,
        "hidden_size_per_layer_input": config.get("hidden_size_per_layer_input") or 0,
        "per_layer_config": {
            str(index): (full if kind == FULL else {}) | {"num_key_value_heads": kv_heads}
            for index, (kind, (_, kv_heads, _)) in enumerate(zip(config["layer_types"], widths, strict=True))
        },
    }  # fmt: skip


def source(config: Config, name: str) -> Source:
    """Where a tensor of ours is stored. Where keys are values too (`attention_k_eq_v`), both are read from the keys'.

    >>> config = {"attention_k_eq_v": True, "num_hidden_layers": 2}
    >>> source(config, "model.layers.1.self_attn.v_proj.weight").name
    'model.layers.1.self_attn.k_proj.weight'
    """
    part, _, rest = name.removeprefix("model.layers.").partition(".self_attn.v_proj.")
    if rest and config.get("attention_k_eq_v") and kinds_of(config)[int(part)] == FULL:
        return Source(name.replace("v_proj", "k_proj"))
    return Source(name)


def traits(config: Config) -> list[dict[str, Any]]:
    """What the layers of one of our configs have beside widths: heads of another size, keys and values of others."""
    kinds = config["layer_types"]
    first = len(kinds) - int(config.get("num_kv_shared_layers") or 0)
    lenders = {max(index for index in range(first) if kinds[index] == kind) for kind in kinds[first:]}
    own, size = int(config["head_dim"]), int(config["global_head_dim"])
    return [
        {
            "head_dim": size if kind == FULL and size != own else 0,
            "kv": "borrowed" if index >= first else "lent" if index in lenders else "",
        }
        for index, kind in enumerate(kinds)
    ]


def gemma(config: Config) -> Gemma:
    """What one of our configs says of Gemma's arithmetic. Scores are not scaled, as queries and keys are normalised."""
    rope = config["rope_parameters"]
    turned = rope[FULL].get("partial_rotary_factor", 1.0) if rope[FULL]["rope_type"] == "proportional" else 1.0
    return Gemma(
        attention_scalar=1.0, attention_cap=None, final_cap=config.get("final_logit_softcapping"),
        window=int(config["sliding_window"]), windowed=tuple(kind == SLIDING for kind in config["layer_types"]),
        window_theta=float(rope[SLIDING]["rope_theta"]), per_layer=int(config.get("hidden_size_per_layer_input") or 0),
        turned=float(turned), scaled=True, plain_values=True,
    )  # fmt: skip


def refuse(config: Config) -> str | None:
    """Why a model cannot be handled, or None."""
    kinds = kinds_of(config)
    if odd := {*kinds} - {FULL, SLIDING}:
        return f"layer_types has '{min(odd)}'"
    if reason := _refuse_rope(config) or _refuse_feature(config) or _refuse_heads(config):
        return reason
    first = len(kinds) - int(config.get("num_kv_shared_layers") or 0)
    if missing := {*kinds} - {*kinds[: max(first, 0)]}:
        return f"no layer of type '{min(missing)}' has keys and values of its own (num_kv_shared_layers)"
    act = config["hidden_act"] if config.get("model_type") == "saap_edge" else config["hidden_activation"]
    rest = {name: value for name, value in config.items() if name not in ("rope_parameters", "hidden_activation")}
    return refuse_common(rest | {"hidden_act": act}, GELU)


def _refuse_rope(config: Config) -> str | None:
    for kind in (SLIDING, FULL):
        rope = (config["rope_parameters"] or {}).get(kind)
        if not isinstance(rope, dict):
            return f"rope_parameters has nothing for '{kind}'"
        parsed, share = rope_of({"rope_parameters": rope}), rope.get("partial_rotary_factor", 1.0)
        proportional = parsed["rope_type"] == "proportional"
        if proportional and (kind == SLIDING or rope.get("factor", 1.0) != 1.0):
            return f"rope scaling 'proportional' of '{kind}' is supported without a factor, in layers without window"
        if not isinstance(share, int | float) or not 0 < share <= 1:
            return f"partial_rotary_factor of '{kind}' is {share!r}"
        parsed |= {"rope_type": "default"} if proportional else {}
        if reason := refuse_rope(parsed, 2, partial=True, kinds=("default",)):
            return reason
    return None


def _refuse_feature(config: Config) -> str | None:
    if config.get("enable_moe_block"):
        return "mixtures of experts (enable_moe_block) are not supported"
    if config.get("attention_bias"):
        return "attention with biases (attention_bias) is not supported"
    if config.get("use_bidirectional_attention") == "all":
        return "bidirectional attention is not supported: this is no decoder"
    if config.get("num_kv_shared_layers") and not config.get("hidden_size_per_layer_input"):
        return "borrowed keys and values without embeddings of every layer's own, which transformers cannot run"
    if config.get("hidden_size_per_layer_input") and config["vocab_size_per_layer_input"] != config["vocab_size"]:
        rows, own = config["vocab_size_per_layer_input"], config["vocab_size"]
        return f"a table of {rows} tokens for layers (vocab_size_per_layer_input), and {own} for the model"
    return None if config.get("sliding_window") else "it has no sliding_window"


def _refuse_heads(config: Config) -> str | None:
    if config.get("model_type") == "saap_edge":
        return None
    layers, count = config.get("per_layer_config") or {}, int(config["num_hidden_layers"])
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        return "per_layer_config is no object with an object for each layer"
    for key, layer in layers.items():
        if not str(key).isdecimal() or int(key) >= count:
            return f"per_layer_config names a layer '{key}', and there are layers 0 to {count - 1}"
        if odd := [name for name, value in layer.items() if name not in _BY_LAYER and value != config.get(name)]:
            return f"per_layer_config: layer {key} has a {odd[0]} of its own (known: {', '.join(_BY_LAYER)})"
        for name in layer:
            if not isinstance(layer[name], int) or isinstance(layer[name], bool) or not 1 <= layer[name] < 2**31:
                return f"per_layer_config: layer {key}: {name} is {layer[name]!r}: it takes a number from 1"
    own, kinds, queries = heads_of(config), kinds_of(config), int(config["num_attention_heads"])
    pairs = {*zip(kinds, own, strict=True)}
    if odd_kind := next((kind for kind in (FULL, SLIDING) if sum(each == kind for each, _ in pairs) > 1), None):
        return f"layers of type '{odd_kind}' differ in the number or the size of heads"
    if bad := next((kv_heads for _, kv_heads in own if queries % kv_heads), None):
        return f"{queries} attention heads cannot share {bad} key-value heads"
    return None


FAMILY = Family(
    model_type="gemma4_text",
    title="Gemma 4",
    covers="Gemma 4 E2B, E4B and 31B (text; not the mixtures of experts)",
    exports=Exports(
        gguf_uniform="gemma4",
        gguf_layers="gemma4",
        onnx="gemma4",
    ),
    refuse=refuse,
    defaults={
        "num_key_value_heads": 4, "num_attention_heads": 8, "head_dim": 256, "max_position_embeddings": 131072,
        "tie_word_embeddings": True, "hidden_activation": GELU, "sliding_window": 512, "rope_parameters": _ROPE,
        "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262144, "final_logit_softcapping": None,
        "num_hidden_layers": 30,
    },
    canonical=canonical,
    source=source,
    plain=plain,
    traits=traits,
    by_layer=True,
    no_depth=NO_DEPTH,
    qk_norm=True,
    gemma=gemma,
    whole="gemma4",
    dropped=("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio."),
)  # fmt: skip
