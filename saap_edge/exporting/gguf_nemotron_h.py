"""Nemotron-H in llama.cpp, its `nemotron_h`: what each block is follows from its numbers of KV heads and FFN channels.

A block without both is a Mamba-2, one without FFN attention, and the rest are FFNs. So all widths may differ.
"""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import torch

from saap_edge.model.spec import LayerShape, ModelSpec

__all__ = ["add_mamba", "mamba_vectors", "nemotron_h_parts"]

_MAMBA: dict[str, tuple[str, ...]] = {"ssm_in": ("mamba.in_proj",), "ssm_out": ("mamba.out_proj",)}
_ATTENTION: dict[str, tuple[str, ...]] = {
    "attn_q": ("self_attn.q_proj",), "attn_k": ("self_attn.k_proj",), "attn_v": ("self_attn.v_proj",),
    "attn_output": ("self_attn.o_proj",),
}  # fmt: skip
_FFN: dict[str, tuple[str, ...]] = {"ffn_up": ("mlp.up_proj",), "ffn_down": ("mlp.down_proj",)}


def nemotron_h_parts(layer: LayerShape) -> dict[str, tuple[str, ...]]:
    """llama.cpp's projections of a block <- ours.

    >>> nemotron_h_parts(LayerShape(0, 0, 96))
    {'ffn_up': ('mlp.up_proj',), 'ffn_down': ('mlp.down_proj',)}
    """
    return _MAMBA if layer.mamba else _ATTENTION if layer.heads else _FFN


def mamba_vectors(
    spec: ModelSpec, index: int, tensor: Callable[[str], torch.Tensor]
) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    """What a Mamba-2 block has beside projections, in float32: name in the block -> shape, and what reads it.

    `tensor` reads a tensor of the folder. llama.cpp adds a bias to what was convolved in any case.
    """
    mamba, prefix = spec.mamba, f"model.layers.{index}.mamba."
    assert mamba is not None
    channels, heads, grouped = mamba.convolved, (mamba.heads, 1), (mamba.groups, mamba.inner // mamba.groups)

    def bias() -> np.ndarray:
        return tensor(f"{prefix}conv1d.bias").numpy() if mamba.conv_bias else np.zeros(channels, dtype=np.float32)

    return {
        "ssm_conv1d.weight": ((channels, mamba.taps), lambda: tensor(f"{prefix}conv1d.weight").squeeze(1).numpy()),
        "ssm_conv1d.bias": ((channels,), bias),
        "ssm_a": (heads, lambda: -tensor(f"{prefix}A_log").exp().reshape(heads).numpy()),
        "ssm_d": (heads, lambda: tensor(f"{prefix}D").reshape(heads).numpy()),
        "ssm_dt.bias": ((mamba.heads,), lambda: tensor(f"{prefix}dt_bias").numpy()),
        "ssm_norm.weight": (grouped, lambda: tensor(f"{prefix}norm.weight").reshape(grouped).numpy()),
    }


def add_mamba(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    """The metadata of Mamba-2 blocks, and of norms, whose epsilon llama.cpp wants under two names."""
    mamba = spec.mamba
    assert mamba is not None
    writer.add_ssm_conv_kernel(mamba.taps)
    writer.add_ssm_inner_size(mamba.inner)
    writer.add_ssm_state_size(mamba.states)
    writer.add_ssm_time_step_rank(mamba.heads)
    writer.add_ssm_group_count(mamba.groups)
    writer.add_layer_norm_eps(spec.rms_norm_eps)
