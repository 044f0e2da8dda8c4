"""Loading a folder's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from saap_edge.errors import SaapError

__all__ = ["BACKEND_5", "PLAIN", "load_tokenizer"]

PLAIN = "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it is
BACKEND_5 = "TokenizersBackend"  # its name in transformers 5


def load_tokenizer(folder: str | Path) -> Any:
    """The folder's tokenizer, as its tokenizer.json says: so do other runtimes, and so was it trained.

    AutoTokenizer of transformers 5 gives some classes a rule of their own instead. Raises SaapError when there is no
    tokenizer, or transformers cannot load it.
    """
    described = (Path(folder) / "tokenizer.json").is_file()
    try:
        return (PreTrainedTokenizerFast if described else AutoTokenizer).from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises nothing more specific
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SaapError(f"cannot load a tokenizer from '{folder}': {reason}") from error


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text: the name of a special token in it ("<unk>" in WikiText) is text like any other, as in
    llama.cpp. Nothing is added around it.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids
