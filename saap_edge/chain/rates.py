"""What this machine does in a second, and what a stage does: time is one over the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["Estimate", "Rates", "Work", "measure_rates"]


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second: float32 operations of matrix products, and bytes copied."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of memory."""

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """float32 operations, float64 operations, bytes moved, and seconds that do not depend on the model."""

    flops: float = 0.0
    doubles: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops, self.doubles + other.doubles, self.bytes + other.bytes,
            self.seconds + other.seconds,
        )  # fmt: skip

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.doubles * times, self.bytes * times, self.seconds * times)

    def time(self, rates: Rates) -> float:
        return self.flops / rates.flops + 2 * self.doubles / rates.flops + self.bytes / rates.bytes + self.seconds


@cache
def measure_rates(clock: Callable[[], float] = time.perf_counter) -> Rates | None:
    """Measure the rates of this process, with the threads that it uses. None where a GPU works: its rates are unknown.

    With one thread and `clock=time.process_time`, the rates are per second of CPU time, which others do not disturb.
    """
    import torch

    if torch.cuda.is_available():
        return None
    # No random numbers: they would change those that the run draws later.
    left, right, source = torch.full((1024, 1024), 0.5), torch.full((1024, 1024), 0.5), torch.full((1 << 24,), 0.5)
    target = torch.empty_like(source)
    products = _per_second(lambda: torch.mm(left, right), 0.2, clock)
    copies = _per_second(lambda: target.copy_(source), 0.1, clock)
    return Rates(products * 2 * 1024**3, copies * source.numel() * 4)


def _per_second(call: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    call()
    start, calls = clock(), 0
    while clock() - start < seconds:
        call()
        calls += 1
    return calls / (clock() - start)
