"""The block formats in which weights ship: integer codes, with one scale and sometimes one offset per group of inputs.

| name      | value                    | GGUF | ONNX                               |
|-----------|--------------------------|------|------------------------------------|
| `q4_0`    | scale * (code - 8)       | Q4_0 | MatMulNBits, 4 bits                |
| `q8_0`    | scale * (code - 128)     | Q8_0 | MatMulNBits, 8 bits                |
| `q4_1`    | scale * code + minimum   | Q4_1 | -                                  |
| `int4_zp` | scale * (code - zero)    | -    | MatMulNBits, 4 bits, zero points   |
| `int8_zp` | scale * (code - zero)    | -    | MatMulNBits, 8 bits, zero points   |

So the symmetric formats have exactly the same values in both runtimes. Sources: ggml-common.h (block_q4_0, block_q4_1,
block_q8_0), ONNX Runtime's docs/ContribOperators.md (MatMulNBits). A group is 32 inputs or a multiple. GGUF's blocks
always have 32, and repeat the scale of a larger group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import torch

__all__ = [
    "BLOCK", "BLOCK_FORMATS", "BlockFormat", "Blocks", "codes_at", "dequantise", "grouped", "joined", "nearest",
    "quantise", "quantise_rows", "rounded", "spread", "stored",
]  # fmt: skip

BLOCK = 32
_IN_CACHE = (1 << 15) - 1  # weights rounded at a time; with one more, torch would start threads of its own


@dataclass(frozen=True)
class BlockFormat:
    """How codes stand for values; `bits` of a code."""

    name: str
    bits: int
    offset: Literal["none", "minimum", "zero_point"]

    @property
    def middle(self) -> int:
        """The code of zero where there is no offset."""
        return 1 << (self.bits - 1)

    @property
    def highest(self) -> int:
        """The highest code; the lowest is 0."""
        return (1 << self.bits) - 1


BLOCK_FORMATS = {
    format.name: format
    for format in (
        BlockFormat("q4_0", 4, "none"),
        BlockFormat("q8_0", 8, "none"),
        BlockFormat("q4_1", 4, "minimum"),
        BlockFormat("int4_zp", 4, "zero_point"),
        BlockFormat("int8_zp", 8, "zero_point"),
    )
}


@dataclass(frozen=True)
class Blocks:
    """A weight [out, in] in blocks.

    Attributes:
        group: inputs that share a scale. The last group may be shorter.
        codes: uint8 [out, in].
        scales: float16 [out, groups].
        offsets: [out, groups], float16 minimums or uint8 zero points; None where the format has none.
    """

    format: BlockFormat
    group: int
    codes: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None = None


def quantise(weight: torch.Tensor, format: BlockFormat, group: int = BLOCK) -> Blocks:
    """Round `weight` [out, in] to nearest, bit for bit as the format's own quantiser.

    That is gguf-py's (and llama.cpp's) for Q4_0, Q4_1 and Q8_0, and ONNX Runtime's for formats with zero points. `in`
    must be a multiple of 32, else ValueError is raised.

    >>> blocks = quantise(torch.tensor([[-8.0, 7.0] * 16]), BLOCK_FORMATS["q4_0"])
    >>> blocks.scales.tolist(), blocks.codes[0, :2].tolist(), dequantise(blocks)[0, :2].tolist()
    ([[1.0]], [0, 15], [-8.0, 7.0])
    """
    return quantise_rows([weight], weight.shape, format, group)


def quantise_rows(
    pieces: Iterable[torch.Tensor], shape: tuple[int, ...], format: BlockFormat, group: int = BLOCK
) -> Blocks:
    """`quantise` for a weight of that shape that comes in pieces of rows. Only its codes are ever held whole."""
    rows, columns = shape
    count = -(-columns // group)
    kept = _kept(format)
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scales = torch.empty(rows, count, dtype=torch.float16)
    offsets = None if kept is None else torch.empty(rows, count, dtype=kept)

    def put(part: torch.Tensor, start: int) -> None:
        values, span = part.float(), slice(start, start + len(part))
        scale, offset = nearest(values, format, group)
        codes[span] = codes_at(values, scale, offset, format, group)
        scales[span] = scale
        if offsets is not None:
            offsets[span] = offset

    # Few rows at a time, so that all steps of rounding stay in the cache, with threads over rows instead of inside such
    # small operations: three times as fast on an idle machine, ten times on a busy one.
    step, done = max(1, _IN_CACHE // columns), 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for piece in pieces:
            parts = piece.split(step)
            for _ in pool.map(put, parts, range(done, done + len(piece), step)):
                pass
            done += len(piece)
    return Blocks(format, group, codes, scales, offsets)


def joined(parts: Sequence[Blocks]) -> Blocks:
    """The rows of several `Blocks` of one format and group, as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    offsets = [part.offsets for part in parts if part.offsets is not None]
    return replace(first, codes=codes, scales=scales, offsets=torch.cat(offsets) if offsets else None)


