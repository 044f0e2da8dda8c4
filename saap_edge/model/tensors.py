"""Lazy, one-at-a-time access to the tensors of a Hugging Face folder, in their canonical form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from saap_edge.errors import SaapError
from saap_edge.families import Source
from saap_edge.model.blocks import BLOCK_FORMATS, Blocks
from saap_edge.model.spec import config_family, read_config

__all__ = ["Codes", "TensorStore"]


class TensorStore:
    """Tensors of a safetensors folder (single file or sharded), read when asked for, under their canonical names.

    Where the family is stored in another layout (fused projections, scalar factors), that is undone here.
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
        self._handles = {}
        for name in sorted(files):
            try:
                handle = safe_open(str(self.folder / name), framework="pt")
            except (SafetensorError, FileNotFoundError) as error:
                raise SaapError(f"{self.folder / name}: damaged or missing safetensors file ({error})") from None
            for key in handle.keys():  # noqa: SIM118 (a handle cannot be iterated)
                self._handles[key] = handle
        self._family, self._config = config_family(read_config(folder))

    def _source(self, name: str) -> Source:
        return self._family.source(self._config, name) if self._family.source else Source(name)

    def __contains__(self, name: str) -> bool:
        return self._source(name).name in self._handles

    def torch(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype; float32 where a factor is folded in. Raises SaapError when it is missing."""
        source = self._source(name)
        if source.name not in self._handles:
            raise SaapError(f"tensor '{source.name}' is missing from '{self.folder}'")
        tensor: torch.Tensor = self._handles[source.name].get_tensor(source.name)
        if source.rows:
            if source.rows[1] > len(tensor):
                raise SaapError(f"{self.folder}: {source.name} has {len(tensor)} rows, fewer than config.json says")
            tensor = tensor[slice(*source.rows)]
        if source.order:
            tensor = tensor.unflatten(0, (-1, len(source.order)))[:, list(source.order)].flatten(0, 1)
        if source.factors:
            tensor = tensor.float() * torch.tensor(source.factors).repeat(len(tensor) // len(source.factors))[:, None]
        return tensor if source.factor == 1.0 else tensor.float() * source.factor

    def numpy(self, name: str) -> np.ndarray:
        """The tensor as float32."""
        return self.torch(name).float().numpy()


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
            self._handle = safe_open(str(path), framework="pt")
            stored = self._handle.metadata() or {}
            self.format, self.group = BLOCK_FORMATS[stored["format"]], int(stored["group"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise SaapError(f"'{path}' holds no readable codes ({error}): run `saap-edge recover` again") from None
        self._names = set(self._handle.keys())

    def __contains__(self, name: str) -> bool:
        return f"{name}.codes" in self._names

    def get(self, name: str) -> Blocks:
        """The blocks of a weight, as they were trained."""
        codes, scales, offsets = (f"{name}.{part}" for part in ("codes", "scales", "offsets"))
        read = self._handle.get_tensor
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
