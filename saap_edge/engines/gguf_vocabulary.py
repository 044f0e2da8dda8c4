"""Asks llama.cpp about the vocabulary of a GGUF file: `python -m saap_edge.engines.gguf_vocabulary FILE`.

Stdin is a JSON array of texts. Stdout is one object: `ids` of each text with what the file puts around texts and with
special tokens read in them, and `ends`, all ids at which llama.cpp ends a text. No weights are read.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

os.environ.setdefault("GGML_NO_BACKTRACE", "1")

import llama_cpp

__all__ = ["main"]


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _user_data: object) -> None:
    """llama.cpp prints pages."""


def main() -> None:
    texts = json.load(sys.stdin)
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters)
    if not model:
        sys.exit("llama.cpp cannot load it")
    vocab = llama_cpp.llama_model_get_vocab(model)
    count = llama_cpp.llama_vocab_n_tokens(vocab)
    ends = [index for index in range(count) if llama_cpp.llama_vocab_is_eog(vocab, index)]
    json.dump({"ids": [_ids(vocab, text) for text in texts], "ends": ends}, sys.stdout)


def _ids(vocab: object, text: str) -> list[int]:
    data = text.encode("utf-8")
    room = len(data) + 8
    ids = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, room, True, True)
    return list(ids[:count])


if __name__ == "__main__":
    main()
