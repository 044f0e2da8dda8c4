"""Whether a tokenizer is the one that a model was made with: another one's ids give figures that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saap_edge.bundle.check import vocabulary
from saap_edge.engines.gguf_header import read_strings
from saap_edge.errors import SaapError

__all__ = ["check_tokenizer"]

OTHERS = 0.1  # of the tokens at most may be called otherwise: converters rename special and unused ones


def check_tokenizer(tokenizer: Any, origin: Path, path: Path, vocab_size: int | None) -> None:
    """Raises SaapError when `tokenizer` (of the folder `origin`) has more tokens than the model at `path` with
    `vocab_size`, or calls them otherwise than the vocabulary that is there."""
    # Without added tokens: Gemma 3 has one of these beyond its model's vocabulary, and no text gives it.
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise SaapError(
            f"the tokenizer of '{origin}' is another model's: it has {tokenizer.vocab_size} tokens, '{path}' has "
            f"{vocab_size}"
        )
    own = _pieces(path) if origin != path else {}
    shared = sorted(own.keys() & set(range(len(tokenizer))))
    pieces = tokenizer.convert_ids_to_tokens(shared)
    other = sum(own[token] != piece for token, piece in zip(shared, pieces, strict=True))
    if other > OTHERS * len(shared):
        raise SaapError(
            f"the tokenizer of '{origin}' is another model's: {other} of {len(shared)} tokens are called otherwise in "
            f"'{path}'"
        )


def _pieces(path: Path) -> dict[int, str]:
    """Pieces by id of a GGUF file, or of the tokenizer.json of a folder; none where there is none."""
    if path.suffix == ".gguf":
        return dict(enumerate(read_strings(path, "tokenizer.ggml.tokens") or []))
    try:
        document = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        return {token: piece for piece, token in vocabulary(document).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
