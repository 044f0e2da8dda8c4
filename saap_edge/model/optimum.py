"""Our ONNX folders in optimum, also with widths per layer. Needs `pip install 'saap-edge[optimum]'`.

`SaapEdgeORTModel.from_pretrained(folder)` is used like ORTModelForCausalLM.
"""

from __future__ import annotations

from typing import Any

import torch
from optimum.onnxruntime import ORTModelForCausalLM

import saap_edge.model.folder  # noqa: F401 (transformers learns there what a saap_edge config.json is)
from saap_edge.errors import SaapError

__all__ = ["SaapEdgeORTModel"]


class SaapEdgeORTModel(ORTModelForCausalLM):
    """optimum's model, with the KV cache of every layer in the shape that the graph has."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords | {"use_io_binding": False})  # its buffers have one shape for all layers

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, past_key_values: Any = None,
        **keywords: Any,
    ) -> Any:  # fmt: skip
        """Logits [batch, seq, vocab] and per layer (keys, values) [batch, kv heads of the layer, total, head_dim].

        Raises SaapError when `attention_mask` pads on the left and the graph has no input for positions.
        """
        batch, seq = input_ids.shape
        if past_key_values is None:
            past_key_values = self._empty_cache(batch)
        if attention_mask is None:
            attention_mask = input_ids.new_ones(batch, past_key_values[0][0].shape[2] + seq)
        if "position_ids" not in self.input_names and not attention_mask[:, 0].all():
            raise SaapError("the graph takes sequences that begin at position 0: pad on the right, or run them singly")
        return super().forward(input_ids, attention_mask, past_key_values, **keywords)

    def _empty_cache(self, batch: int) -> tuple[tuple[torch.Tensor, ...], ...]:
        shapes = [self.input_shapes[name] for name in self.key_value_input_names]
        flat = [torch.zeros(batch, heads, 0, head_dim, dtype=self.dtype) for _, heads, _, head_dim in shapes]
        return tuple(zip(flat[0::2], flat[1::2], strict=True))
