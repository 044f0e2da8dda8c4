"""Activation checkpointing of a whole model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["checkpointed"]


@contextmanager
def checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Recompute activations layer by layer, which transformers only does in training mode: dropout there is 0 in these
    families. The model is in evaluation mode afterwards."""
    if not wanted:
        yield
        return
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    try:
        yield
    finally:
        model.eval()
        model.activation_checkpointing_disable()
