"""Masks on structures: what a masked model computes is what it would compute without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from saap_edge.pruning.space import Space, shape_widths
from saap_edge.pruning.surgery import output_projections

__all__ = ["masked"]


@contextmanager
def masked(model: Any, space: Space, masks: Mapping[tuple[int, str], torch.Tensor]) -> Iterator[None]:
    """Multiply the inputs of o_proj and down_proj by masks: at 0, a KV group or an FFN channel is as good as gone.

    Args:
        model: the dense transformers model.
        masks: for some (layer, "attention" or "ffn"), a factor for every structure, [structures]. They are read at
            every pass, and gradients reach them.
    """
    with ExitStack() as hooks:
        for index, layer in enumerate(model.model.layers):
            shape = space.shapes[index]
            widths = {"attention": shape_widths(shape)["slots"] * space.head_width(index), "ffn": 1}
            for sublayer, module in output_projections(layer).items():

                def mask(module: Any, inputs: Any, key: Any = (index, sublayer), width: int = widths[sublayer]) -> Any:
                    if key not in masks:
                        return inputs
                    kept = masks[key].to(inputs[0]).repeat_interleave(width)
                    return (inputs[0] * kept, *inputs[1:])

                hooks.callback(module.register_forward_pre_hook(mask).remove)
        yield
