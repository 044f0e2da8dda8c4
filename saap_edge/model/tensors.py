"""The tensors of a Hugging Face folder in their canonical form, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saap_edge.errors import SaapError
from saap_edge.model.blocks import BLOCK, BLOCK_FORMATS, Blocks
from saap_edge.model.checkpoint import open_checkpoint, row_ranges
from saap_edge.model.inventory import parameters
from saap_edge.model.spec import ModelSpec

__all__ = ["Codes", "TensorStore"]


class TensorStore:
    """Tensors of a model folder under their canonical names, read on demand.

    If the family stores another layout (fused projections, scalar factors), it is converted here. Raises SaapError as
    `open_checkpoint`.
    """

    def __init__(self, folder: str | Path) -> None:
        self._checkpoint = open_checkpoint(folder)

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint

    @property
    def spec(self) -> ModelSpec:
        """The shape of the canonical form."""
        return self._checkpoint.spec

    @property
    def parameters(self) -> int:
        """The model's parameters, a tied matrix counted once."""
        return parameters(self._checkpoint.spec)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype; float32 where a factor is folded in. Raises SaapError when it is missing."""
        return self._read(name, *self._rows(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape. Raises SaapError when it is missing."""
        start, stop = self._rows(name)
        return (stop - start, *self._stored_shape(name)[1:])

    def stored_name(self, name: str) -> str:
        """The name in transformers' class of the tensor that it is stored in."""
        return self._checkpoint.source(name).name

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The rows of `tensor`, a few at a time, so that only one piece is in memory."""
        source, (start, stop) = self._checkpoint.source(name), self._rows(name)
        whole = len(source.order or source.factors or (0,))  # rows that are reordered or scaled together
        for first, last in row_ranges((stop - start, *self._stored_shape(name)[1:]), whole):
            yield self._read(name, start + first, start + last)

    def _rows(self, name: str) -> tuple[int, int]:
        """Rows [start, stop) of a tensor inside the stored tensor."""
        return self._checkpoint.source(name).rows or (0, self._stored_shape(name)[0])

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        return self._checkpoint.shape(self._checkpoint.source(name))

    def _read(self, name: str, start: int, stop: int) -> torch.Tensor:
        source = self._checkpoint.source(name)
        tensor = self._checkpoint.read(source, start, stop)
        if source.order:
            tensor = tensor.unflatten(0, (-1, len(source.order)))[:, list(source.order)].flatten(0, 1)
        if source.factors:
            tensor = tensor.float() * torch.tensor(source.factors).repeat(len(tensor) // len(source.factors))[:, None]
        return tensor if source.factor == 1.0 else tensor.float() * source.factor


class Codes:
    """The tuned blocks of a folder: `codes.safetensors`, as the recover stage writes it (`save`).

    A weight `w` has `w.codes`, `w.scales` and, if the format has them, `w.offsets` (model/blocks.py). The file's
    metadata names the format and the group of all weights. Raises SaapError when the file is damaged or its format is
    not known.
    """

    FILE = "codes.safetensors"

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / self.FILE
        try:
            with safe_open(str(path), framework="pt") as handle:
                stored, self._names = handle.metadata() or {}, set(handle.keys())
            self.format, self.group = BLOCK_FORMATS[stored["format"]], int(stored["group"])
            if self.group < BLOCK or self.group % BLOCK:
                raise ValueError(f"a group of {self.group}")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise SaapError(f"'{path}' holds no readable codes ({error}): run `saap-edge recover` again") from None
        self._path = path

    def __contains__(self, name: str) -> bool:
        return f"{name}.codes" in self._names

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise SaapError unless the file holds the blocks of exactly these weights; only its header is read."""
        with safe_open(str(self._path), framework="pt") as handle:
            parts = {name: handle.get_slice(name) for name in self._names}
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
        expected: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, (rows, columns) in shapes.items():
            padded = -(-columns // BLOCK) * BLOCK  # recovery pads widths off the grid
            held = padded if found.get(f"{name}.codes", ((), ""))[0] == (rows, padded) else columns
            groups = -(-held // self.group)
            expected[f"{name}.codes"] = (rows, held), "U8"
            expected[f"{name}.scales"] = (rows, groups), "F16"
            if self.format.offset != "none":
                expected[f"{name}.offsets"] = (rows, groups), "F16" if self.format.offset == "minimum" else "U8"
        odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        if odd:
            raise SaapError(f"'{self._path}' is of another model ('{odd[0]}'): remove it, or recover the model again")

    def get(self, name: str) -> Blocks:
        """The blocks of a weight, as they were trained. Raises SaapError where they have impossible values."""
        codes, scales, offsets = (f"{name}.{part}" for part in ("codes", "scales", "offsets"))
        with safe_open(str(self._path), framework="pt") as handle:  # not kept open, as in TensorStore
            read = handle.get_tensor
            blocks = Blocks(
                self.format, self.group, read(codes), read(scales), read(offsets) if offsets in self._names else None
            )
        finite = all(bool(torch.isfinite(part).all()) for part in (blocks.scales, blocks.offsets) if part is not None)
        if not finite or int(blocks.codes.max()) > self.format.highest:
            raise SaapError(f"'{self._path}': '{name}' holds no blocks of {self.format.name}: recover the model again")
        return blocks

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
