"""A launch of several processes (torchrun, `accelerate launch`), as far as its environment tells."""

from __future__ import annotations

import os

__all__ = ["processes"]


def processes() -> int:
    """How many processes the launch has that this one belongs to; 1 without a launch."""
    return int(os.environ.get("WORLD_SIZE", 1))
