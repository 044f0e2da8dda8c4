"""Models of known shapes with random weights, for speed: it does not depend on the weights' values."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from saap_edge.model.folder import build_pruned, save_model
from saap_edge.model.spec import LayerShape
from saap_edge.pruning.space import Cost

__all__ = ["SHAPES", "Shape", "dense_model", "pruned_model", "random_widths", "write_model", "write_tokenizer"]


@dataclass(frozen=True)
class Shape:
    """A family's model by its widths; all tie embedding and head."""

    hidden: int
    head_dim: int
    layers: int
    vocabulary: int
    widths: LayerShape
    family: str = "llama"


SHAPES = {
    "smollm2-135m": Shape(576, 64, 30, 49152, LayerShape(9, 3, 1536)),
    "qwen2.5-0.5b": Shape(896, 64, 24, 151936, LayerShape(14, 2, 4864), "qwen2"),
    "llama-110m": Shape(768, 64, 12, 16384, LayerShape(12, 4, 2048)),
    "tiny": Shape(256, 64, 2, 512, LayerShape(4, 2, 512)),
}


def dense_model(shape: Shape, context: int = 2048) -> Any:
    """`context`: the longest sequence, in tokens."""
    config, model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[shape.family]
    torch.manual_seed(0)
    head_dim = {"head_dim": shape.head_dim} if shape.family == "llama" else {}
    return model(config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.widths.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.widths.heads,
        num_key_value_heads=shape.widths.kv_heads, max_position_embeddings=context, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, **head_dim,
    ))  # fmt: skip


def pruned_model(dense: Any, widths: list[LayerShape]) -> Any:
    """A model of these widths whose projections are random too."""
    model: Any = build_pruned(dense, widths)
    with torch.no_grad():
        for name, parameter in model.model.layers.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.02)
            elif name.endswith("bias"):  # not initialised: any bits
                parameter.zero_()
    return model


def random_widths(shape: Shape, ratio: float, seed: int = 0) -> list[LayerShape]:
    """Non-uniform widths that remove `ratio` of attention and FFN parameters to within half a percent."""
    dice, widths = random.Random(seed), [shape.widths] * shape.layers
    group = shape.widths.heads // shape.widths.kv_heads

    def cost(layers: list[LayerShape]) -> float:
        return sum(Cost().layer(layer, shape.hidden, shape.head_dim) for layer in layers)

    def removed() -> float:
        return 1 - cost(widths) / cost([shape.widths] * shape.layers)

    while removed() < ratio - 0.002:
        index = dice.randrange(shape.layers)
        layer = widths[index]
        if dice.random() < 0.1 and layer.kv_heads > 1 and ratio - removed() > 0.01:
            widths[index] = LayerShape(layer.heads - group, layer.kv_heads - 1, layer.ffn)
        elif layer.ffn > 32:
            widths[index] = LayerShape(layer.heads, layer.kv_heads, layer.ffn - 32)
    assert abs(removed() - ratio) < 0.005
    return widths


def write_model(model: Any, folder: Path) -> Path:
    """Save as a Hugging Face folder, with a tokenizer of bytes."""
    folder.mkdir()
    write_tokenizer(folder)
    save_model(model, folder, folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *alphabet, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))  # llama.cpp wants at least one merge
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(
        folder
    )
