"""Linear layers in the export's own blocks, with adapters, so that what is trained is bit for bit what ships.

Adapters of low rank (arXiv 2412.15127, group fine-tuning):

  block     over blocks: scale' = fp16(scale * (1 + U V)) or, where the format has one, minimum' = fp16(minimum + scale
            * U V), which is QA-LoRA (2309.14717). Codes stay as they are, so that nothing is rounded again.
  through   over weights as well: w = w0 + B A, rounded to codes at every step. Gradients go straight through the
            rounding; that of a scale is what rounding changes, in steps (LSQ, 1902.08153).

`LoraLinear` is the same B A over a weight that is not in blocks, for training before the weights go into them.
Values and codes come from the functions that exports of untuned weights use (model/blocks.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from saap_edge.model.blocks import BlockFormat, Blocks, codes_at, dequantise, grouped, spread, stored

__all__ = ["GroupLinear", "LoraLinear", "Start", "put"]


@dataclass(frozen=True)
class Start:
    """Where a weight starts from: `weight` float32 [out, in on the grid], and `scales`, `offsets` float32 [out, groups]
    that it is rounded with (as `blocks.nearest` gives them)."""

    weight: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor


class LoraLinear(nn.Module):
    """A frozen linear layer with a low-rank update in full precision (2106.09685). Untrained it changes nothing."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        outputs, inputs = linear.weight.shape
        self.lora_a = nn.Parameter(_random(rank, inputs, linear.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank, device=linear.weight.device))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.linear(inputs)
        return output + nn.functional.linear(nn.functional.linear(inputs, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The linear layer with the update in its weight."""
        self.linear.weight += (self.lora_b @ self.lora_a).to(self.linear.weight.dtype)
        return self.linear


class GroupLinear(nn.Module):
    """A linear layer in blocks with its adapters. Untrained it gives exactly what its start rounds to.

    An input width off the grid of 32 is padded with zeros, as the exporters pad it. Only the adapters are parameters.
    Memory holds a byte a weight (its codes; with `through`, 4 for the weight), and autograd keeps the layer's input but
    nothing of the size of its weight, which is made again for the gradient.
    """

    def __init__(
        self, linear: nn.Linear, start: Start, format: BlockFormat, group: int, rank: int, through: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs, self.format, self.group, self.through = linear.weight.shape[1], format, group, through
        self.bias = linear.bias
        self.scales: torch.Tensor
        self.offsets: torch.Tensor
        self.held: torch.Tensor
        self.register_buffer("scales", start.scales)
        self.register_buffer("offsets", start.offsets)
        codes = codes_at(start.weight, start.scales, start.offsets, format, group).to(torch.uint8)
        self.register_buffer("held", start.weight if through else codes)
        (outputs, columns), groups, device = start.weight.shape, start.scales.shape[1], start.weight.device
        self.block_u = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.block_v = nn.Parameter(_random(rank, groups, device))
        if through:
            self.lora_b = nn.Parameter(torch.zeros(outputs, rank, device=device))
            self.lora_a = nn.Parameter(_random(rank, columns, device))
            self.lora_a.data[:, self.inputs :] = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        adapters = [self.block_u, self.block_v, *((self.lora_a, self.lora_b) if self.through else ())]
        output: torch.Tensor = _Product.apply(inputs, self, *adapters)  # type: ignore[no-untyped-call]
        return output if self.bias is None else output + self.bias

    @torch.no_grad()
    def blocks(self) -> Blocks:
        """What ships: codes, scales and offsets exactly as trained."""
        scales, offsets = self._adapted()
        # Codes are rounded with the unrounded scale, as the formats' own quantisers do.
        codes = codes_at(self._merged(), scales, offsets, self.format, self.group) if self.through else self.held
        return stored(codes, scales, offsets, self.format, self.group)

    def gradients(self, values: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Of block_u, block_v (and lora_a, lora_b), given `values` [out, in on the grid] and their gradient."""
        if self._moves_minimum:
            per_block = grouped(gradient, self.group).sum(-1)
        else:
            scales, _ = self._adapted()
            steps = values - self._merged() if self.through else values
            slope = steps / spread(torch.where(scales == 0, 1, scales), self.group, self.held.shape[1])
            per_block = grouped(gradient * slope, self.group).sum(-1)
        change = per_block * self.scales
        found = [change @ self.block_v.T, self.block_u.T @ change]
        return [*found, self.lora_b.T @ gradient, gradient @ self.lora_a.T] if self.through else found

    def _merged(self) -> torch.Tensor:
        return self.held + self.lora_b @ self.lora_a

    def _adapted(self) -> tuple[torch.Tensor, torch.Tensor]:
        change = self.block_u @ self.block_v
        if self._moves_minimum:
            return self.scales, self.offsets + self.scales * change
        return self.scales * (1 + change), self.offsets

    @property
    def _moves_minimum(self) -> bool:
        """The block adapter is over minimums; where weights are rounded again that would undo it."""
        return self.format.offset == "minimum" and not self.through


def put(layer: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the decoder layer's `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(layer.get_submodule(parent), leaf, module)


def _random(rank: int, columns: int, device: torch.device) -> torch.Tensor:
    values: torch.Tensor = torch.randn(rank, columns) / columns**0.5
    return values.to(device)


class _Product(torch.autograd.Function):
    """inputs @ values.T, with gradients to the inputs and to the layer's adapters."""

    @staticmethod
    def forward(context: Any, inputs: torch.Tensor, layer: GroupLinear, *adapters: torch.Tensor) -> torch.Tensor:
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))
        context.save_for_backward(inputs)
        context.layer = layer
        with torch.autocast(kind, enabled=False):  # scales as they ship, whatever the products' precision
            values = dequantise(layer.blocks())
        return inputs @ values[:, : layer.inputs].to(inputs.dtype).T

    @staticmethod
    @torch.no_grad()
    def backward(context: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        (inputs,), layer = context.saved_tensors, context.layer
        values = dequantise(layer.blocks())
        back = gradient @ values[:, : layer.inputs].to(gradient.dtype)
        rows = gradient.flatten(0, -2).T.float() @ inputs.flatten(0, -2).float()
        rows = nn.functional.pad(rows, (0, values.shape[1] - layer.inputs))
        return back, None, *layer.gradients(values, rows)
