"""llama.cpp as an engine, through llama-cpp-python's low-level binding. Needs only numpy and the runtime."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.gguf_cost import gguf_cost
from saap_edge.engines.gguf_header import read_header
from saap_edge.engines.gguf_memory import keeps_a_copy
from saap_edge.engines.gguf_shape import read_shape
from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.options import KV_TYPES, UBATCH, kv_bytes, kv_refusal, kv_type
from saap_edge.engines.registry import EngineRecord, register_engine
from saap_edge.engines.shortage import advice, is_shortage
from saap_edge.errors import SaapError

__all__ = ["LlamaCppEngine", "LlamaCppVocabulary"]

# Without this, an abort inside ggml tries to attach a debugger to the process.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
llama_cpp = lazy_import("llama_cpp")

_LOG_ERROR = 4  # ggml_log_level: 1 debug, 2 info, 3 warn, 4 error


_errors: list[str] = []  # llama.cpp's last messages; global, because its log callback is a plain function


def _log_errors(level: int, text: bytes, _user_data: Any) -> None:
    if level == _LOG_ERROR:
        _errors[:] = [*_errors[-1:], text.decode(errors="replace").strip()]
        os.write(2, text)


def _hint(reason: str, path: Path) -> str:
    """What to do, where memory was short."""
    return f". {advice(path)}" if is_shortage(reason) else ""


@cache
def _log_callback() -> Any:
    """The log callback. It is kept alive, because llama.cpp calls it as long as the process lives."""
    return llama_cpp.llama_log_callback(_log_errors)


class LlamaCppVocabulary:
    """The tokenizer of a GGUF file in llama.cpp: no weights are read and nothing is computed."""

    name = "llama.cpp"
    vocabulary_only = True

    def __init__(self, path: Path) -> None:
        """Load `path`. Raises SaapError when llama.cpp refuses it."""
        self.path = path
        llama_cpp.llama_log_set(_log_callback(), ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = self._loading()
        self._model = llama_cpp.llama_model_load_from_file(str(self.path).encode(), parameters)
        if not self._model:
            reason = "; ".join(dict.fromkeys(_errors)) or "no reason given"
            raise SaapError(f"'{self.path}': llama.cpp cannot load it: {reason}{_hint(reason, path)}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))

    def _loading(self) -> Any:
        """The parameters with which the file is loaded."""
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers, parameters.vocab_only = 0, self.vocabulary_only
        return parameters

    def kv_bytes_per_token(self) -> int:
        """0: a vocabulary has no KV cache."""
        return 0

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. Raises SaapError when llama.cpp cannot split it.

        `add_special` adds BOS and EOS as the file says; `parse_special` reads names of special tokens as tokens.
        """
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
        if count < 0:
            raise SaapError(f"'{self.path}': llama.cpp cannot tokenise the text")
        return list(ids[:count])

    def ends(self) -> list[int]:
        """Token ids at which llama.cpp ends a text."""
        return [index for index in range(self.vocab_size) if llama_cpp.llama_vocab_is_eog(self._vocab, index)]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        room = 64 * (len(tokens) + 1)
        buffer = ctypes.create_string_buffer(room)
        count = llama_cpp.llama_detokenize(self._vocab, ids, len(tokens), buffer, room, True, False)
        return buffer.raw[: max(count, 0)].decode("utf-8", errors="replace")


