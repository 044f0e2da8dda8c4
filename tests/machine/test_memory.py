"""Freed memory goes back to the system."""

import ctypes
import os

import pytest

from saap_edge.machine import memory
from saap_edge.machine.memory import give_back


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_gaps_between_blocks_in_use_are_given_back():
    blocks = [bytearray(b"x" * 60_000) for _ in range(2000)]  # below the size that is mapped by itself
    kept = blocks[::20]
    del blocks
    before = resident()
    give_back()
    assert resident() < before - 60_000_000 and all(block == b"x" * 60_000 for block in kept)


def test_a_library_without_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_trim", lambda: None)
    give_back()
