"""The tensors of a GGUF model under transformers' names, in transformers' layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from saap_edge.errors import SaapError
from saap_edge.gguf_file.architectures import Architecture, Place, architecture_of, place_of
from saap_edge.gguf_file.reader import GgufModel

__all__ = ["GGUF_FILE", "Entry", "GgufTensors"]

_KERNEL = ".conv.conv.weight"  # torch has an axis more, for channels that see each other
GGUF_FILE = "model.gguf"  # the weights, in a folder that a GGUF file was unpacked into


@dataclass(frozen=True)
class Entry:
    """A stored tensor: its shape, its type (None if torch does not have it) and its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    file: Path


@dataclass(frozen=True)
class _Part:
    """Rows of a stored tensor, from `first` on. `heads`: those of q or k in the order of NORM rope, else None."""

    tensor: str
    first: int
    rows: int
    heads: int | None


class GgufTensors:
    """The weights of a folder that a GGUF file was unpacked into (`Stored`).

    This undoes what converters to GGUF do: rows of q and k get back the order of transformers, a matrix of q, k and v
    is split, and Gemma's norms lose the 1 that was added. Blocks are dequantised to float32. Raises SaapError as
    GgufModel, and for a tensor that the architecture does not have.
    """

    def __init__(self, folder: Path) -> None:
        self._model = GgufModel(folder / GGUF_FILE)
        self._architecture: Architecture = architecture_of(self._model.architecture, str(self._model.path))
        self._parts = _parts(self._model, self._architecture)
        self.entries: Mapping[str, Entry] = {name: self._entry(name) for name in self._parts}

    def _shifted(self, name: str) -> bool:
        return self._architecture.gemma and name.endswith("norm.weight")

    def _entry(self, name: str) -> Entry:
        parts = self._parts[name]
        first = self._model.shape(parts[0].tensor) or ()
        kinds = {self._model.dtype(part.tensor) for part in parts}
        dtype = torch.float32 if self._shifted(name) or len(kinds) > 1 else kinds.pop()
        channel = (1,) if name.endswith(_KERNEL) else ()
        return Entry((sum(part.rows for part in parts), *channel, *first[1:]), dtype, self._model.path)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor, a new tensor in its entry's type."""
        at, pieces, dtype = 0, [], self.entries[name].dtype
        for part in self._parts[name]:
            low, high = max(start - at, 0), min(stop - at, part.rows)
            if low < high:
                pieces.append(self._read(part, low, high).to(dtype))
            at += part.rows
        values = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        values = values[:, None] if name.endswith(_KERNEL) else values
        return values - 1 if self._shifted(name) else values

    def _read(self, part: _Part, start: int, stop: int) -> torch.Tensor:
        if not part.heads:
            return self._model.rows(part.tensor, part.first + start, part.first + stop)
        # Rows are reordered inside a head, so whole heads are read.
        size = part.rows // part.heads
        low, high = start // size, -(-stop // size)
        rows = self._model.rows(part.tensor, part.first + low * size, part.first + high * size)
        halves: torch.Tensor = rows.unflatten(0, (high - low, size // 2, 2)).transpose(1, 2).flatten(0, 2)
        return halves[start - low * size : stop - low * size]


def _parts(model: GgufModel, architecture: Architecture) -> dict[str, list[_Part]]:
    """For each tensor of transformers, the stored rows that it consists of, in order."""
    found: dict[str, list[tuple[str, _Part]]] = {}
    for name in model.tensors:
        try:
            place = place_of(name, architecture)
        except KeyError:
            raise SaapError(
                f"'{model.path}': tensor '{name}' has no place in architecture '{model.architecture}': without it the "
                "answers would be another model's"
            ) from None
        for target, part in _placed(model, architecture, name, place) if place else ():
            found.setdefault(target.name, []).append((target.part or "", part))
    # q, k, v and gate, up: their order in the matrix, whatever it is in the file
    order = ("", "q", "k", "v", "gate", "up").index
    return {name: [part for _, part in sorted(parts, key=lambda one: order(one[0]))] for name, parts in found.items()}


def _placed(model: GgufModel, architecture: Architecture, name: str, place: Place) -> Iterator[tuple[Place, _Part]]:
    """The places of a tensor: one, or three for a matrix of q, k and v if transformers has three matrices."""
    rows = (model.shape(name) or (0,))[0]
    if place.layer is None:
        yield place, _Part(name, 0, rows, None)
        return
    heads, kv_heads = layer_heads(model, place.layer)
    norm = {"q_proj": heads, "k_proj": kv_heads} if architecture.neighbours else {}
    if place.module != "self_attn.qkv_proj" or architecture.fused:
        yield place, _Part(name, 0, rows, norm.get(place.module.split(".")[-1]))
        return
    total = heads + 2 * kv_heads
    if not total or rows % total:
        raise SaapError(f"'{model.path}': {name} has {rows} rows, which {total} heads of q, k and v cannot share")
    first = 0
    for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        size = count * (rows // total)
        target = Place(f"self_attn.{letter}_proj", place.leaf, place.layer)
        yield target, _Part(name, first, size, norm.get(f"{letter}_proj"))
        first += size


def layer_heads(model: GgufModel, layer: int) -> tuple[int, int]:
    """Numbers of query and kv heads of a layer. Raises SaapError when the file has no such layer."""
    layers = model.count(model.key("block_count"))
    if layer >= layers:
        raise SaapError(f"'{model.path}': there are tensors of layer {layer}, and block_count is {layers}")
    heads = model.counts(model.key("attention.head_count"), layers)
    kv_heads = model.counts(model.key("attention.head_count_kv"), layers, None)
    return heads[layer], heads[layer] if kv_heads[layer] is None else kv_heads[layer]
