"""What written text depends on, without a library: the estimate counts with it before any is loaded."""

from __future__ import annotations

__all__ = ["FORMAT", "LONGEST"]

FORMAT = "gguf-q8_0"  # that the model writes in
LONGEST = 768  # tokens of a document
