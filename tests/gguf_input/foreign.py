"""GGUF files as others write them: llama.cpp's architectures, names from gguf-py's own table, its converter's layouts.

Nothing of saap_edge is used, so that one side's mistake is not the other's too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "granite": gguf.MODEL_ARCH.GRANITE,
    "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3, "phi3": gguf.MODEL_ARCH.PHI3,
    "ernie4_5": gguf.MODEL_ARCH.ERNIE4_5, "hunyuan_v1_dense": gguf.MODEL_ARCH.HUNYUAN_DENSE,
    "gemma2": gguf.MODEL_ARCH.GEMMA2, "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3, "lfm2": gguf.MODEL_ARCH.LFM2,
}  # fmt: skip
_PERMUTED = ("llama", "mistral", "granite", "smollm3")
TOKENS = ["<|end|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "he", "Ġt", "Ġthe", "in"]
MERGES = ["Ġ a", "h e", "Ġ t", "Ġt he", "i n"]


def writer_of(model: PreTrainedModel, path: Path) -> gguf.GGUFWriter:
    """A writer with everything but tensors."""
    config: Any = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[family]])
    writer.add_type("model")
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if family == "lfm2":
        kinds = config.layer_types
        writer.add_head_count_kv([0 if kind == "conv" else config.num_key_value_heads for kind in kinds])
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps if family == "lfm2" else config.rms_norm_eps)
    _add_rope(writer, config, family)
    if family != "phi3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if family == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if family.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    add_vocabulary(writer, config.vocab_size)
    return writer


def _add_rope(writer: gguf.GGUFWriter, config: Any, family: str) -> None:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    alpha = rope.get("alpha", 1.0) ** (config.head_dim / (config.head_dim - 2))
    writer.add_rope_freq_base(rope["rope_theta"] * alpha)
    if family not in ("gemma2", "gemma3_text"):
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "longrope":
        scale = config.max_position_embeddings / rope["original_max_position_embeddings"]
        factor = math.sqrt(1 + math.log(scale) / math.log(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(factor)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Byte-level BPE of TOKENS, filled up as the converter does."""
    tokens = [*TOKENS, *(f"[PAD{index}]" for index in range(len(TOKENS), size))]
    kinds = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 2)
    kinds += [gguf.TokenType.UNUSED] * (size - len(kinds))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")


def tensors_of(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """float32 by llama.cpp's names, in its layout."""
    config: Any = model.config
    family = config.model_type
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], config.num_hidden_layers)
    found = _rope_tables(config, family)
    tied = config.tie_word_embeddings
    for name, values in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        data = values.float().numpy()
        if family in _PERMUTED and ".q_proj." in name:
            data = _permuted(data, config.num_attention_heads)
        if family in _PERMUTED and ".k_proj." in name:
            data = _permuted(data, config.num_key_value_heads)
        if family.startswith("gemma") and "norm." in name:
            data = data + 1
        if name.endswith("conv.conv.weight"):
            data = data.squeeze(1)
        found[names.get_name(name, try_suffixes=(".weight", ".bias")) or name] = data
    return found


def _permuted(data: np.ndarray, heads: int) -> np.ndarray:
    return data.reshape(heads, 2, data.shape[0] // heads // 2, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def _rope_tables(config: Any, family: str) -> dict[str, np.ndarray]:
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope":
        names = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
        return {name: np.array(rope[key], np.float32) for key, name in names.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    original = rope["original_max_position_embeddings"]
    table = []
    for frequency in 1.0 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim):
        wavelength = 2 * math.pi / frequency
        if wavelength < original / high:
            table.append(1.0)
        elif wavelength > original / low:
            table.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            table.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(table, np.float32)}


def finish(writer: gguf.GGUFWriter, tensors: dict[str, np.ndarray]) -> None:
    for name, data in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_foreign(model: PreTrainedModel, path: Path) -> Path:
    """The model as one float32 file."""
    finish(writer_of(model, path), tensors_of(model))
    return path
