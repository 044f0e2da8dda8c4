"""Lazy, one-at-a-time access to the tensors of a Hugging Face folder, in their canonical form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from saap_edge.errors import SaapError
from saap_edge.families import Source
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
        return tensor if source.factor == 1.0 else tensor.float() * source.factor

    def numpy(self, name: str) -> np.ndarray:
        """The tensor as float32."""
        return self.torch(name).float().numpy()


class Codes:
    """4-bit codes of a tuned model (`codes.safetensors` of the recover stage).

    For a weight `w` [out, in]: `w.codes` uint8 [out, in] in 0..15 and `w.scales` float16 [out, in / group], with
    w = scales * (codes - 8): GGUF Q4_0 and symmetric 4-bit MatMulNBits are both exactly this.
    """

    def __init__(self, folder: str | Path) -> None:
        self._handle = safe_open(str(Path(folder) / "codes.safetensors"), framework="pt")
        keys = self._handle.keys()
        self._names = {key.removesuffix(".codes") for key in keys if key.endswith(".codes")}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def get(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(codes uint8 [out, in], scales float16 [out, in / group]) of a weight."""
        return self._handle.get_tensor(name + ".codes").numpy(), self._handle.get_tensor(name + ".scales").numpy()

    def dequantise(self, name: str) -> np.ndarray:
        """The weight the codes stand for, float32 [out, in]."""
        codes, scales = self.get(name)
        group = codes.shape[1] // scales.shape[1]
        return (codes.astype(np.float32) - 8.0) * np.repeat(scales.astype(np.float32), group, axis=1)