def _kept(format: BlockFormat) -> torch.dtype | None:
    """The type in which offsets ship, None where there are none."""
    return {"none": None, "minimum": torch.float16, "zero_point": torch.uint8}[format.offset]


def stored(codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, format: BlockFormat, group: int) -> Blocks:
    """`Blocks` of codes [out, in] and float32 scales and offsets [out, groups], cast to the types that ship."""
    kept = _kept(format)
    return Blocks(format, group, codes.to(torch.uint8), scales.half(), None if kept is None else offsets.to(kept))


def nearest(weight: torch.Tensor, format: BlockFormat, group: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets, float32 [out, groups], as the format's own quantiser chooses them for `weight` [out, in].

    An offset is a minimum or a zero point; in a symmetric format it is the middle code.

    >>> weight = torch.tensor([[-1.0, 2.0] * 16])
    >>> [figures.tolist() for figures in nearest(weight, BLOCK_FORMATS["q4_0"])]  # 2 becomes code 0, -8 * -0.25
    [[[-0.25]], [[8.0]]]
    """
    blocks = grouped(weight, group)
    if format.offset == "none":
        extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))[..., 0]
        # Q4_0 gives the code that one side has more to the side of the largest value; Q8_0 leaves it unused.
        scales = extreme / -8 if format.bits == 4 else extreme.abs() / 127
        return scales, torch.full_like(scales, format.middle)
    low, high = blocks.amin(-1), blocks.amax(-1)
    if format.offset == "minimum":
        return (high - low) / format.highest, low
    low, high = low.clamp_max(0), high.clamp_min(0)
    scales = (high - low) / format.highest
    return scales, (-low / torch.where(scales == 0, 1, scales) + 0.5).floor().clamp(0, format.highest)


def codes_at(
    weight: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, format: BlockFormat, group: int = BLOCK
) -> torch.Tensor:
    """Codes, float32 [out, in], of a float32 `weight` [out, in] at these scales and offsets (of `nearest`, say)."""
    codes = rounded(grouped(weight, group), scales[..., None], offsets[..., None], format)
    return codes.flatten(1)[:, : weight.shape[1]]


def rounded(values: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor, format: BlockFormat) -> torch.Tensor:
    """Codes, float32, of float32 `values`; scales and offsets are broadcast to them."""
    inverse = torch.where(scales == 0, torch.zeros_like(scales), 1 / scales)
    if format.offset == "minimum":
        codes = ((values - offsets) * inverse + 0.5).floor()
    elif format.offset == "zero_point":
        codes = (values * inverse + offsets + 0.5).floor()
    elif format.bits == 8:  # halves away from zero
        steps = values * inverse
        codes = steps.sign() * (steps.abs() + 0.5).floor() + offsets
    else:  # in float64, as gguf-py: a product rounded to float32 may cross a half
        codes = values.double()  # the rest in place: eight bytes a weight are enough
        codes *= inverse.double()
        codes += offsets
        codes = codes.add_(0.5).floor_()
    return codes.clamp(0, format.highest).float()


def dequantise(blocks: Blocks) -> torch.Tensor:
    """The values, float32 [out, in]."""
    layout = blocks.group, blocks.codes.shape[1]
    codes, scales = blocks.codes.float(), spread(blocks.scales.float(), *layout)
    if blocks.offsets is None:
        return scales * (codes - blocks.format.middle)
    offsets = spread(blocks.offsets.float(), *layout)
    return scales * codes + offsets if blocks.format.offset == "minimum" else scales * (codes - offsets)


def spread(figures: torch.Tensor, group: int, width: int) -> torch.Tensor:
    """Figures of groups [out, groups], repeated for every input [out, width].

    >>> spread(torch.tensor([[1.0, 2.0]]), group=2, width=3).tolist()
    [[1.0, 1.0, 2.0]]
    """
    return figures.repeat_interleave(group, dim=1)[:, :width]


def grouped(weight: torch.Tensor, group: int) -> torch.Tensor:
    """[out, in] as [out, groups, group], the last group padded with zeros. Raises ValueError off the grid of 32."""
    if weight.shape[1] % BLOCK or group % BLOCK:
        raise ValueError(f"rows of {weight.shape[1]} weights in groups of {group}: both must be multiples of {BLOCK}")
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % group))
    return padded.reshape(weight.shape[0], -1, group)
