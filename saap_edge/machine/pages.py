"""Memory pages of the processes that runtimes are in."""

from __future__ import annotations

__all__ = ["HUGE_PAGES"]

# glibc asks the kernel for huge pages for large blocks. Others do not know the variable. Weights that a runtime copied
# or packed lie in such blocks, and decoding reads all of them for every token (docs/memory.md has figures).
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
