"""Written text in a folder: text.txt for people, tokens.safetensors for what learns from it, write.json about both.

The tokens are kept because the text alone does not give them back: the names of special tokens in a text are plain
text to saap-edge (model/tokenizer.py), and a chat's marks have to stay special tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from saap_edge.errors import SaapError
from saap_edge.files import file_hash, write_json

__all__ = ["load_tokens", "save_written", "written_hash"]

TOKENS = "tokens.safetensors"


def save_written(out: Path, documents: list[list[int]], texts: list[str], record: dict[str, Any]) -> None:
    """Write documents of token ids, the same as texts, and the record into the folder `out`."""
    joined = torch.tensor([index for document in documents for index in document], dtype=torch.int32)
    lengths = torch.tensor([len(document) for document in documents], dtype=torch.int32)
    save_file({"tokens": joined, "lengths": lengths}, str(out / TOKENS))
    (out / "text.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    write_json(out / "write.json", record)


def load_tokens(folder: Path) -> torch.Tensor:
    """Token ids of all documents, one after the other, int64 [n]. Raises SaapError where they cannot be read."""
    try:
        return load_file(str(folder / TOKENS))["tokens"].long()
    except (OSError, KeyError, SafetensorError) as error:
        raise SaapError(f"cannot read '{folder / TOKENS}': {error}") from None


def written_hash(folder: Path) -> str:
    """First 12 hex digits of the sha256 of the tokens."""
    return file_hash(folder / TOKENS)[:12]
