"""Loading a folder's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from saap_edge.errors import SaapError

__all__ = ["BACKEND_5", "PLAIN", "load_tokenizer"]

PLAIN = "PreTrainedTokenizerFast"  # the class that uses tokenizer.json as it is
BACKEND_5 = "TokenizersBackend"  # its name in transformers 5


def load_tokenizer(folder: str | Path) -> Any:
    """The folder's tokenizer, as tokenizer.json describes it: so the model was trained, and so other runtimes read it.

    AutoTokenizer of transformers 5 splits text by a rule of its own for some classes. Raises SaapError when there is no
    tokenizer, or transformers cannot load it.
    """
    described = (Path(folder) / "tokenizer.json").is_file()
    try:
        return (PreTrainedTokenizerFast if described else AutoTokenizer).from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises nothing more specific
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SaapError(f"cannot load a tokenizer from '{folder}': {reason}") from error


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text, without BOS or EOS.

    The name of a special token in it ("<unk>" in WikiText) is ordinary text, as in llama.cpp.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids
