"""The config.json of a GGUF model, from its metadata and the shapes of its tensors."""

from __future__ import annotations

from typing import Any

from saap_edge.errors import SaapError
from saap_edge.families import Config, family_of
from saap_edge.gguf_file.architectures import UNROTATED_PERIOD, architecture_of
from saap_edge.gguf_file.reader import GgufModel
from saap_edge.gguf_input.rope import rope_parameters
from saap_edge.model.spec import PRUNED_TYPE

__all__ = ["config_of"]

_SCALES = {
    "embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier", "logit_scale": "logits_scaling",
}  # fmt: skip
# llama.cpp recognises Gemma's 27B models by their number of layers, and scales their scores by hidden size / heads.
_LARGEST = {"gemma2": 46, "gemma3": 62}
# transformers' classes whose o has a bias if q, k and v have one; whose FFN may have biases; and which saap_edge's own
# class can replace.
_BIASES_TOGETHER, _MLP_BIASES, _OURS = (
    ("llama", "granite", "qwen3", "smollm3", "hunyuan_v1_dense"), ("llama", "granite", "smollm3"),
    ("llama", "qwen2", "qwen3", "smollm3", "hunyuan_v1_dense"),
)  # fmt: skip
_PERIOD = {"gemma2": 2, "gemma3": 6}  # every second, or sixth, layer has no window


