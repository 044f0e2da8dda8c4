"""Lazy, one-at-a-time access to the tensors of a Hugging Face folder, in their canonical form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saap_edge.errors import SaapError
from saap_edge.families import Source
from saap_edge.model.blocks import BLOCK_FORMATS, Blocks
from saap_edge.model.spec import config_family, read_config

__all__ = ["Codes", "TensorStore"]

_PIECE = 1 << 24  # numbers of a tensor that are read at a time


class TensorStore:
    """Tensors of a safetensors folder (single file or sharded), read when asked for, under their canonical names.

    Where the family is stored in another layout (fused projections, scalar factors), that is undone here. Files are
    opened anew for every read: a file that stays mapped keeps in memory whatever was ever read of it.
    Raises SaapError when there are no safetensors, a file is damaged, or the family is unknown.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self.folder / "model.safetensors.index.json"
        files: set[str]
        if index.is_file():
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        else:
            files = {path.name for path in self.folder.glob("model*.safetensors")}
        if not files:
            raise SaapError(f"no model.safetensors in '{folder}': only safetensors weights are read (no pickles)")
        self._stored: dict[str, tuple[Path, tuple[int, ...]]] = {}  # file and shape
        for name in sorted(files):
            try:
                with safe_open(str(self.folder / name), framework="pt") as handle:
                    for key in handle.keys():  # noqa: SIM118 (a handle cannot be iterated)
                        self._stored[key] = self.folder / name, tuple(handle.get_slice(key).get_shape())
            except (SafetensorError, FileNotFoundError) as error:
                raise SaapError(f"{self.folder / name}: damaged or missing safetensors file ({error})") from None
        self._family, self._config = config_family(read_config(folder))

    def _source(self, name: str) -> Source:
        return self._family.source(self._config, name) if self._family.source else Source(name)

    def __contains__(self, name: str) -> bool:
        return self._source(name).name in self._stored

    @property
    def parameters(self) -> int:
        """How many numbers are stored: the model's parameters, a tied matrix once."""
        return sum(math.prod(shape) for _, shape in self._stored.values())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype; float32 where a factor is folded in. Raises SaapError when it is missing."""
        return self._read(name, *self._rows(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape. Raises SaapError when it is missing."""
        start, stop = self._rows(name)
        return (stop - start, *self._stored_shape(name)[1:])

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The tensor as `tensor` gives it, a few rows at a time: no more than one piece is in memory."""
        start, stop = self._rows(name)
        source, numbers = self._source(name), math.prod(self._stored_shape(name)[1:])
        whole = len(source.order or source.factors or (0,))  # rows that are reordered or scaled together
        step = max(1, _PIECE // numbers // whole) * whole
        for first in range(start, stop, step):
            yield self._read(name, first, min(first + step, stop))

    def _rows(self, name: str) -> tuple[int, int]:
        """First row and end of a tensor in the tensor that is stored."""
        source, rows = self._source(name), self._stored_shape(name)[0]
        if source.rows and source.rows[1] > rows:
            raise SaapError(f"{self.folder}: {source.name} has {rows} rows, fewer than config.json says")
        return source.rows or (0, rows)

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        stored = self._source(name).name
        if stored not in self._stored:
            raise SaapError(f"tensor '{stored}' is missing from '{self.folder}'")
        return self._stored[stored][1]

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        source = self._source(name)
        with safe_open(str(self._stored[source.name][0]), framework="pt") as handle:
            tensor: torch.Tensor = handle.get_slice(source.name)[start:stop]
        if source.order:
            tensor = tensor.unflatten(0, (-1, len(source.order)))[:, list(source.order)].flatten(0, 1)
        if source.factors:
            tensor = tensor.float() * torch.tensor(source.factors).repeat(len(tensor) // len(source.factors))[:, None]
        return tensor if source.factor == 1.0 else tensor.float() * source.factor


class Codes:
    """The tuned blocks of a folder: `codes.safetensors`, as the recover stage writes it (`save`).

    A weight `w` has `w.codes`, `w.scales` and, where the format has them, `w.offsets` (model/blocks.py); the file's
    metadata names the format and the group, the same for all weights.

    Raises SaapError when the file is damaged or of a format that is not known.
    """

    FILE = "codes.safetensors"

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / self.FILE
        try:
            with safe_open(str(path), framework="pt") as handle:
                stored, self._names = handle.metadata() or {}, set(handle.keys())
            self.format, self.group = BLOCK_FORMATS[stored["format"]], int(stored["group"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise SaapError(f"'{path}' holds no readable codes ({error}): run `saap-edge recover` again") from None
        self._path = path

    def __contains__(self, name: str) -> bool:
        return f"{name}.codes" in self._names

    def get(self, name: str) -> Blocks:
        """The blocks of a weight, as they were trained."""
        codes, scales, offsets = (f"{name}.{part}" for part in ("codes", "scales", "offsets"))
        with safe_open(str(self._path), framework="pt") as handle:  # not kept open, as in TensorStore
            read = handle.get_tensor
            return Blocks(
                self.format, self.group, read(codes), read(scales), read(offsets) if offsets in self._names else None
            )

    @classmethod
    def save(cls, blocks: Mapping[str, Blocks], folder: Path) -> None:
        """Write the blocks of weights, all of one format and group."""
        tensors: dict[str, torch.Tensor] = {}
        for name, weight in blocks.items():
            parts = {"codes": weight.codes, "scales": weight.scales, "offsets": weight.offsets}
            tensors |= {f"{name}.{part}": values.contiguous() for part, values in parts.items() if values is not None}
        first = next(iter(blocks.values()))
        metadata = {"format": first.format.name, "group": str(first.group)}
        save_file(tensors, folder / cls.FILE, metadata=metadata)
