"""The shape that a GGUF model's metadata state, checked against its tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.engines.gguf_header import Header, Tensor
from saap_edge.errors import SaapError

__all__ = ["Shape", "read_shape"]

# Architectures whose blocks all have the same tensors, except biases, which are optional. A block that lacks a tensor
# shows that the file is incomplete.
_UNIFORM = (
    "llama", "qwen2", "qwen3", "phi3", "granite", "ernie4_5", "hunyuan-dense", "gemma", "gemma2", "gemma3", "deci",
    "openelm", "smollm3", "lfm2", "qwen35", "nemotron_h", "gemma4",
)  # fmt: skip
_CONVOLVED = "lfm2"  # short convolutions in layers without KV heads
_LENT = "gemma4"  # the last layers read keys and values of others; heads of layers with a window have another size
_DELTA_NETS = "qwen35"  # gated DeltaNets in layers that the metadata name
_MAMBA = "nemotron_h"  # each block is a Mamba-2, attention or an FFN, as its widths say
_EVERY = 4  # llama.cpp's own for these: every so many layers one has attention
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Shape:
    """The shape of a model.

    Attributes:
        blocks: number of layers.
        kv_elements: numbers that a token adds to the KV cache, in all layers together.
        context: tokens of the longest sequence.
        vocab_size: number of tokens in the vocabulary.
        head_dims: sizes of the heads of keys and of values.
        hidden: numbers of the hidden size.
        widest_ffn: numbers of the widest FFN; 0: the metadata do not say.
        state_elements: numbers that layers without KV heads remember of a text of any length.
    """

    blocks: int
    kv_elements: int
    context: int
    vocab_size: int
    head_dims: tuple[int, ...]
    hidden: int
    widest_ffn: int
    state_elements: int = 0


def read_shape(header: Header) -> Shape:
    """Read the shape. Raises SaapError when metadata are missing or absurd, or contradict the tensors."""
    return _Reader(header).shape()


class _Reader:
    def __init__(self, header: Header) -> None:
        self.path: Path = header.files[0]
        self._header, self._metadata = header, header.metadata
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._blocks: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in self._tensors.items():
            if match := _BLOCK.fullmatch(name):
                self._blocks[int(match[1])][match[2]] = tensor
        architecture = self._metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise SaapError(f"'{self.path}' does not say its general.architecture")
        self._name = architecture

    def shape(self) -> Shape:
        if not self._blocks:
            raise SaapError(f"'{self.path}' holds no layers: a vocabulary alone does not decode")
        blocks = self._number("block_count")
        vocab_size = self._vocab_size()
        heads = self._per_layer("attention.head_count", blocks)
        kv_heads = self._per_layer("attention.head_count_kv", blocks, heads)
        if self._name == _DELTA_NETS:
            kv_heads = [0 if linear else each for each, linear in zip(kv_heads, self._recurrent(blocks), strict=True)]
        if self._name == _LENT:
            borrowed = int(self._metadata.get(f"{self._name}.attention.shared_kv_layers") or 0)
            kv_heads = [*kv_heads[: blocks - borrowed], *[0] * borrowed]
        self._check_blocks(blocks, kv_heads)
        sizes = self._head_dims(blocks, self._number("embedding_length") // max(heads))
        kv_elements = sum(
            self._kv_elements(index, heads[index], kv_heads[index], *sizes[index]) for index in range(blocks)
        )
        widths = self._metadata.get(f"{self._name}.feed_forward_length", 0)
        widest = max((each for each in (widths if isinstance(widths, list) else [widths]) if _is_int(each)), default=0)
        return Shape(
            blocks, kv_elements, self._number("context_length"), vocab_size,
            tuple(size for pair in dict.fromkeys(sizes) for size in pair),
            self._number("embedding_length"), widest, self._state(kv_heads, widths),
        )  # fmt: skip

    def _head_dims(self, blocks: int, width: int) -> list[tuple[int, int]]:
        """Sizes of the heads of keys and of values in every layer. `width`: where the metadata do not say."""
        key, value = (self._number(f"attention.{part}_length", width) for part in ("key", "value"))
        windowed = self._metadata.get(f"{self._name}.attention.sliding_window_pattern")
        if self._name != _LENT or not isinstance(windowed, list) or len(windowed) != blocks:
            return [(key, value)] * blocks
        narrow = self._number("attention.key_length_swa", key), self._number("attention.value_length_swa", value)
        return [narrow if window else (key, value) for window in windowed]

    def _recurrent(self, blocks: int) -> list[bool]:
        """Which layers have a DeltaNet."""
        named = self._metadata.get(f"{self._name}.attention.recurrent_layers")
        if not isinstance(named, list):
            every = self._number("full_attention_interval", _EVERY)
            return [(index + 1) % every != 0 for index in range(blocks)]
        if len(named) != blocks:
            raise SaapError(
                f"'{self.path}' is damaged: {self._name}.attention.recurrent_layers is of {len(named)} layers, "
                f"block_count is {blocks}"
            )
        return [bool(each) for each in named]

    def _state(self, kv_heads: list[int], widths: Any) -> int:
        if self._name in (_DELTA_NETS, _MAMBA):
            size, values = self._number("ssm.state_size"), self._number("ssm.inner_size")
            channels = values + 2 * self._number("ssm.group_count") * size
            ffns = len(widths) - widths.count(0) if self._name == _MAMBA and isinstance(widths, list) else 0
            return (kv_heads.count(0) - ffns) * ((self._number("ssm.conv_kernel") - 1) * channels + size * values)
        if self._name != _CONVOLVED:
            return 0
        taps = self._number("shortconv.l_cache")
        return kv_heads.count(0) * (taps - 1) * self._number("embedding_length")

    def _number(self, key: str, default: int | None = None) -> int:
        """A number of the metadata, at least 1."""
        value = self._metadata.get(f"{self._name}.{key}", default)
        if value is None:
            raise SaapError(f"'{self.path}' does not say its {self._name}.{key}")
        if not _is_int(value) or value < 1:
            raise SaapError(f"'{self.path}' is damaged: {self._name}.{key} is {value!r}")
        return int(value)

    def _per_layer(self, key: str, blocks: int, default: list[int] | None = None) -> list[int]:
        """A number of every layer. The metadata have one for all layers, or a list, in which some may be 0."""
        value = self._metadata.get(f"{self._name}.{key}", default)
        if not isinstance(value, list):
            return [self._number(key)] * blocks
        if len(value) != blocks or not all(_is_int(each) and each >= 0 for each in value) or not max(value):
            raise SaapError(
                f"'{self.path}' is damaged: {self._name}.{key} has {len(value)} numbers from {min(value, default=0)!r} "
                f"to {max(value, default=0)!r}, block_count is {blocks}"
            )
        return value

    def _vocab_size(self) -> int:
        """Rows of the embedding. The head and the list of tokens have to match them."""
        table = self._tensors.get("token_embd.weight")
        width, listed = self._number("embedding_length"), self._header.lengths.get("tokenizer.ggml.tokens")
        if table is None or len(table.shape) != 2:
            raise SaapError(f"'{self.path}' holds no token_embd.weight: a part of the model is missing")
        head = self._tensors.get("output.weight", table)
        if table.shape[0] != width or head.shape != table.shape or listed not in (None, table.shape[1]):
            raise SaapError(
                f"'{self.path}' does not add up: embedding {list(table.shape)}, head {list(head.shape)}, "
                f"embedding_length {width}, {listed} tokens in its vocabulary"
            )
        return table.shape[1]

    def _check_blocks(self, blocks: int, kv_heads: list[int]) -> None:
        """Check that there are as many blocks as block_count says, and that none has fewer tensors than the others."""
        widths = self._metadata.get(f"{self._name}.feed_forward_length")
        no_ffn = {index for index, width in enumerate(widths) if not width} if isinstance(widths, list) else set()
        alone = self._name == _MAMBA
        kinds = {index: (not kv_heads[index], alone and index in no_ffn) for index in range(blocks)}
        no_ffn = set() if alone else no_ffn
        empty, here = {index for index in no_ffn if index < blocks and not kv_heads[index]}, set(self._blocks)
        if here - empty != set(range(blocks)) - empty:
            wrong = min((here ^ set(range(blocks))) - empty)
            raise SaapError(
                f"'{self.path}' does not add up: block_count is {blocks}, and blk.{wrong} is "
                + ("there too" if wrong in here else "missing")
            )
        if self._name not in _UNIFORM:
            return
        names = {
            index: frozenset(name for name in self._blocks[index] if not name.endswith(".bias"))
            for index in range(blocks) if kv_heads[index] or self._name in (_CONVOLVED, _DELTA_NETS, _MAMBA, _LENT)
        }  # fmt: skip
        if self._name == _LENT:  # values may be the keys, and layers that borrow may have either or not
            odd = {"attn_k.weight", "attn_v.weight", "attn_k_norm.weight"}
            names = {index: own - odd for index, own in names.items()}
        # Without KV heads: a convolution, a DeltaNet, those of another layer, or (and without FFN) a Mamba-2.
        for kind in set(kinds.values()):
            alike = {index: own for index, own in names.items() if kinds[index] == kind}
            all_names = frozenset().union(*(own for index, own in alike.items() if index not in no_ffn))
            for index, own in alike.items():
                if own != all_names and index not in no_ffn:
                    lacking = min(all_names - own)
                    raise SaapError(f"'{self.path}' is incomplete: blk.{index} has no {lacking}, and another layer has")
        last = "token_embd_norm.weight" if self._name == _CONVOLVED else "output_norm.weight"
        if last not in self._tensors:
            raise SaapError(f"'{self.path}' is incomplete: it has no {last}")

    def _kv_elements(self, index: int, heads: int, kv_heads: int, key: int, value: int) -> int:
        """Numbers that a token adds to the KV cache of one layer. The projections of the layer have to agree."""
        block = self._blocks.get(index, {})
        if self._name in (_DELTA_NETS, _LENT) and not kv_heads:
            return 0
        told = {"attn_k.weight": kv_heads * key, "attn_v.weight": kv_heads * value}
        told["attn_qkv.weight"] = heads * key + sum(told.values())
        for name, rows in told.items():
            if name in block and block[name].shape[1:] != (rows,):
                raise SaapError(
                    f"'{self.path}' does not add up: blk.{index}.{name} gives {list(block[name].shape[1:])} numbers, "
                    f"{rows} by its heads ({heads}, {kv_heads} for keys) of {key} and {value}"
                )
        return kv_heads * (key + value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
