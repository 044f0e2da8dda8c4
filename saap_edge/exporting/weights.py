"""The tensors that both exporters write: those of the folder, padded to the grid of 32, read one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from saap_edge.errors import SaapError
from saap_edge.exporting.refusal import shape_reason
from saap_edge.formats import TABLE_GROUP, format_of, kind_of
from saap_edge.model.blocks import BLOCK, BLOCK_FORMATS, BlockFormat, Blocks, dequantise, quantise_rows
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.inventory import PER_LAYER_MATRIX, needed
from saap_edge.model.spec import LayerShape, ModelSpec, head_width, linear_shapes
from saap_edge.model.tensors import Codes, TensorStore
from saap_edge.model.values import require_finite

__all__ = ["IN_WIDER_FLOATS", "OTHER_WEIGHT", "ExportWeights", "floats_of"]

IN_WIDER_FLOATS = "use gguf-bf16, gguf-f32 or onnx-fp32 instead (export.formats)"
# Blocks with a larger relative error belong to another weight: two bits have 0.3 to 0.5 of its own RMS, rows in another
# order 1.4.
OTHER_WEIGHT = 0.8

_ATTENTION, _FFN = ("self_attn", "linear_attn", "input_layernorm"), ("mlp", "post_attention_layernorm")


def floats_of(artifact_format: str) -> torch.dtype | None:
    """The type of all matrices of a format; None if they are not floats.

    >>> floats_of("gguf-bf16"), floats_of("gguf-q4_0")
    (torch.bfloat16, None)
    """
    name = format_of(artifact_format).dtype
    return None if name is None else cast(torch.dtype, getattr(torch, name))


def _mended(spec: ModelSpec, layer: LayerShape) -> LayerShape:
    """The widths in the file: an FFN on the grid and never empty, attention never without heads.

    Beside Mamba-2 blocks a layer has one sublayer in any case.
    """
    if spec.mamba:
        return replace(layer, ffn=-(-layer.ffn // BLOCK) * BLOCK)
    if layer.heads == layer.kv_heads == 0 and not layer.conv:
        width = head_width(layer, spec.head_dim, spec.delta)
        layer = replace(layer, heads=BLOCK // math.gcd(BLOCK, width), kv_heads=1)
    return replace(layer, ffn=max(-(-layer.ffn // BLOCK), 1) * BLOCK)


def _with_whole_heads(spec: ModelSpec) -> ModelSpec:
    """The model with as many heads as fill the hidden size, and KV heads in proportion."""
    first, heads = spec.layers[0], spec.hidden // spec.head_dim
    reason = None
    if not spec.uniform:
        reason = "its layers have different widths (use --method uniform)"
    elif spec.hidden % spec.head_dim or heads < first.heads:
        reason = f"{first.heads} heads of {spec.head_dim} cannot fill a hidden size of {spec.hidden}"
    elif heads * first.kv_heads % first.heads:
        reason = f"{heads} heads are no multiple of the {first.heads // first.kv_heads} that share a KV head"
    if reason:
        raise SaapError(f"heads cannot be padded with zeros: {reason}")
    layer = replace(first, heads=heads, kv_heads=heads * first.kv_heads // first.heads)
    return replace(spec, layers=(layer,) * len(spec.layers))


class ExportWeights:
    """A Hugging Face folder (dense or pruned, tuned or not) as the exporters see it.

    An FFN width off the grid of 32 is padded with zero channels. They change no output, and without them the runtimes
    would leave `down_proj` unquantised and run slower than the dense model. A sublayer that a layer lacks is added with
    the least width and zero weights, because llama.cpp drops the attention output of a layer without FFN and cannot
    load a first layer without heads. `spec` has these widths. Nothing is kept in memory between calls; while a tensor
    is read, only the result and a piece of the stored tensor are.

    `projections` names all matrices of layers.

    `whole_heads`: a uniform model also gets KV groups of zeros, until its heads fill the hidden size again. They change
    no output: their values and their columns of o_proj are zero. Some runtimes take hidden / heads for the head size.

    Raises SaapError when the folder is not a model, or when a width cannot be padded.
    """

    def __init__(self, folder: str | Path, whole_heads: bool = False) -> None:
        self.folder = Path(folder)
        source = self._source = read_spec(folder)
        self.spec: ModelSpec = replace(source, layers=tuple(_mended(source, layer) for layer in source.layers))
        if whole_heads:
            self.spec = _with_whole_heads(self.spec)
        self._blank = tuple(
            f"model.layers.{index}.{part}."
            for index, layer in enumerate(source.layers)
            for part in ((_ATTENTION if not (layer.heads or layer.conv) else ()) + (_FFN if not layer.ffn else ()))
            if not source.mamba
        )
        self._shapes = needed(self.spec)
        self.projections = frozenset(
            name for index in range(len(source.layers)) for name in linear_shapes(self.spec, index)
        )
        self._store = TensorStore(folder)
        self._codes = Codes(folder) if (self.folder / Codes.FILE).is_file() else None
        if self._codes:
            shapes = (linear_shapes(source, index) for index in range(len(source.layers)))
            self._codes.check({name: shape for layer in shapes for name, shape in layer.items() if all(shape)})
        reason = shape_reason(self.spec)
        if reason:
            raise SaapError(f"'{folder}': {reason}")

    @property
    def tuned(self) -> BlockFormat | None:
        """The format of the tuned codes in the folder, which ship as they are; None if it was not tuned."""
        return None if self._codes is None else self._codes.format

    @property
    def parameters(self) -> int:
        """Number of parameters of the folder's model, padding not included."""
        return self._store.parameters

    def floats(self, name: str, artifact_format: str) -> torch.dtype | None:
        """The type of a matrix in an artifact; None if it is in blocks, or in codes that llama.cpp makes."""
        kept = name == PER_LAYER_MATRIX and kind_of(format_of(artifact_format).kind).float_matrix
        return floats_of(artifact_format) or (torch.float16 if kept else None)

    def layout(self, artifact_format: str, group: int = BLOCK) -> tuple[BlockFormat, int] | None:
        """Format and group of the projections in an artifact ("gguf-q4_1", "onnx-int4", ...); None if not in blocks.

        Those of the tuned codes if the artifact can hold them; else `group` in ONNX, and always 32 in GGUF.
        """
        record = format_of(artifact_format)
        if self._codes and self._codes.format.name in record.blocks:
            return self._codes.format, self._codes.group
        return (BLOCK_FORMATS[record.blocks[0]], record.block or group) if record.blocks else None

    def vocabulary(self, artifact_format: str, width: int | None = None) -> tuple[BlockFormat, int]:
        """Format and group of embedding and head if projections are in blocks: 8 bits, except in onnx-int4-full.

        `width`: numbers of a row, where it is not the hidden size.

        ONNX has the largest group up to TABLE_GROUP that divides the rows. ONNX Runtime reads 8 bytes more for every
        block, a quarter of the codes at 32, and with 8 bits a larger group costs no quality (the demo compares
        onnx-int4 with gguf-q4_0, which has 32).
        """
        record = format_of(artifact_format)
        return BLOCK_FORMATS[record.table_block], record.block or math.gcd(TABLE_GROUP, width or self.spec.hidden)

    def __contains__(self, name: str) -> bool:
        return not name.startswith(self._blank) and name in self._store

    def tensor(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Any tensor; projections and biases are zero-padded to the grid.

        Raises SaapError when it is missing, or has values beyond `dtype`.
        """
        whole = torch.empty(self.shape(name), dtype=dtype)
        start = 0
        for piece in self._pieces(name):
            whole[start : (start := start + len(piece))] = piece
        if dtype == torch.float16:
            self._require_held(name, whole)
        return whole

    def bias(self, parts: Sequence[str]) -> torch.Tensor | None:
        """The biases of these projections, joined, with zeros for those that have none; None if none has one."""
        names = [f"{part}.bias" for part in parts]
        if not any(name in self for name in names):
            return None
        return torch.cat([self.tensor(name) if name in self else torch.zeros(self.shape(name)) for name in names])

    def _require_held(self, name: str, values: torch.Tensor) -> None:
        """Raise SaapError when float16 turned a tensor's values into infinities."""
        if not bool(torch.isfinite(values).all()):
            raise SaapError(f"{self.folder}: {name} holds values beyond what fp16 does (65504): {IN_WIDER_FLOATS}")

    def _require_near(self, name: str, blocks: Blocks) -> None:
        """Raise SaapError when tuned blocks are not those of the weight that is stored beside them."""
        own = self._store.tensor(name).float()
        values = dequantise(blocks)[:, : own.shape[1]]
        if float((values - own).norm()) > OTHER_WEIGHT * float(own.norm()):
            raise SaapError(
                f"'{self.folder / Codes.FILE}' holds other values for {name} than the weights beside it: it is of "
                "another model. Remove it, or recover the model again"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape in the exported file."""
        return self._shapes[name]

    def _pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The rows of `tensor`, a few at a time."""
        shape = self.shape(name)
        if name.startswith(self._blank):  # an added sublayer: zero projections and biases, neutral norms
            yield torch.full(shape, 1.0 if "norm." in name else 0.0)
            return
        stored = self._store.shape(name)
        columns = sum(shape[1:]) - sum(stored[1:])
        for piece in self._store.pieces(name):
            require_finite(self.folder, self._store.stored_name(name), piece)
            yield torch.nn.functional.pad(piece, (0, columns)) if columns else piece
        if shape[0] > stored[0]:
            yield torch.zeros(shape[0] - stored[0], *shape[1:])

    def blocks(self, name: str, format: BlockFormat, group: int = BLOCK) -> Blocks:
        """A weight [out, in] in blocks: the tuned ones if the folder has them in this format, else rounded to nearest.

        Tuned blocks keep their own group, whatever `group` says. Raises SaapError as `tensor`, and when tuned blocks
        belong to another model.
        """
        if self._codes is None or self._codes.format != format or name not in self._codes:
            made = quantise_rows(self._pieces(name), self.shape(name), format, group)
            self._require_held(name, made.scales if made.offsets is None else made.scales + made.offsets)
            return made
        blocks = self._codes.get(name)
        self._require_near(name, blocks)
        # Added channels are zero in gate_proj and up_proj, added heads in v_proj: their columns may have any codes.
        shape = self.shape(name)
        if shape == blocks.codes.shape:
            return blocks
        groups = -(-shape[1] // blocks.group)

        def pad(figures: torch.Tensor, columns: int, fill: int = 0) -> torch.Tensor:
            size = (0, columns - figures.shape[1], 0, shape[0] - len(figures))
            return torch.nn.functional.pad(figures, size, value=fill)

        codes = pad(blocks.codes, shape[1], format.middle)
        offsets = None if blocks.offsets is None else pad(blocks.offsets, groups)
        return Blocks(format, blocks.group, codes, pad(blocks.scales, groups), offsets)
