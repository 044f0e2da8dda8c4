"""ONNX Runtime as an engine. Needs only numpy and onnxruntime; past and present keys and values share buffers."""

from __future__ import annotations

import functools
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.onnx_cost import folder_context, folder_vocab_size, onnx_cost
from saap_edge.engines.onnx_folder import GENAI_FILE
from saap_edge.engines.onnx_prepared import PREPARED_FILE, refusal
from saap_edge.engines.options import PIECE
from saap_edge.engines.registry import EngineRecord, register_engine
from saap_edge.engines.replay import replay
from saap_edge.engines.shortage import advice, is_shortage
from saap_edge.errors import SaapError
from saap_edge.machine.memory import give_back
from saap_edge.machine.sharing import free_cpus, shared

__all__ = ["SPINNING", "OnnxEngine", "OnnxRuntimeEngine", "environment", "spinning"]

GRAPH_FILE = "model.onnx"
SPINNING = "SAAP_EDGE_ONNX_SPINNING"  # environment: "1" or "0"; a user's own word counts
FREE = "SAAP_EDGE_FREE_CPUS"  # environment: what the parent found, once for all that it compares
ort = lazy_import("onnxruntime")
LAST_ONLY = np.array([-1], dtype=np.int64)
ALL = np.array([0], dtype=np.int64)


class OnnxEngine:
    """A decoder in a plain InferenceSession on the CPU: the part that does not depend on the exporter."""

    name = "onnxruntime"
    vocab_size: int  # set once the graph is known to be a decoder

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load `path`, the folder or its model.onnx. Raises SaapError when it is missing or damaged."""
        path = Path(path)
        self.path = path / GRAPH_FILE if path.is_dir() else path
        self.threads, self.context = threads, context
        self._session = open_session(self.path, threads)
        give_back()  # what packing weights took meanwhile
        self._length = 0

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError when the sequence is shorter."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot keep {length} of {self._length} tokens")
        self._length = length

    def _ids(self, tokens: Sequence[int]) -> np.ndarray:
        """Token ids as int64 [1, n]. Raises ValueError on no ids, an unknown id, or more tokens than `context`."""
        ids = np.array([tokens], dtype=np.int64)
        if ids.size == 0:
            raise ValueError("no tokens to run")
        if self._length + ids.shape[1] > self.context:
            raise ValueError(
                f"{self._length} tokens and {ids.shape[1]} more do not fit into a context of {self.context}"
            )
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise ValueError(f"token ids must be in 0 to {self.vocab_size - 1}")
        return ids

    def build(self) -> str | None:
        """What ONNX Runtime says of its build: commit, type and compiler flags; None where it does not say."""
        told = getattr(ort, "get_build_info", lambda: None)()
        return None if told is None else " ".join(str(told).split())

    def _describe(self, quantisation: str | None, kv_bytes: int) -> dict[str, Any]:
        """Runtime, model and settings: conditions that belong beside every figure."""
        return {
            "engine": self.name,
            "version": ort.__version__,
            "provider": self._session.get_providers()[0],
            "quantisation": quantisation,
            "threads": self.threads,
            "spinning": spinning(self.threads),
            "prepared": (self.path.parent / PREPARED_FILE).is_file(),
            "context": self.context,
            "vocab_size": self.vocab_size,
            "kv_type": "f32",
            "kv_bytes_per_token": kv_bytes,
        }


class OnnxRuntimeEngine(OnnxEngine):
    """An ONNX folder of `saap_edge.exporting.onnx`, on the CPU, through a plain InferenceSession.

    Past and present keys and values are the same buffers of `context` tokens: attention then writes in place instead
    of copying a growing cache at every token. The runtime would compute a prompt whole, and keep the work space.
    """

    def __init__(self, path: Path, threads: int, context: int, ubatch: int = PIECE) -> None:
        """Load `path`, the folder or its model.onnx; `ubatch` is how many tokens are computed at once at most.

        Raises SaapError when it is missing, damaged, or too short.
        """
        super().__init__(path, threads, context)
        self.ubatch = min(context, ubatch)
        self._check_inputs()
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])
        self._binding = self._session.io_binding()
        self._mask = np.ones((1, context), dtype=np.int64)
        self._step_logits = np.empty((1, 1, self.vocab_size), dtype=np.float32)
        self._kv_bytes = 0
        self._states: list[np.ndarray] = []
        self._held: list[int] = []
        self._bind_cache()
        self.reset()

    def reset(self) -> None:
        """Forget the sequence; the KV cache is empty again."""
        self._length, self._held = 0, []
        for state in self._states:
            state.fill(0)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError when the sequence is shorter."""
        before, held = self._length, self._held[:length]
        super().truncate(length)
        if self._states and length < before:  # what convolutions remember has no way back
            replay(self, held)
        self._held = held

    def forward(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Append `tokens` and return logits float32: [len(tokens), vocab], or [1, vocab] of the last.

        The array of a [1, vocab] answer is reused by the next call. Raises ValueError on no tokens, on an id outside
        the vocabulary, and when the sequence would outgrow `context`.
        """
        ids = self._ids(tokens)
        rows = ids.shape[1] if all_logits else 1
        logits = self._step_logits if rows == 1 else np.empty((1, rows, self.vocab_size), dtype=np.float32)
        done = self._length
        for start in range(0, ids.shape[1], self.ubatch):
            piece = ids[:, start : start + self.ubatch]
            self._run(piece, done + start, logits[:, start : start + self.ubatch] if rows > 1 else logits)
        self._length = done + ids.shape[1]
        if self._states:  # only these have to be read again
            self._held += ids[0].tolist()
        return np.asarray(logits[0])

    def _run(self, ids: np.ndarray, past: int, logits: np.ndarray) -> None:
        """Append int64 [1, n] to `past` tokens; `logits` float32 [1, n or 1, vocab] is filled."""
        # Arrays are bound by their address. Locals keep them alive until the run is over.
        mask = self._mask[:, : past + ids.shape[1]]
        self._bind_input("input_ids", ids)
        self._bind_input("attention_mask", mask)
        self._bind_input("logits_from", LAST_ONLY if logits.shape[1] == 1 else ALL)
        self._binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        self._session.run_with_iobinding(self._binding)

    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes: float32 keys and values of every layer."""
        return self._kv_bytes

    def describe(self) -> dict[str, Any]:
        """Runtime, model and settings: conditions that belong beside every figure."""
        metadata = self._session.get_modelmeta().custom_metadata_map
        return self._describe(metadata.get("saap_edge.quantisation"), self._kv_bytes) | {"ubatch": self.ubatch}

    def _check_inputs(self) -> None:
        names = {value.name for value in self._session.get_inputs()}
        optional = {value.name for value in self._session.get_overridable_initializers()}
        cached = any(name.startswith("past_key_values.") for name in names)
        if not (cached and {"input_ids", "attention_mask"} <= names) or "logits_from" not in optional:
            raise SaapError(f"{self.path}: not a decoder that saap-edge wrote: export the model again")
        longest = int(self._session.get_modelmeta().custom_metadata_map.get("saap_edge.context", self.context))
        if not 0 < self.context <= longest:
            raise SaapError(f"{self.path}: a context of {self.context} tokens is outside the model's 1 to {longest}")

    def _bind_cache(self) -> None:
        """One buffer [1, kv heads, context, head_dim] per layer and kind, bound once as past and as present.

        So is what a convolution remembers, [1, hidden, tokens]: it is read before it is written.
        """
        self._cache = []
        for value in self._session.get_inputs():
            if value.name.startswith("past."):
                self._states.append(np.zeros((1, *value.shape[1:]), dtype=np.float32))
                self._bind_both(value.name, value.name.replace("past", "present"), self._states[-1])
            if not value.name.startswith("past_key_values."):
                continue
            _, kv_heads, _, head_dim = value.shape
            buffer = untouched((1, kv_heads, self.context, head_dim))
            self._cache.append(buffer)
            self._kv_bytes += kv_heads * head_dim * buffer.itemsize
            self._bind_both(value.name, value.name.replace("past_key_values", "present"), buffer)

    def _bind_both(self, past: str, present: str, buffer: np.ndarray) -> None:
        self._bind_input(past, buffer)
        self._binding.bind_output(present, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)

    def _bind_input(self, name: str, array: np.ndarray) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def untouched(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, float32, in pages of their own, which take no memory before they are written to.

    numpy's zeros may lie in what was freed before, which is in memory and stays there: in that of packing weights.
    """
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.float32).reshape(shape)


def open_session(path: Path, threads: int) -> Any:
    """A CPU session of `threads` threads. Raises SaapError when the file is missing or the runtime refuses it."""
    if not path.is_file():
        raise SaapError(f"no ONNX model at '{path}': give the folder of an ONNX export")
    if told := refusal(path.parent):
        raise SaapError(told)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning(threads))))
    # A buffer that a later layer of just that width will use again is otherwise kept until then. Where widths differ
    # from layer to layer, one of each would be there at once (docs/memory.md).
    options.enable_mem_reuse = False
    options.log_severity_level = 3  # errors arrive as exceptions
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions share no base class of their own
        reason = str(error).splitlines()[0]
        unknown = "is not a registered function/op" in reason
        todo = "Take a newer ONNX Runtime" if unknown else "Export the model again"
        todo = advice(path.parent) if is_shortage(reason) else todo
        raise SaapError(f"{path}: ONNX Runtime cannot load it ({reason}). {todo}") from None


def spinning(threads: int) -> bool:
    """Whether the runtime's threads keep a CPU busy while they wait, as they do by default: not where they would not
    all have a CPU (docs/measuring.md#threads-that-wait)."""
    said = os.environ.get(SPINNING)
    if said in ("0", "1"):
        return said == "1"
    free = os.environ.get(FREE)
    return not shared(threads, float(free) if free else None)


@functools.cache
def environment() -> dict[str, str]:
    """What a child has to know for `spinning`. It is found once, so that all that is compared runs alike."""
    free = free_cpus()
    return {} if free is None else {FREE: f"{free:.2f}"}


register_engine(
    EngineRecord(
        OnnxRuntimeEngine.name, "onnxruntime", "onnxruntime", "saap_edge.engines.onnxruntime:OnnxRuntimeEngine",
        kind="onnx", opens=lambda path: (path / GENAI_FILE).is_file() and (path / GRAPH_FILE).is_file(),
        context=folder_context, vocab_size=folder_vocab_size, cost=onnx_cost,
        chat="saap_edge.engines.chat:GenaiChat", chat_module="onnxruntime_genai",
        environment=lambda path: environment(), ubatch=PIECE,
        no_kv_types="the graph's own inputs say that keys and values are float32; GGUF files, in llama.cpp, can",
    )
)  # fmt: skip
