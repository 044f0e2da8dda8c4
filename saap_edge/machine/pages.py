"""Memory pages of the processes that runtimes are in.

Weights that a runtime copied or packed lie in pages of 4 KiB, and decoding reads all of them for every token: looking
up where a page is takes a tenth to a fifth of the time. Huge pages (2 MiB on most machines) spare that.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterator
from pathlib import Path

from saap_edge.machine.sensors import read_text

__all__ = ["HUGE_PAGES", "collapse"]

# glibc asks the kernel for huge pages for large blocks. Others do not know the variable. It is for programs of others;
# `collapse` takes less memory, because a block that is asked for this way is filled up to its last huge page.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

_HUGE = Path("/sys/kernel/mm/transparent_hugepage")
_COLLAPSE = 25  # MADV_COLLAPSE of linux/mman.h, since Linux 6.1
_FILLED = 0.9  # of a huge page, before it becomes one
_TRIES = 8  # refusals, after which no more is asked: the kernel has no memory in one piece


def collapse(folder: Path = _HUGE) -> int:
    """Put memory that this process filled already into huge pages. The bytes that are in them by this call.

    Only blocks that are filled to nine tenths: the process becomes no larger, but for what they lack. 0 where the
    kernel cannot (Linux before 6.1, other systems), has no memory in one piece, or its owner said "never".

    Source: https://man7.org/linux/man-pages/man2/madvise.2.html, MADV_COLLAPSE.
    """
    size, allowed = read_text(folder / "hpage_pmd_size"), read_text(folder / "enabled")
    if not (size and allowed and size.strip().isdigit()) or "[never]" in allowed:
        return 0
    madvise, huge, refused, done = ctypes.CDLL(None, use_errno=True).madvise, int(size), 0, 0
    for start in _filled(huge):
        if madvise(ctypes.c_void_p(start), ctypes.c_size_t(huge), _COLLAPSE) == 0:
            done += huge
        elif ctypes.get_errno() == errno.EINVAL or (refused := refused + 1) == _TRIES:
            break
    return done


def _filled(huge: int) -> Iterator[int]:
    """Where blocks of `huge` bytes begin that hold the process's own memory, nearly all of it present."""
    pages = huge // mmap.PAGESIZE
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as present:
            for first, last in _own():
                for start in range(-(-first // huge) * huge, last - huge + 1, huge):
                    present.seek(start // mmap.PAGESIZE * 8)
                    entries = present.read(pages * 8)
                    # The highest bit of an entry of 8 bytes says that the page is in memory.
                    if sum(byte >> 7 for byte in entries[7::8]) >= _FILLED * pages:
                        yield start
    except OSError:  # the kernel was built without it, or hides it
        return


def _own() -> list[tuple[int, int]]:
    """(begin, end) of the process's private writable memory that is of no file."""
    found = []
    for line in (read_text(Path("/proc/self/maps")) or "").splitlines():
        place, rights, _, _, inode, *name = line.split(None, 5)
        if rights == "rw-p" and inode == "0" and not (name and name[0].startswith(("[stack", "[v"))):
            first, last = place.split("-")
            found.append((int(first, 16), int(last, 16)))
    return found
