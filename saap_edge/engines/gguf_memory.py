"""How llama.cpp should hold a GGUF file in memory."""

from __future__ import annotations

from pathlib import Path

from saap_edge.engines.gguf_header import Header, read_header
from saap_edge.errors import SaapError
from saap_edge.formats import REPACKED
from saap_edge.machine.pages import HUGE_PAGES

__all__ = ["environment_for", "keeps_a_copy"]


def keeps_a_copy(header: Header) -> bool:
    """Whether llama.cpp, where it has kernels for it, holds most of the file's layers a second time, repacked.

    Mapped pages of the file then stay beside the copy: twice the file. Read without a mapping they do not.
    """
    layers = [tensor for tensor in header.tensors if tensor.name.startswith("blk.")]
    repacked = sum(tensor.bytes for tensor in layers if tensor.kind.startswith(REPACKED))
    return 2 * repacked > sum(tensor.bytes for tensor in layers)


def environment_for(path: Path) -> dict[str, str]:
    """HUGE_PAGES for a file that is read. In pages of 4 KiB, decoding from it is slower than from a mapped one.

    The kernel's cache, to which a mapping leads, has large pages by itself (docs/memory.md has figures).
    """
    try:
        return HUGE_PAGES if keeps_a_copy(read_header(path)) else {}
    except SaapError:  # whoever loads the file will say what is wrong with it
        return {}
