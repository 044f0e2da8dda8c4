"""Linear layers in the export's own blocks, with adapters, so that what is trained is bit for bit what ships.

There are two low-rank adapters (arXiv 2412.15127, group fine-tuning):

  block     changes scales: scale' = fp16(scale * (1 + U V)). If the format has minimums it changes these instead:
            minimum' = fp16(minimum + scale * U V), which is QA-LoRA (arXiv 2309.14717). Codes stay as they are.
  through   changes weights as well: w = w0 + B A, rounded to codes at every step. Gradients pass straight through the
            rounding. The gradient of a scale is the rounding's change, in steps (LSQ, arXiv 1902.08153).

Adapters of weights that are not yet in blocks are in model/adapters.py. Values and codes come from the functions that
export untuned weights (model/blocks.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from saap_edge.model.adapters import adapted_product, random_rows
from saap_edge.model.blocks import BlockFormat, Blocks, codes_at, dequantise, grouped, spread, stored

__all__ = ["GroupLinear", "Start"]


@dataclass(frozen=True)
class Start:
    """Where the training of a weight in blocks starts.

    Attributes:
        weight: float32 [out, in], `in` padded to a multiple of 32.
        scales, offsets: float32 [out, groups], with which the weight is rounded (as `blocks.nearest` gives them).
    """

    weight: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor


class GroupLinear(nn.Module):
    """A linear layer in blocks with its adapters. Untrained it computes with exactly the rounded values of `start`.

    An input width off the grid of 32 is padded with zeros, as the exporters do. Only the adapters are parameters. The
    layer holds a byte a weight (its code), or 4 bytes with `through`. Autograd keeps the layer's input, but nothing of
    the weight's size: the weight is computed again for the gradient.

    Args:
        linear: gives the input width and the bias.
        group: inputs that share a scale, 32 or a multiple.
        rank: of all adapters.
        through: train the weights too, through the rounding.

    >>> from saap_edge.model.blocks import BLOCK_FORMATS, nearest, quantise
    >>> linear, q4_0 = nn.Linear(64, 4), BLOCK_FORMATS["q4_0"]
    >>> start = Start(linear.weight.detach(), *nearest(linear.weight.detach(), q4_0))
    >>> layer = GroupLinear(linear, start, q4_0, group=32, rank=2)
    >>> bool((layer.blocks().codes == quantise(linear.weight.detach(), q4_0).codes).all())
    True
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
        self.block_v = nn.Parameter(random_rows(rank, groups, device))
        if through:
            self.lora_b = nn.Parameter(torch.zeros(outputs, rank, device=device))
            self.lora_a = nn.Parameter(random_rows(rank, columns, device))
            self.lora_a.data[:, self.inputs :] = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        adapters = [self.block_u, self.block_v, *((self.lora_a, self.lora_b) if self.through else ())]
        output = adapted_product(inputs, self, *adapters)
        return output if self.bias is None else output + self.bias

    @torch.no_grad()
    def blocks(self) -> Blocks:
        """The blocks that ship: codes, scales and offsets exactly as trained."""
        scales, offsets = self._adapted()
        # Codes are rounded with the unrounded scale, as the formats' own quantisers do.
        codes = codes_at(self._merged(), scales, offsets, self.format, self.group) if self.through else self.held
        return stored(codes, scales, offsets, self.format, self.group)

    def values(self) -> torch.Tensor:
        """The dequantised weight, float32 [out, in], `in` padded to the grid."""
        return dequantise(self.blocks())

    def gradients(self, values: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of block_u, block_v (and lora_a, lora_b), from the `gradient` of the dequantised `values`.

        Both are [out, in], `in` padded to the grid.
        """
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
        """Whether the block adapter changes minimums. Not with `through`: rounding the weights again would undo it."""
        return self.format.offset == "minimum" and not self.through
