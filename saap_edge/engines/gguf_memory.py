"""How llama.cpp should hold a GGUF file in memory."""

from __future__ import annotations

from saap_edge.engines.gguf_header import Header
from saap_edge.formats import REPACKED

__all__ = ["keeps_a_copy"]


def keeps_a_copy(header: Header) -> bool:
    """Whether llama.cpp, where it has kernels for it, holds most of the file's layers a second time, repacked.

    Mapped pages of the file then stay beside the copy: twice the file. Read without a mapping they do not.
    """
    layers = [tensor for tensor in header.tensors if tensor.name.startswith("blk.")]
    repacked = sum(tensor.bytes for tensor in layers if tensor.kind.startswith(REPACKED))
    return 2 * repacked > sum(tensor.bytes for tensor in layers)
