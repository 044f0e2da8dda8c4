"""OpenVINO as an engine: a folder with openvino_model.xml, on the CPU, its KV cache as the model's own state.

Two classes run the same file. `OpenvinoEngine` takes OpenVINO's own defaults, as a user gets them: inputs of products
in 8 bits, a KV cache in 8 bits, bfloat16 where the processor computes in it. `ExactEngine`, which verify uses, does all
in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.openvino_folder import (
    DEFAULT_CACHE,
    MODEL_FILE,
    cached_bytes,
    folder_context,
    folder_cost,
    folder_vocab_size,
    read_facts,
)
from saap_edge.engines.registry import EngineRecord, register_engine
from saap_edge.errors import SaapError

__all__ = ["ExactEngine", "OpenvinoEngine"]

ov, ops = lazy_import("openvino"), lazy_import("openvino.opset13")
INPUTS = {"input_ids", "attention_mask", "position_ids", "beam_idx"}
LOGITS_FROM = "logits_from"
END = 2**31 - 1


class OpenvinoEngine:
    """A decoder in an InferRequest of its own, with OpenVINO's own defaults of arithmetic and cache."""

    name = "openvino"
    hints: ClassVar[dict[str, Any]] = {}

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load the folder `path`. Raises SaapError when it is missing, damaged, no decoder, or too short."""
        self.path, self.threads, self.context = Path(path), threads, context
        longest = folder_context(self.path)
        if longest is not None and not 0 < context <= longest:
            raise SaapError(f"'{path}': a context of {context} tokens is outside the model's 1 to {longest}")
        self._facts = read_facts(self.path)
        self._compiled = self._compile()
        self._request = self._compiled.create_infer_request()
        self.vocab_size = int(self._compiled.output(0).get_partial_shape()[2].get_length())
        self._mask, self._beam = np.ones((1, context), dtype=np.int64), np.zeros(1, dtype=np.int32)
        self._positions = np.arange(context, dtype=np.int64)[None]
        self._length = 0

    def _compile(self) -> Any:
        # Threads are not pinned: bench moves all artifacts onto the same cores, which OpenVINO would undo.
        settings = {"INFERENCE_NUM_THREADS": self.threads, "ENABLE_CPU_PINNING": False, **self.hints}
        try:
            core = ov.Core()
            model = core.read_model(str(self.path / MODEL_FILE))
            _require_decoder(model, self.path)
            _add_logits_from(model)
            return core.compile_model(model, "CPU", settings)
        except RuntimeError as error:  # of the binding, for all that goes wrong
            reason = " ".join(str(error).split())[-200:]
            raise SaapError(f"'{self.path}': OpenVINO cannot load it, export the model again ({reason})") from None

    def reset(self) -> None:
        """Forget the sequence; the KV cache is empty again."""
        self._request.reset_state()
        self._length = 0

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError when the sequence is shorter.

        The states are read, cut and written back, as OpenVINO GenAI does it.
        """
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot keep {length} of {self._length} tokens")
        if length == 0:
            self.reset()
        elif length < self._length:
            for state in self._request.query_state():
                state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, :length]))
        self._length = length

    def forward(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Append `tokens` and return logits float32: [len(tokens), vocab], or [1, vocab] of the last.

        The array is reused by the next call. Raises ValueError on no tokens, on an id outside the vocabulary, and when
        the sequence would outgrow `context`.
        """
        count, total = len(tokens), self._length + len(tokens)
        if not count or min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"token ids must be in 0 to {self.vocab_size - 1}, at least one")
        if total > self.context:
            raise ValueError(f"{self._length} tokens and {count} more do not fit into a context of {self.context}")
        self._request.infer(
            {
                "input_ids": np.array([tokens], dtype=np.int64), "attention_mask": self._mask[:, :total],
                "position_ids": self._positions[:, self._length : total], "beam_idx": self._beam,
                LOGITS_FROM: np.array([0 if all_logits else -1], dtype=np.int64),
            }
        )  # fmt: skip
        self._length = total
        logits: np.ndarray = self._request.get_output_tensor(0).data[0]
        return logits

    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes, scales included."""
        return cached_bytes(self._facts, self._kv_type())

    def _kv_type(self) -> str:
        return str(self._property("KV_CACHE_PRECISION").get_type_name())

    def _property(self, name: str) -> Any:
        return self._compiled.get_property(name)

    def describe(self) -> dict[str, Any]:
        """Runtime, model and settings: conditions that belong beside every figure."""
        return {
            "engine": self.name,
            "version": ov.get_version(),
            "quantisation": self._facts.quantisation,
            "threads": self._property("INFERENCE_NUM_THREADS"),
            "context": self.context,
            "vocab_size": self.vocab_size,
            "arithmetic": self._property("INFERENCE_PRECISION_HINT").get_type_name(),
            "rounded_inputs": self._property("DYNAMIC_QUANTIZATION_GROUP_SIZE"),  # in groups of so many; 0: not
            "kv_type": self._kv_type(),
            "kv_bytes_per_token": self.kv_bytes_per_token(),
        }


class ExactEngine(OpenvinoEngine):
    """The same file with arithmetic and KV cache in float32 on every processor."""

    def kv_bytes_per_token(self) -> int:
        """Those of a cache in 8 bits, as a user gets it."""
        return cached_bytes(self._facts, DEFAULT_CACHE)

    hints: ClassVar[dict[str, Any]] = {
        "EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }  # fmt: skip


def _require_decoder(model: Any, path: Path) -> None:
    names = {name for parameter in model.inputs for name in parameter.get_names()}
    shape = model.output(0).get_partial_shape()
    if not names >= INPUTS or len(model.outputs) != 1 or len(shape) != 3 or not shape[2].is_static:
        raise SaapError(f"'{path}': not a decoder with its KV cache as state: export the model again")


def _add_logits_from(model: Any) -> None:
    """An input more: the first position that gets logits, -1 for the last alone. OpenVINO GenAI changes the model
    likewise as it loads it; else a prompt would pay for the head at every position."""
    head = model.output(0).get_node().input_value(0).get_node()
    if head.get_type_name() != "MatMul":
        raise SaapError("its logits do not come from a product: export the model again")
    start = ops.parameter([1], ov.Type.i64)
    start.set_friendly_name(LOGITS_FROM)
    start.output(0).set_names({LOGITS_FROM})
    one = ops.constant(np.array([1], dtype=np.int64))
    wanted = ops.slice(head.input_value(0), start, ops.constant(np.array([END], dtype=np.int64)), one, one)
    head.input(0).replace_source_output(wanted.output(0))
    model.add_parameters([start])
    model.validate_nodes_and_infer_types()


register_engine(
    EngineRecord(
        OpenvinoEngine.name, "openvino", "openvino", "saap_edge.engines.openvino:OpenvinoEngine", kind="openvino",
        vocabulary="saap_edge.engines.vocabularies:OpenvinoVocabulary", exact="saap_edge.engines.openvino:ExactEngine",
        opens=lambda path: (path / MODEL_FILE).is_file(), context=folder_context, vocab_size=folder_vocab_size,
        cost=folder_cost, chat="saap_edge.engines.openvino_chat:OpenvinoChat", chat_module="openvino_genai",
    )
)  # fmt: skip
