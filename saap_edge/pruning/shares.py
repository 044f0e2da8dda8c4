"""Sharing out a pass over calibration batches among the processes of a launch (torchrun, `accelerate launch`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from saap_edge.machine.launch import processes

__all__ = ["ALONE", "Share", "share_of_this_process"]


@dataclass(frozen=True)
class Share:
    """The part of one process: every `count`-th batch, from `rank`.

    >>> Share(1, 3).of(8), ALONE.of(3)
    ([1, 4, 7], [0, 1, 2])
    """

    rank: int = 0
    count: int = 1

    def of(self, batches: int) -> list[int]:
        """Numbers of the batches that this process has."""
        return list(range(self.rank, batches, self.count))

    def summed(self, array: np.ndarray) -> np.ndarray:
        """The sum of the arrays of all processes, of the same shape and type; every process must call it."""
        if self.count == 1 or not array.size:
            return array
        from accelerate import PartialState

        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(PartialState().device)
        torch.distributed.all_reduce(tensor)
        found: np.ndarray = tensor.cpu().numpy()
        return found


ALONE = Share()


def share_of_this_process() -> Share:
    """The share of this process of a launch; the whole where there is no launch.

    A process waits for the others as long as it takes: one that fails ends the launch.
    """
    if processes() == 1:
        return ALONE
    from accelerate import PartialState

    wait: dict[str, Any] = {"timeout": timedelta(days=7)}
    state = PartialState(**wait)
    return Share(state.process_index, state.num_processes)
