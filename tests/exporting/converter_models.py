"""Tiny models that are the same, bit for bit, on every machine, and what matters of a GGUF file made from them.

Weights come from a formula in integers and exact divisions, the tokenizer from a written list of merges: no random
generator, no training, whose results another version could change.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.conftest import QWEN2_SPLIT

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
# Uniform models by name: model_type and what it has beside SHAPE.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-untied-biases": ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
    "llama-rope": ("llama", {"rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", {}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {}),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False}),
}
TYPES = ("f32", "f16", "bf16", "q8_0")
VOCABULARY = 288
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
    "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 257, "rope_theta": 5000.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
BY_VALUE = "rope_freqs.weight"  # computed, not stored in the model: equal to rounding


def values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """float32 in -0.25..0.25 that depend on name and place: multiples of 2^-26, by a multiplicative hash."""
    places = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))
    hashed = (places * np.uint64(2654435761) ^ places >> np.uint64(7)) % np.uint64(1 << 24)
    return torch.from_numpy(((hashed.astype(np.float64) - (1 << 23)) / (1 << 25)).astype(np.float32).reshape(shape))


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE: 256 bytes, three special tokens, one added word, merges after them.

    transformers gives every qwen2 folder an <|endoftext|> that has none.
    """
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "</s>", "<|endoftext|>"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a")]
    tokens += ["".join(pair) for pair in merges]
    built = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family == "llama")
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    built.pre_tokenizer = byte_level if family == "llama" else pre_tokenizers.Sequence([split, byte_level])
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<s>", "</s>", "<|endoftext|>"])
    built.add_tokens(["<tool>"])
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>", pad_token="<|endoftext|>")


def write_case(name: str, folder: Path) -> Path:
    """The Hugging Face folder of a case."""
    family, overrides = CASES[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE | overrides))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(values(parameter_name, tuple(parameter.shape)))
    model.save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()[:24]


def tensors(path: Path) -> dict[str, list[Any]]:
    """name -> [type, shape as GGUF has it, digest of the data, or the values of BY_VALUE]."""
    return {
        tensor.name: [
            tensor.tensor_type.name,
            [int(size) for size in tensor.shape],
            tensor.data.tolist() if tensor.name == BY_VALUE else digest(tensor.data),
        ]
        for tensor in gguf.GGUFReader(path).tensors
    }


def metadata(path: Path) -> dict[str, Any]:
    """Metadata without the architecture's prefix; of arrays of the vocabulary's size, the digest of their text."""
    fields = gguf.GGUFReader(path).fields
    architecture = str(fields["general.architecture"].contents())
    found = {}
    for name, field in fields.items():
        if name.startswith("GGUF."):  # the reader's own: version and counts
            continue
        content = field.contents()
        if isinstance(content, list) and name.startswith("tokenizer."):
            content = [len(content), hashlib.sha256(repr(content).encode()).hexdigest()[:24]]
        found[name.removeprefix(f"{architecture}.")] = content
    return found
