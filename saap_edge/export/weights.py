"""What both exporters write: the folder's tensors, brought to the grid of 32, read one at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from saap_edge.errors import SaapError
from saap_edge.model.blocks import BLOCK, quantise_q4
from saap_edge.model.spec import LayerShape, ModelSpec, linear_shapes, read_spec
from saap_edge.model.tensors import Codes, TensorStore

__all__ = ["ExportWeights"]


_ATTENTION, _FFN = ("self_attn", "input_layernorm"), ("mlp", "post_attention_layernorm")


def _mended(layer: LayerShape, head_dim: int) -> LayerShape:
    """The widths a runtime gets: FFN on the grid and never empty, attention never without heads."""
    if layer.heads == layer.kv_heads == 0:
        layer = replace(layer, heads=BLOCK // math.gcd(BLOCK, head_dim), kv_heads=1)
    return replace(layer, ffn=max(-(-layer.ffn // BLOCK), 1) * BLOCK)


class ExportWeights:
    """A Hugging Face folder (dense or pruned, tuned or not) as the exporters see it.

    An FFN width off the grid of 32 is padded with zero channels: they change no output, and without them the runtimes
    would leave `down_proj` unquantised and run slower than the dense model. What a layer lacks whole is put back as
    small as it goes, all zero, because llama.cpp drops the attention output of a layer without FFN and cannot load a
    first layer without heads. `spec` holds the widths so mended. Nothing is kept in memory between calls.

    Raises SaapError when the folder is not a model, or a width cannot be brought to the grid.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        source = read_spec(folder)
        self.spec: ModelSpec = replace(source, layers=tuple(_mended(layer, source.head_dim) for layer in source.layers))
        self._blank = tuple(
            f"model.layers.{index}.{part}."
            for index, layer in enumerate(source.layers)
            for part in ((_ATTENTION if not layer.heads else ()) + (_FFN if not layer.ffn else ()))
        )
        self._store = TensorStore(folder)
        self._codes = Codes(folder) if (self.folder / "codes.safetensors").is_file() else None
        self._check()

    def _check(self) -> None:
        spec = self.spec
        if spec.hidden % BLOCK:
            raise SaapError(f"hidden size {spec.hidden} is not a multiple of {BLOCK}: no runtime quantises such rows")
        for index, layer in enumerate(spec.layers):
            if layer.kv_heads < 1 or layer.heads % layer.kv_heads:
                raise SaapError(
                    f"layer {index}: {layer.heads} query heads cannot be shared by {layer.kv_heads} kv heads "
                    "(llama.cpp would abort the process): keep whole kv groups"
                )
            if layer.heads * spec.head_dim % BLOCK:
                raise SaapError(
                    f"layer {index}: {layer.heads} heads of {spec.head_dim} are {layer.heads * spec.head_dim} wide, "
                    f"not a multiple of {BLOCK}: o_proj could not be quantised"
                )

    @property
    def tuned(self) -> bool:
        """The folder holds tuned 4-bit codes, which are shipped as they are."""
        return self._codes is not None

    def __contains__(self, name: str) -> bool:
        return not name.startswith(self._blank) and name in self._store

    def tensor(self, name: str) -> np.ndarray:
        """Any tensor as float32, projections and biases zero-padded to the grid."""
        if name.startswith(self._blank):
            return self._put_back(name)
        return self._pad(name, self._store.numpy(name), 0)

    def _put_back(self, name: str) -> np.ndarray:
        """A tensor of a sublayer that is not there: zero projections and biases, neutral norms."""
        if "norm." in name:
            return np.ones(self.spec.head_dim if "self_attn." in name else self.spec.hidden, dtype=np.float32)
        module, _, leaf = name.rpartition(".")
        shape = linear_shapes(self.spec, int(name.split(".")[2]))[f"{module}.weight"]
        return np.zeros(shape if leaf == "weight" else shape[:1], dtype=np.float32)

    def q4(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A projection weight in 4 bits: (codes uint8 [out, in], scales float16 [out, in/32]).

        The tuned codes where the folder has them, round to nearest otherwise.
        """
        if self._codes is None or name not in self._codes:
            return quantise_q4(self.tensor(name))
        codes, scales = self._codes.get(name)
        repeat = codes.shape[1] // scales.shape[1] // BLOCK  # a group of 128 is one scale stored four times
        codes = self._pad(name, codes, 8)
        scales = np.repeat(scales, max(repeat, 1), axis=1)
        padded = np.zeros((codes.shape[0], codes.shape[1] // BLOCK), dtype=np.float16)
        padded[: scales.shape[0], : scales.shape[1]] = scales
        return codes, padded

    def _pad(self, name: str, array: np.ndarray, fill: int) -> np.ndarray:
        if not any(part in name for part in ("gate_proj.", "up_proj.", "down_proj.weight")):
            return array
        ffn = self.spec.layers[int(name.split(".")[2])].ffn
        axis = 1 if "down_proj" in name else 0
        if array.shape[axis] == ffn:
            return array
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, ffn - array.shape[axis])
        return np.pad(array, widths, constant_values=fill)
