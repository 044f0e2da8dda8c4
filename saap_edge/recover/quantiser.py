"""Fake quantisation in the export's own blocks, so that what is trained is bit for bit what ships.

A weight trains through Q4_0 with two adapters (arXiv 2412.15127, group fine-tuning; QA-LoRA 2309.14717):
  LoRA               w = w0 + B A, through the rounding (straight-through estimator)
  low-rank scales    scale' = fp16(scale * (1 + U V)), one figure a block of 32
Codes and scales are then read off, and neither exporter rounds again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["BLOCK", "GroupLinear", "base_scales", "quantise"]

BLOCK = 32


@dataclass(frozen=True)
class _Fake:
    codes: torch.Tensor  # [out, blocks, 32], 0..15 in float
    scales: torch.Tensor  # [out, blocks], float16 values held in float32


def base_scales(weight: torch.Tensor) -> torch.Tensor:
    """Q4_0's scale of each block: the value of largest magnitude over -8, float32 [out, in/32]."""
    blocks = weight.float().reshape(weight.shape[0], -1, BLOCK)
    largest = blocks.abs().argmax(-1, keepdim=True)
    return blocks.gather(-1, largest)[..., 0] / -8


def quantise(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Codes 0..15 (float tensor [out, in/32, 32]) of `weight` [out, in] at `scales` [out, in/32], as Q4_0 rounds."""
    blocks = weight.float().reshape(weight.shape[0], -1, BLOCK)
    inverse = torch.where(scales == 0, torch.zeros_like(scales), 1 / scales)
    return (blocks * inverse[..., None] + 8.5).floor().clamp(0, 15)


class GroupLinear(nn.Module):
    """A linear layer in 4-bit blocks with its adapters. Starts as plain round-to-nearest Q4_0 of `linear`.

    An input width off the grid of 32 is padded with zeros, as the exporters pad it.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        weight = nn.functional.pad(linear.weight.detach().float(), (0, -inputs % BLOCK))
        blocks = weight.shape[1] // BLOCK
        self.inputs = inputs
        self.weight: torch.Tensor
        self.register_buffer("weight", weight)
        self.bias = linear.bias
        self.lora_a = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank))
        self.scale_u = nn.Parameter(torch.zeros(outputs, rank))
        self.scale_v = nn.Parameter(torch.randn(rank, blocks) / blocks**0.5)
        with torch.no_grad():
            self.lora_a[:, inputs:] = 0

    def merged(self) -> torch.Tensor:
        """w0 + B A, float32 [out, in padded]: the weight the codes are rounded from. Padding stays zero."""
        pad = torch.arange(self.weight.shape[1], device=self.weight.device) < self.inputs
        merged: torch.Tensor = self.weight + (self.lora_b @ self.lora_a) * pad
        return merged

    def _fake(self, merged: torch.Tensor) -> tuple[_Fake, torch.Tensor]:
        base = base_scales(merged.detach())
        scales = base * (1 + self.scale_u @ self.scale_v)
        # llama.cpp rounds codes with the unrounded scale and stores fp16; where the adapter is still zero we do the
        # same, so an untrained layer is exactly Q4_0.
        codes = quantise(merged.detach(), scales.detach())
        return _Fake(codes, scales.detach().half().float()), scales

    def quantised(self) -> torch.Tensor:
        """The 4-bit weight as float32 [out, in padded], with gradients to both adapters."""
        merged = self.merged()
        fake, scales = self._fake(merged)
        stored = scales + (fake.scales - scales).detach()  # fp16 rounding, straight through
        weight = (stored[..., None] * (fake.codes - 8)).reshape(merged.shape)
        through: torch.Tensor = weight + (merged - merged.detach())
        return through

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.quantised()[:, : self.inputs], self.bias)

    @torch.no_grad()
    def codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(codes uint8 [out, in], scales float16 [out, in padded / 32]) exactly as trained."""
        fake, _ = self._fake(self.merged())
        codes = fake.codes.reshape(self.weight.shape).to(torch.uint8)
        return codes.contiguous(), fake.scales.half()
