"""A runtime's arithmetic emulated in torch: it predicts how much the answers of a faultless artifact differ.

Both runtimes round the input of every quantised product to 8 bits, in blocks, with the scale max|x| / 127 of the block.

- llama.cpp has blocks of 32 and fp16 scales (`quantize_row_q8_0`). For Q4_1 (`quantize_row_q8_1`) minimums are
  multiplied by the block's sum, which is rounded to fp16 too.
- ONNX Runtime's MatMulNBits at accuracy level 4 has blocks of the weight's own size and float32 scales.

llama.cpp's F16 and BF16 products round their input to the type of the weight. Its attention, for fewer than 64 tokens
at once, keeps queries, keys, values and the running sum in fp16 (ggml-cpu/ops.cpp, `flash_attn_ext_f16_one_chunk`).
The rest is float32 in another order of summation. An engine with an exact form (OpenVINO) is compared in that form,
and nothing is emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from saap_edge.engines.registry import engine_named
from saap_edge.exporting.weights import ExportWeights
from saap_edge.formats import format_of
from saap_edge.model.blocks import BLOCK, BlockFormat

__all__ = ["runtime_arithmetic"]

_ATTENTION = "saap_edge_llama_cpp"


@contextmanager
def runtime_arithmetic(model: Any, weights: ExportWeights, artifact_format: str, group: int = BLOCK) -> Iterator[None]:
    """Inside this context `model` rounds as the runtime of an artifact does.

    Args:
        model: the `shipped_model` of the artifact.
        weights: the model folder that was exported.
        artifact_format: the artifact's format.
        group: that of the export.
    """
    if engine_named(format_of(artifact_format).engine).exact:  # then nothing is rounded that is compared
        yield
        return
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                product = _product(module, f"{name}.weight", weights, artifact_format, group)
                setattr(module, "forward", product)  # noqa: B010 (a plain assignment is no method to mypy)
                stack.callback(delattr, module, "forward")
        if _half_sums(artifact_format):
            stack.callback(setattr, model.config, "_attn_implementation", model.config._attn_implementation)
            model.config._attn_implementation = _ATTENTION
        yield


def _half_sums(artifact_format: str) -> bool:
    """Whether the format's engine keeps sums in half precision, as llama.cpp does."""
    return engine_named(format_of(artifact_format).engine).half_sums


def _product(
    module: nn.Linear, name: str, weights: ExportWeights, artifact_format: str, group: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that replaces the forward of a linear layer."""
    half, layout = _half_sums(artifact_format), weights.layout(artifact_format, group)
    floats = weights.floats(name, artifact_format)
    if layout is None or floats:
        # The rounding of inputs before K-quants is not emulated (parity.py). ONNX Runtime multiplies floats in float32.
        kind = (floats or torch.float16) if half else torch.float32
        return lambda x: nn.functional.linear(x.to(kind).float(), module.weight, module.bias)
    projection = name in weights.projections
    block = BLOCK if half else layout[1] if projection else weights.vocabulary(artifact_format)[1]
    minimums = _minimums(weights, name, layout) if projection else None

    def forward(x: torch.Tensor) -> torch.Tensor:
        codes, scales = _eight_bits(x, block)
        stored = _half(scales) if half else scales
        y = nn.functional.linear((codes * stored).flatten(-2)[..., : x.shape[-1]], module.weight, module.bias)
        if minimums is None:
            return y
        sums = codes.sum(-1, keepdim=True)
        # The product above multiplied minimums by the exact sums of the codes: correct for the rounded sums.
        off = (_half(scales * sums) - stored * sums)[..., 0]
        return y + off @ minimums[: len(module.weight), : off.shape[-1]].T

    return forward


def _minimums(weights: ExportWeights, name: str, layout: tuple[BlockFormat, int]) -> torch.Tensor | None:
    """Minimums [out, blocks of 32]; None if the format has none."""
    format, group = layout
    offsets = weights.blocks(name, format, group).offsets if format.offset == "minimum" else None
    return None if offsets is None else offsets.float().repeat_interleave(group // BLOCK, dim=1)


def _eight_bits(x: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes -127..127 [..., blocks, block] and scales [..., blocks, 1] of the rows of `x`, padded with zeros."""
    blocks = nn.functional.pad(x, (0, -x.shape[-1] % block)).unflatten(-1, (-1, block))
    highest = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(highest == 0, 0, 127 / highest)
    return (blocks * inverse).round(), highest / 127


def _half(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def _attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor,
    scaling: float, softcap: float | None = None, **_: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """llama.cpp's flash attention for few queries: [1, heads, tokens, head_dim] to [1, tokens, heads, head_dim]."""
    shared = query.shape[1] // key.shape[1]
    key, value = (_half(part).repeat_interleave(shared, dim=1) for part in (key, value))
    scores = _half(query) @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + attention_mask
    highest = torch.full_like(scores[..., :1], -torch.inf)
    total, summed = torch.zeros_like(highest), torch.zeros_like(query)
    for at in range(scores.shape[-1]):
        score = scores[..., at : at + 1]
        higher = torch.maximum(highest, score)
        shrink = torch.where(score > highest, (highest - higher).exp(), 1)
        share = torch.where(score == -torch.inf, 0, (score - higher).exp())
        summed = _half(_half(summed * shrink) + value[..., at : at + 1, :] * share)
        total, highest = total * shrink + share, higher
    return (summed / total).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, eager_mask)
