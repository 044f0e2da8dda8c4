"""Loading a folder's tokenizer as transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from saap_edge.errors import SaapError
from saap_edge.model.classes import TRANSFORMERS_4

__all__ = ["BACKEND_5", "PLAIN", "load_tokenizer"]

PLAIN = "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it is
BACKEND_5 = "TokenizersBackend"  # its name in transformers 5


def load_tokenizer(folder: str | Path) -> Any:
    """The folder's tokenizer. Raises SaapError when there is none, or transformers cannot load it."""
    try:
        config = Path(folder) / "tokenizer_config.json"
        if TRANSFORMERS_4 and config.is_file() and json.loads(config.read_text()).get("tokenizer_class") == BACKEND_5:
            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:  # tokenizers raises nothing more specific
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SaapError(f"cannot load a tokenizer from '{folder}': {reason}") from error
