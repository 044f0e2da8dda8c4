"""Qwen3.5 in llama.cpp, its `qwen35`: layers of one width, and value heads of gated DeltaNets in another order.

A value head h of the model shares key head h // r, where r value heads share one. In the file it shares key head
h % (number of key heads): the first value heads of all key heads come first, then the second ones.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import torch

from saap_edge.exporting.gguf_rows import placed
from saap_edge.families.qwen3_5 import sections
from saap_edge.model.blocks import BLOCK
from saap_edge.model.spec import LayerShape, ModelSpec

__all__ = ["DELTA_NET", "add_delta_nets", "delta_net_vectors", "qwen35_limit", "value_places"]

LENGTH_EPS = 1e-6  # transformers', added to the squared lengths of queries and keys
_EVERY = 4  # llama.cpp's own: every so many layers one has attention

# llama.cpp's projection <- ours, stacked if there are several.
DELTA_NET: dict[str, tuple[str, ...]] = {
    "attn_qkv": ("linear_attn.in_proj_q", "linear_attn.in_proj_k", "linear_attn.in_proj_v"),
    "attn_gate": ("linear_attn.in_proj_z",), "ssm_beta": ("linear_attn.in_proj_b",),
    "ssm_alpha": ("linear_attn.in_proj_a",), "ssm_out": ("linear_attn.out_proj",),
}  # fmt: skip


def value_places(layer: LayerShape, width: int, first: int = 0) -> np.ndarray:
    """Where the file has the rows of value heads, each of `width`, behind `first` rows that stay where they are.

    >>> value_places(LayerShape(heads=4, kv_heads=2, ffn=96, linear=True), width=1, first=1).tolist()
    [0, 1, 3, 2, 4]
    """
    shared = layer.heads // layer.kv_heads
    heads = np.arange(layer.heads).reshape(shared, layer.kv_heads).T.ravel()
    rows = (heads[:, None] * width + np.arange(width)).ravel()
    places: np.ndarray = np.concatenate([np.arange(first), first + rows])
    return places


def delta_net_vectors(
    spec: ModelSpec, index: int, tensor: Callable[[str], torch.Tensor]
) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    """What a DeltaNet has beside projections, in float32: name in the block -> shape, and what reads it.

    `tensor` reads a tensor of the folder.
    """
    delta, layer, prefix = spec.delta, spec.layers[index], f"model.layers.{index}.linear_attn."
    assert delta is not None
    keys, heads = layer.kv_heads * delta.keys, layer.heads
    channels = 2 * keys + heads * delta.values

    def kernels() -> np.ndarray:
        parts = [tensor(f"{prefix}conv_{letter}.weight").squeeze(1) for letter in "qkv"]
        return placed(torch.cat(parts).numpy(), value_places(layer, delta.values, 2 * keys), channels)

    def by_head(values: torch.Tensor) -> np.ndarray:
        return placed(values.numpy(), value_places(layer, 1), heads)

    return {
        "ssm_conv1d.weight": ((channels, delta.taps), kernels),
        "ssm_a": ((heads,), lambda: by_head(-tensor(f"{prefix}A_log").exp())),
        "ssm_dt.bias": ((heads,), lambda: by_head(tensor(f"{prefix}dt_bias"))),
        "ssm_norm.weight": ((delta.values,), lambda: tensor(f"{prefix}norm.weight").numpy()),
    }


def add_delta_nets(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    """The metadata of DeltaNets, and of rotary positions, which have several axes in models that see images."""
    delta, linear = spec.delta, [layer.linear for layer in spec.layers]
    assert delta is not None and spec.rotary is not None
    layer = next((layer for layer in spec.layers if layer.linear), LayerShape(1, 1, 0, linear=True))
    writer.add_ssm_conv_kernel(delta.taps)
    writer.add_ssm_state_size(delta.keys)
    writer.add_ssm_group_count(layer.kv_heads)
    writer.add_ssm_time_step_rank(layer.heads)
    writer.add_ssm_inner_size(layer.heads * delta.values)
    writer.add_full_attention_interval(_EVERY)
    writer.add_array("qwen35.attention.recurrent_layers", linear)
    writer.add_rope_dimension_sections([*sections(spec.rotary // 2), 0])


def qwen35_limit(spec: ModelSpec) -> str | None:
    """Why llama.cpp's 'qwen35' cannot hold this model, or None."""
    delta = spec.delta
    if delta is None or not any(layer.linear for layer in spec.layers):
        return "llama.cpp's 'qwen35' without any gated DeltaNet is not written"
    if delta.keys != delta.values:
        return f"llama.cpp's 'qwen35' has keys and values of one size, this model has {delta.keys} and {delta.values}"
    if spec.rms_norm_eps != LENGTH_EPS:
        return (
            f"llama.cpp's 'qwen35' adds rms_norm_eps ({spec.rms_norm_eps:g}) to the squared lengths of queries and "
            f"keys, where transformers adds {LENGTH_EPS:g}"
        )
    for index, layer in enumerate(spec.layers):
        if layer.linear and layer.heads != layer.kv_heads and delta.values % BLOCK:
            return f"value heads of {delta.values} fill no blocks of {BLOCK}, and take another order (layer {index})"
    return None
