"""LFM2 in llama.cpp: q and o are as wide as the model there, whatever heads are left. KV heads are a number per layer.

The heads that are gone become heads of zeros, and query heads stay with their KV head: KV head k of the file has the
query heads of the model's KV head k first, then zeros. There are as few KV heads as can share all query heads evenly. A
query head of zeros is zero after its norm too, and its columns of o are zero: it adds nothing.
"""

from __future__ import annotations

import numpy as np

from saap_edge.model.blocks import BLOCK
from saap_edge.model.spec import LayerShape, ModelSpec

__all__ = ["file_heads", "head_places", "lfm2_limit"]


def file_heads(spec: ModelSpec, layer: LayerShape) -> tuple[int, int] | None:
    """Query and KV heads in the file of a layer with attention; None where they cannot be shared evenly.

    >>> from types import SimpleNamespace
    >>> spec = SimpleNamespace(hidden=1024, head_dim=64)
    >>> [file_heads(spec, LayerShape(*heads, ffn=96)) for heads in ((8, 4), (6, 3), (2, 2))]
    [(16, 4), (16, 4), (16, 2)]
    """
    heads = spec.hidden // spec.head_dim
    slots = layer.heads // layer.kv_heads
    shared = (count for count in range(layer.kv_heads, heads + 1) if heads % count == 0 and heads // count >= slots)
    return next(((heads, count) for count in shared), None)


def head_places(spec: ModelSpec, layer: LayerShape, queries: bool) -> np.ndarray:
    """Rows of the file's q (or columns of its o) that hold the model's, in order; those of k and v if not `queries`."""
    found = file_heads(spec, layer)
    assert found is not None
    slots, room = (layer.heads // layer.kv_heads, found[0] // found[1]) if queries else (1, 1)
    heads = (np.arange(layer.kv_heads)[:, None] * room + np.arange(slots)).ravel()
    places: np.ndarray = (heads[:, None] * spec.head_dim + np.arange(spec.head_dim)).ravel()
    return places


def lfm2_limit(spec: ModelSpec) -> str | None:
    """Why llama.cpp's 'lfm2' cannot hold this model, or None."""
    if not spec.convolutions:
        return "llama.cpp ends the process at an 'lfm2' without convolutions"
    hidden, width = spec.hidden, spec.head_dim
    if hidden % width:
        return f"llama.cpp's 'lfm2' has heads that fill the hidden size {hidden}, which heads of {width} do not"
    for index, layer in enumerate(spec.layers):
        if not layer.heads:
            continue
        slots = layer.heads // layer.kv_heads
        if file_heads(spec, layer) is None:
            return (
                f"llama.cpp's 'lfm2' has {hidden // width} query heads, which {layer.kv_heads} kv heads of {slots} "
                f"cannot share (layer {index})"
            )
        if not _in_blocks(head_places(spec, layer, queries=True)):
            return (
                f"{slots} query heads of {width} to a kv head, with zeros behind them, fill no blocks of {BLOCK} "
                f"(layer {index})"
            )
    return None


def _in_blocks(places: np.ndarray) -> bool:
    """Whether whole blocks of BLOCK columns come to places of whole blocks."""
    if len(places) % BLOCK:
        return False
    blocks = places.reshape(-1, BLOCK)
    return not (blocks[:, 0] % BLOCK).any() and bool((blocks == blocks[:, :1] + np.arange(BLOCK)).all())