def config_of(model: GgufModel) -> Config:
    """The content of config.json, without token ids.

    Raises SaapError for metadata that is missing, contradictory or not supported.
    """
    architecture = architecture_of(model.architecture, str(model.path))
    _refuse(model)
    embedding = model.shape("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise SaapError(f"'{model.path}' has no token_embd.weight: it is no whole model")
    vocab_size, hidden = embedding
    _agree(model, "embedding_length", hidden, "token_embd.weight")
    if model.key("vocab_size") in model:
        _agree(model, "vocab_size", vocab_size, "token_embd.weight")
    widths = _widths(model)
    head_dim = _head_dim(model, hidden, widths)
    context = model.count(model.key("context_length"))
    if context < 1:
        raise SaapError(f"'{model.path}': {model.key('context_length')} is {context}")
    config: Config = {
        "model_type": architecture.model_type, "vocab_size": vocab_size, "hidden_size": hidden,
        "num_hidden_layers": len(widths), "head_dim": head_dim, "max_position_embeddings": context,
        "rms_norm_eps": model.number(model.key("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in model.tensors,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # else classes set ids of other vocabularies
    }  # fmt: skip
    rope = rope_parameters(model, head_dim, context)
    if architecture.gemma:
        return config | _one_width(model, widths) | _gemma(model, rope, hidden, head_dim, widths)
    # transformers 4 and some families read these fields outside rope_parameters.
    config |= {"rope_parameters": rope, "rope_theta": rope["rope_theta"]}
    if architecture.convolved:
        return config | _lfm2(model, widths)
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if model.architecture == "granite":
        config |= _granite(model, head_dim)
    if model.architecture == "phi3":
        config |= _phi3(model, rope)
    if period := UNROTATED_PERIOD.get(model.architecture):
        config["no_rope_layers"] = [int((index + 1) % period > 0) for index in range(len(widths))]
    config |= _class(model, widths, config)
    return config


def _refuse(model: GgufModel) -> None:
    key = model.key
    if model.count(key("expert_count"), 0):
        raise SaapError(f"'{model.path}' is a mixture of experts, which is not supported")
    if not model.flag(key("attention.causal"), True):
        raise SaapError(f"'{model.path}' sees a text in both directions: it is no decoder")
    if model.text("general.type", "model") != "model":
        raise SaapError(f"'{model.path}' is a {model.text('general.type')}, no model")
    if model.architecture == "granite" and not model.flag(key("rope.scaling.finetuned"), True):
        raise SaapError(f"'{model.path}': this Granite has no rotary positions, which is not supported")


def _agree(model: GgufModel, name: str, found: int, where: str) -> None:
    said = model.count(model.key(name))
    if said != found:
        raise SaapError(f"'{model.path}': {model.key(name)} is {said}, and {where} has {found}")


def _widths(model: GgufModel) -> list[list[int]]:
    """[heads, kv_heads, ffn] of each layer."""
    layers = model.count(model.key("block_count"))
    if not 0 < layers < 10_000:
        raise SaapError(f"'{model.path}': block_count is {layers}")
    heads = model.counts(model.key("attention.head_count"), layers)
    kv_heads = model.counts(model.key("attention.head_count_kv"), layers, None)
    ffn = model.counts(model.key("feed_forward_length"), layers)
    widths = [[q, q if kv is None else kv, f] for q, kv, f in zip(heads, kv_heads, ffn, strict=True)]
    if architecture_of(model.architecture, str(model.path)).convolved:
        widths = [[q if kv else 0, kv, f] for q, kv, f in widths]
    for index, (q, kv, f) in enumerate(widths):
        if (kv and q % kv) or bool(q) != bool(kv):
            raise SaapError(f"'{model.path}': layer {index}: {q} query heads cannot share {kv} kv heads")
        if not f:  # llama.cpp would drop the output of its attention
            raise SaapError(f"'{model.path}': layer {index} has no feed-forward part, which is not supported")
    if not any(q for q, _, _ in widths):
        raise SaapError(f"'{model.path}': no layer has attention, which is not supported")
    return widths


def _head_dim(model: GgufModel, hidden: int, widths: list[list[int]]) -> int:
    heads = next(q for q, _, _ in widths if q)
    key_length = int(model.count(model.key("attention.key_length"), hidden // heads))
    value_length = model.count(model.key("attention.value_length"), hidden // heads)
    if key_length != value_length:
        raise SaapError(f"'{model.path}': keys of {key_length} and values of {value_length} numbers are not supported")
    return key_length


def _lfm2(model: GgufModel, widths: list[list[int]]) -> Config:
    if model.count(model.key("attention.sliding_window"), 0):
        raise SaapError(f"'{model.path}': an LFM2 with a sliding window is not supported")
    return _one_width(model, widths, [layer for layer in widths if layer[1]]) | {
        "norm_eps": model.number(model.key("attention.layer_norm_rms_epsilon")), "block_auto_adjust_ff_dim": False,
        "conv_L_cache": model.count(model.key("shortconv.l_cache")),
        "layer_types": ["full_attention" if kv_heads else "conv" for _, kv_heads, _ in widths],
    }  # fmt: skip


def _one_width(model: GgufModel, widths: list[list[int]], compared: list[list[int]] | None = None) -> Config:
    """The fields of widths that all layers have; `compared`: only these, and all FFNs."""
    compared = compared or widths
    if any(layer != compared[0] for layer in compared) or len({ffn for *_, ffn in widths}) > 1:
        raise SaapError(f"'{model.path}': layers of different widths in architecture '{model.architecture}'")
    heads, kv_heads, ffn = compared[0]
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": ffn}


def _biased(model: GgufModel, *stems: str) -> bool:
    """Whether these projections have a bias. Raises SaapError when only some layers have it."""
    having = {f"blk.{i}.{stem}" for i in range(model.count(model.key("block_count"))) for stem in stems}
    there = {stem for stem in having if f"{stem}.weight" in model.tensors}
    biased = {stem for stem in there if f"{stem}.bias" in model.tensors}
    if biased and biased != there:
        raise SaapError(f"'{model.path}': {min(there - biased)} has no bias, and {min(biased)} has one")
    return bool(biased)


def _class(model: GgufModel, widths: list[list[int]], config: Config) -> Config:
    """Fields for the class that can hold these widths and biases: the family's own if it can, else saap_edge's."""
    qkv = _biased(model, "attn_q", "attn_k", "attn_v", "attn_qkv")
    o, gate, down = _biased(model, "attn_output"), _biased(model, "ffn_gate", "ffn_up"), _biased(model, "ffn_down")
    base, uniform = config["model_type"], all(layer == widths[0] for layer in widths)
    if base == "llama" and qkv and not (o or gate or down):
        base = "qwen2"  # the same arithmetic, with these biases and no others
    heads, kv_heads, ffn = max(widths)
    named = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": ffn}
    fits = config["hidden_size"] % heads == 0 and gate == down and o == (qkv and base in _BIASES_TOGETHER)
    if uniform and fits and (not gate or base in _MLP_BIASES):
        words = {"attention_bias": qkv} if base in _BIASES_TOGETHER else {}
        return named | words | {"model_type": base} | ({"mlp_bias": True} if gate else {})
    by_layer = architecture_of(model.architecture, str(model.path)).by_layer
    if not uniform and not by_layer:
        _one_width(model, widths)
    if base not in _OURS:
        raise SaapError(f"'{model.path}': no class of transformers has the biases and heads of this model")
    return named | {
        "model_type": PRUNED_TYPE, "base_model_type": base, "layer_widths": widths, "qkv_bias": qkv, "o_bias": o,
        "gate_up_bias": gate, "down_bias": down, "qk_norm": "blk.0.attn_q_norm.weight" in model.tensors,
        "norms_after_rope": family_of(base).norms_after_rope,
        "hidden_act": "silu",
    }  # fmt: skip


def _granite(model: GgufModel, head_dim: int) -> Config:
    """Granite's four factors; to llama.cpp 0 means no factor."""
    found: dict[str, Any] = {}
    for key, word in _SCALES.items():
        value = model.number(model.key(key), 0.0)
        found[word] = value or (head_dim**-0.5 if word == "attention_multiplier" else 1.0)
    return found


def _phi3(model: GgufModel, rope: Config) -> Config:
    original = rope.get("original_max_position_embeddings")
    found: Config = {"sliding_window": model.count(model.key("attention.sliding_window"), 0) or None}
    return found | ({"original_max_position_embeddings": original} if original else {})


def _gemma(model: GgufModel, rope: Config, hidden: int, head_dim: int, widths: list[list[int]]) -> Config:
    name, key = model.architecture, model.key
    heads = widths[0][0]
    scalar = hidden // heads if len(widths) == _LARGEST[name] else head_dim
    found: Config = {"query_pre_attn_scalar": scalar, "hidden_activation": "gelu_pytorch_tanh"}
    found["sliding_window"] = model.count(key("attention.sliding_window"))
    found["layer_types"] = _layer_types(model, len(widths))
    for cap, usual in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        value = model.number(key(cap), usual if name == "gemma2" else 0.0)
        found[cap] = value or None
    if name == "gemma2":
        return found | {"rope_parameters": rope, "rope_theta": rope["rope_theta"]}
    if found.pop("attn_logit_softcapping"):
        raise SaapError(f"'{model.path}': a Gemma 3 with a cap on scores is not supported")
    local = float(model.number(key("rope.freq_base_swa"), 10000.0))
    windowed = {"rope_type": "default", "rope_theta": local}
    return found | {
        "rope_parameters": {"full_attention": rope, "sliding_attention": windowed}, "rope_theta": rope["rope_theta"],
        "rope_local_base_freq": local,
    }  # fmt: skip


def _layer_types(model: GgufModel, layers: int) -> list[str]:
    key, usual = model.key("attention.sliding_window_pattern"), _PERIOD[model.architecture]
    said = model.header.metadata.get(key, usual)
    if isinstance(said, list):
        if len(said) != layers:
            raise SaapError(f"'{model.path}': {key} is of {len(said)} layers, block_count says {layers}")
        windowed = [bool(one) for one in said]
    else:
        period = model.count(key, usual)
        windowed = [bool(period) and (index + 1) % period > 0 for index in range(layers)]
    return ["sliding_attention" if one else "full_attention" for one in windowed]
