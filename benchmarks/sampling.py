"""Looking at something again and again while a block runs, for peaks that the kernel does not keep."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["sampling"]


@contextmanager
def sampling(look: Callable[[], None], every: float) -> Iterator[None]:
    """Call `look` every so many seconds, in a thread, until the block ends."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every):
            look()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
