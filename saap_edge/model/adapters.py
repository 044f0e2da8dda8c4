"""What of a linear layer is trained: low-rank adapters that merge into the weight afterwards, or the weight itself.

LoraLinear  adds: W' = W + B A (LoRA, arXiv 2106.09685)
SppLinear   multiplies: W' = W * (1 + 2 beta alpha), element by element (SPP, arXiv 2405.16057), so that zeros stay
WholeLinear trains all of W
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from saap_edge.families import Family

__all__ = [
    "Adapted",
    "LoraLinear",
    "SppLinear",
    "WholeLinear",
    "adapted_product",
    "change_projections",
    "put",
    "random_rows",
]

SCALE = 2.0  # s of SPP: its code's lora_alpha 16 over lora_r 8


class LoraLinear(nn.Module):
    """A frozen linear layer with a low-rank update in full precision (arXiv 2106.09685). Untrained it changes nothing.

    >>> linear = nn.Linear(8, 4)
    >>> bool((LoraLinear(linear, rank=2)(torch.eye(8)) == linear(torch.eye(8))).all())
    True
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        outputs, inputs = linear.weight.shape
        self.lora_a = nn.Parameter(random_rows(rank, inputs, linear.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank, device=linear.weight.device))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.linear(inputs)
        return output + nn.functional.linear(nn.functional.linear(inputs, self.lora_a), self.lora_b)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Add the update to the linear layer's weight, in place, and return that layer."""
        self.linear.weight += (self.lora_b @ self.lora_a).to(self.linear.weight.dtype)
        return self.linear


class SppLinear(nn.Module):
    """A frozen linear layer whose weight is multiplied, so that its zeros stay zeros (SPP, arXiv 2405.16057).

    With W [out, in] this is the paper's

        W' = W + s W * Repeat(alpha) * beta

    where products are element by element, alpha [rank, in] is repeated so that each of its rows serves out / rank
    consecutive rows of W, and beta [out, 1] is a factor for every row. s is SCALE; alpha starts at random within
    1 / sqrt(in), and beta at 0, so that an untrained layer changes nothing, as in the authors' code
    (github.com/Lucky-Lance/SPP). Two things are ours: `out` need not be a multiple of the rank, and there is no
    dropout.

    Autograd keeps the layer's input, but nothing of the weight's size: W' is computed again for the gradient. What is
    merged is the very W' that was computed with.

    >>> linear = nn.Linear(8, 4)
    >>> bool((SppLinear(linear, rank=2)(torch.eye(8)) == linear(torch.eye(8))).all())
    True
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        (outputs, inputs), device = linear.weight.shape, linear.weight.device
        rank = min(rank, outputs)
        self.row: torch.Tensor  # of alpha, for every row of the weight
        self.register_buffer("row", torch.arange(outputs, device=device) * rank // outputs, persistent=False)
        self.spp_alpha = nn.Parameter((torch.rand(rank, inputs) * 2 - 1).to(device) / inputs**0.5)
        self.spp_beta = nn.Parameter(torch.zeros(outputs, 1, device=device))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output = adapted_product(inputs, self, self.spp_alpha, self.spp_beta)
        return output if self.linear.bias is None else output + self.linear.bias

    @torch.no_grad()
    def values(self) -> torch.Tensor:
        """The adapted weight W' [out, in]."""
        change = self.spp_alpha[self.row].mul_(self.spp_beta).mul_(SCALE)
        return change.add_(1).mul_(self.linear.weight)

    def gradients(self, values: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of alpha and beta, from the `gradient` [out, in] of the adapted weight `values`."""
        change = gradient * self.linear.weight * SCALE
        beta = (change * self.spp_alpha[self.row]).sum(1, keepdim=True)
        alpha = torch.zeros_like(self.spp_alpha).index_add_(0, self.row, change.mul_(self.spp_beta))
        return [alpha, beta]

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Put the adapted weight into the linear layer, in place, and return that layer."""
        self.linear.weight.copy_(self.values())
        return self.linear


class WholeLinear(nn.Module):
    """A linear layer whose own weight is trained. Its optimizer holds three times the weight beside it.

    >>> linear = nn.Linear(8, 4)
    >>> bool((WholeLinear(linear)(torch.eye(8)) == linear(torch.eye(8))).all())
    True
    """

    def __init__(self, linear: nn.Linear, rank: int = 0) -> None:
        """`rank` is not used: there is nothing of low rank."""
        super().__init__()
        self.linear = linear
        # A copy: the folder's weights may be mapped, and what is mapped is not to be written to.
        linear.weight = nn.Parameter(linear.weight.detach().clone())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.linear(inputs)
        return output

    def merge(self) -> nn.Linear:
        """The layer as trained, frozen again."""
        self.linear.weight.requires_grad_(False)
        self.linear.weight.grad = None
        return self.linear


class Adapted(Protocol):
    """A layer whose weight follows from adapters.

    `values` gives the weight, float32 [out, at least in]: columns beyond the input's width are padding. `gradients`
    gives the gradients of the adapters, from the weight and its gradient.
    """

    def values(self) -> torch.Tensor: ...

    def gradients(self, values: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]: ...


def adapted_product(inputs: torch.Tensor, layer: Adapted, *adapters: torch.Tensor) -> torch.Tensor:
    """inputs [..., in] @ values.T, with gradients to the inputs and to the layer's adapters.

    `adapters` are parameters, in the order in which `layer.gradients` gives their gradients. Autograd keeps the inputs
    only.
    """
    output: torch.Tensor = _Product.apply(inputs, layer, *adapters)  # type: ignore[no-untyped-call]
    return output


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, inputs: torch.Tensor, layer: Adapted, *adapters: torch.Tensor) -> torch.Tensor:
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))
        context.save_for_backward(inputs)
        context.layer = layer
        with torch.autocast(kind, enabled=False):  # the weight is what ships, whatever the products' precision
            values = layer.values()
        return inputs @ values[:, : inputs.shape[-1]].to(inputs.dtype).T

    @staticmethod
    @torch.no_grad()
    def backward(context: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        (inputs,), layer = context.saved_tensors, context.layer
        values, width = layer.values(), inputs.shape[-1]
        back = gradient @ values[:, :width].to(gradient.dtype)
        rows = gradient.flatten(0, -2).T.float() @ inputs.flatten(0, -2).float()
        rows = nn.functional.pad(rows, (0, values.shape[1] - width))
        return back, None, *layer.gradients(values, rows)


def put(layer: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule `name` of a decoder layer, in place.

    >>> layer = nn.ModuleDict({"mlp": nn.ModuleDict({"up_proj": nn.Linear(2, 2)})})
    >>> put(layer, "mlp.up_proj", nn.Identity())
    >>> layer.get_submodule("mlp.up_proj")
    Identity()
    """
    parent, _, leaf = name.rpartition(".")
    setattr(layer.get_submodule(parent), leaf, module)


def change_projections(model: Any, family: Family, change: Callable[[Any], Any], first: int = 0) -> None:
    """Replace projections of a transformers model by what `change` makes of them, in place, in the layers' order.

    `first`: the first layer whose projections are replaced.
    """
    for layer in model.model.layers[first:]:
        for name in family.linears(layer):
            put(layer, name, change(layer.get_submodule(name)))


def random_rows(rank: int, columns: int, device: torch.device) -> torch.Tensor:
    """Random numbers [rank, columns] of variance 1 / columns, drawn on the CPU: the same on every device."""
    values: torch.Tensor = torch.randn(rank, columns) / columns**0.5
    return values.to(device)
