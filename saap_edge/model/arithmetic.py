"""In which arithmetic passes over text multiply matrices: bfloat16 where the processor has it, float32 elsewhere.

Inputs of matrix products and of attention are rounded to bfloat16; what is added up over layers (the residual stream),
norms, Gram matrices, losses and every solution of a linear system stay in float32 or float64. docs/speed.md has what
that does to time and to plans.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeVar

import torch
from torch import nn

__all__ = ["Precision", "halved_products", "multiplied", "products", "uses_bfloat16"]

Precision = Literal["auto", "float32", "bfloat16"]
# Names in torch.cpu.get_capabilities, of instructions that multiply bfloat16 and add in float32.
_MULTIPLIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
_Result = TypeVar("_Result")
_Model = TypeVar("_Model", bound=nn.Module)


def uses_bfloat16(precision: Precision) -> bool:
    """What a precision means on this machine.

    >>> uses_bfloat16("float32"), uses_bfloat16("bfloat16")
    (False, True)
    """
    if precision == "auto":
        known: Any = torch.cpu.get_capabilities()
        return any(known.get(name, False) for name in _MULTIPLIES)
    return precision == "bfloat16"


def products(precision: Precision) -> AbstractContextManager[Any]:
    """A context in which products of matrices on the CPU are taken in this precision.

    Casts are not kept: weights may change between two products.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=uses_bfloat16(precision), cache_enabled=False)


def multiplied(precision: Precision, act: Callable[..., _Result]) -> Callable[..., _Result]:
    """The function, with its products in this precision."""

    def inside(*inputs: Any, **keywords: Any) -> _Result:
        with products(precision):
            return act(*inputs, **keywords)

    return inside


def halved_products(model: _Model) -> _Model:
    """The model, whose linear layers keep their weights in bfloat16; all else stays. Not to be trained.

    Under autocast to bfloat16 it gives the same answers as before, without a cast at every product.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear):
            # A parameter of its own: the head's may be the embedding's, whose rows are added up in float32.
            part.weight = nn.Parameter(part.weight.detach().bfloat16(), requires_grad=False)
            if part.bias is not None:
                part.bias = nn.Parameter(part.bias.detach().bfloat16(), requires_grad=False)
    return model
