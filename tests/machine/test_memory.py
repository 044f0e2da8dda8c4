"""Freed memory goes back to the system."""

import ctypes

import psutil
import pytest

from saap_edge.machine import memory
from saap_edge.machine.memory import give_back


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_gaps_between_blocks_in_use_are_given_back():
    blocks = [bytearray(b"x" * 60_000) for _ in range(2000)]  # below the size that is mapped by itself
    kept = blocks[::20]
    del blocks
    process = psutil.Process()
    before = process.memory_info().rss
    give_back()
    assert process.memory_info().rss < before - 60_000_000 and all(block == b"x" * 60_000 for block in kept)


def test_a_library_without_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory, "_trim", lambda: None)
    give_back()
