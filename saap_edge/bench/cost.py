"""The floor: bytes one decoded token has to read."""

from __future__ import annotations

__all__ = ["bytes_per_token"]


def bytes_per_token(projection_bytes: int, kv_bytes_per_token: int, context: int) -> int:
    """Weights once, and keys and values of `context` tokens: what decoding one token reads from memory."""
    return projection_bytes + kv_bytes_per_token * context
