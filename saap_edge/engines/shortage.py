"""What to say where memory does not suffice for an artifact."""

from __future__ import annotations

import re
from pathlib import Path

from saap_edge.machine.limits import memory

__all__ = ["advice", "is_shortage"]

MIB = 2**20
# llama.cpp's and ggml's words, C++'s and Python's.
_WORDS = re.compile(r"alloc|mem_buffer|out of memory|MemoryError", re.IGNORECASE)


def is_shortage(reason: str) -> bool:
    """Whether a runtime's last words say that it got no memory.

    >>> is_shortage("unable to allocate CPU buffer"), is_shortage("std::bad_alloc"), is_shortage("bad magic")
    (True, True, False)
    """
    return bool(_WORDS.search(reason))


def advice(path: Path) -> str:
    """What an artifact has, what there is of memory, and what to do, in two sentences."""
    total, free = memory()
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return (
        f"The artifact has {size / MIB:.1f} MiB and needs its KV cache and work space beside; {free / MIB:.0f} of "
        f"{total / MIB:.0f} MiB are free here, as far as the control group allows. Take fewer bits, prune more, a "
        "shorter prompt or context, or keys and values in fewer bits (--kv)"
    )
