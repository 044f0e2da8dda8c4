"""Activation checkpointing of a whole model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["checkpointed"]


@contextmanager
def checkpointed(model: Any, wanted: bool) -> Iterator[None]:
    """Recompute activations layer by layer inside this context, if `wanted`.

    transformers does that in training mode only; these families have no dropout. Afterwards the model is in evaluation
    mode.
    """
    if not wanted:
        yield
        return
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # transformers 4's name
    getattr(model, f"{kind}_checkpointing_enable")({"use_reentrant": False})
    model.train()
    try:
        yield
    finally:
        model.eval()
        getattr(model, f"{kind}_checkpointing_disable")()