class LlamaCppEngine(LlamaCppVocabulary):
    """A GGUF file in llama.cpp on the CPU: one sequence, flash attention.

    Flash attention is not for speed alone: without it llama.cpp pads every layer's V cache to the widest layer, and
    holds no values in blocks.

    Attributes:
        mapped: map the file, instead of reading it; None: as its types need (gguf_memory.py).
    """

    vocabulary_only = False
    mapped: bool | None = None

    def __init__(self, path: Path, threads: int, context: int, kv: str = "f16", ubatch: int = UBATCH) -> None:
        """Load `path`; `kv` is the type of the KV cache, `ubatch` how many tokens are computed at once at most.

        Raises SaapError when the file is missing, damaged, refused by llama.cpp, or has heads that `kv` cannot hold.
        """
        header = read_header(Path(path))
        self.threads, self.context, self.kv = threads, context, kv_type(kv)
        self.ubatch = min(context, ubatch)
        self.mapped = not keeps_a_copy(header) if self.mapped is None else self.mapped
        self._architecture, self._shape = str(header.metadata.get("general.architecture")), read_shape(header)
        if refusal := kv_refusal(kv, self._shape.head_dims):
            raise SaapError(f"'{path}': {refusal}")
        super().__init__(header.files[0])
        self._context = self._open_context(self._parameters())
        self._batch = llama_cpp.llama_batch_init(context, 0, 1)
        self.reset()

    def _loading(self) -> Any:
        parameters = super()._loading()
        parameters.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if self.mapped else llama_cpp.LLAMA_LOAD_MODE_NONE
        return parameters

    def _parameters(self) -> Any:
        """The parameters with which the context is opened."""
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = self.context
        # llama.cpp's buffers grow with what is computed at once, by hundreds of MiB for 4096 tokens.
        parameters.n_ubatch = self.ubatch
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.type_k = parameters.type_v = getattr(llama_cpp, self.kv.symbol)
        parameters.no_perf = True
        return parameters

    def _open_context(self, parameters: Any) -> Any:
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            reason = "; ".join(dict.fromkeys(_errors)) or "no reason given"
            told = f"'{self.path}': llama.cpp cannot open a context of {self.context} tokens: {reason}"
            raise SaapError(told + _hint(reason, self.path))
        return context

    def reset(self) -> None:
        """Forget the sequence; the KV cache is empty again."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        self._length = 0

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError when the sequence is shorter."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot keep {length} of {self._length} tokens")
        if not llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, length, -1):
            raise SaapError(f"'{self.path}': llama.cpp cannot shorten this model's sequence")
        self._length = length

    def forward(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Append `tokens` and return logits float32: [len(tokens), vocab], or [1, vocab] of the last.

        The array is llama.cpp's own buffer, reused by the next call. Raises ValueError on no tokens, on an id outside
        the vocabulary (llama.cpp would abort), and when the sequence would outgrow `context`.
        """
        count = len(tokens)
        if not count or min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"token ids must be in 0 to {self.vocab_size - 1}, at least one")
        if self._length + count > self.context:
            raise ValueError(f"{self._length} tokens and {count} more do not fit into a context of {self.context}")
        batch = self._batch
        batch.n_tokens = count
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = self._length + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = all_logits or index == count - 1
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise SaapError(f"'{self.path}': llama.cpp could not decode {count} tokens (status {status})")
        self._length += count
        rows = count if all_logits else 1
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=(rows, self.vocab_size))

    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes: keys and values of every layer's own kv heads."""
        return kv_bytes(self._shape.kv_elements, self.kv.name)

    def build(self) -> str:
        """What llama.cpp says of its build: the kernels it has, and what this CPU lets it use."""
        return " ".join(llama_cpp.llama_print_system_info().decode(errors="replace").split())

    def describe(self) -> dict[str, Any]:
        """Runtime, model and settings: conditions that belong beside every figure."""
        return {
            "engine": self.name,
            "version": llama_cpp.__version__,
            "architecture": self._architecture,
            "parameters": int(llama_cpp.llama_model_n_params(self._model)),
            "threads": self.threads,
            "context": self.context,
            "vocab_size": self.vocab_size,
            "kv_type": self.kv.name,
            "mapped": self.mapped,
            "ubatch": self.ubatch,
            "kv_bytes_per_token": self.kv_bytes_per_token(),
        }


register_engine(
    EngineRecord(
        LlamaCppVocabulary.name, "llama-cpp-python", "llama_cpp", "saap_edge.engines.llama_cpp:LlamaCppEngine",
        "saap_edge.engines.llama_cpp:LlamaCppVocabulary", "gguf", opens=lambda path: path.suffix == ".gguf",
        context=lambda path: read_shape(read_header(path)).context,
        vocab_size=lambda path: read_shape(read_header(path)).vocab_size, cost=gguf_cost, tokenizes=True,
        half_sums=True, chat="saap_edge.engines.chat:LlamaCppChat",
        writer="saap_edge.engines.llama_writer:LlamaCppWriter",
        benchmark="saap_edge.engines.llama_bench:LlamaBench", kv_types=tuple(KV_TYPES), ubatch=UBATCH,
        drafts="saap_edge.engines.llama_draft:LlamaCppDrafted",
    )
)  # fmt: skip
