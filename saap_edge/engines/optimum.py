"""A decoder as optimum exports it, in ONNX Runtime: it takes the past and returns the present, for one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.onnx_cost import folder_context, folder_vocab_size, onnx_cost
from saap_edge.engines.onnxruntime import GRAPH_FILE, OnnxEngine, environment
from saap_edge.engines.registry import EngineRecord, register_engine
from saap_edge.errors import SaapError

__all__ = ["OptimumEngine"]

PAST = "past_key_values."


class OptimumEngine(OnnxEngine):
    """An ONNX folder of the format onnx-optimum, on the CPU. Its graph copies the whole cache at every token."""

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load `path`, the folder or its model.onnx. Raises SaapError when it is missing, damaged, or another."""
        super().__init__(path, threads, context)
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._positions = "position_ids" in inputs  # Gemma's graph counts them itself
        self._shapes = {name: shape for name, shape in inputs.items() if name.startswith(PAST)}
        if not self._shapes or self._session.get_overridable_initializers():
            raise SaapError(f"{self.path}: not a decoder that optimum exported with its cache: export the model again")
        self._outputs = [value.name for value in self._session.get_outputs()]
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])
        self.reset()

    def reset(self) -> None:
        """Forget the sequence; the KV cache is empty again."""
        self._length = 0
        self._past = {
            name: np.zeros((1, heads, 0, head_dim), dtype=np.float32)
            for name, (_, heads, _, head_dim) in self._shapes.items()
        }

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError when the sequence is shorter."""
        super().truncate(length)
        self._past = {name: value[:, :, :length] for name, value in self._past.items()}

    def forward(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Append `tokens` and return logits float32: [len(tokens), vocab], or [1, vocab] of the last.

        Raises ValueError on no tokens, on an id outside the vocabulary, and when the sequence would outgrow `context`.
        """
        ids = self._ids(tokens)
        total = self._length + ids.shape[1]
        feeds = {"input_ids": ids, "attention_mask": np.ones((1, total), dtype=np.int64), **self._past}
        if self._positions:
            feeds["position_ids"] = np.arange(self._length, total, dtype=np.int64)[None]
        results = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        self._past = {name: results[name.replace(PAST, "present.")] for name in self._shapes}
        self._length = total
        logits: np.ndarray = results["logits"][0]
        return logits if all_logits else logits[-1:]

    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes: float32 keys and values of every layer."""
        return sum(4 * heads * head_dim for _, heads, _, head_dim in self._shapes.values())

    def describe(self) -> dict[str, Any]:
        """Runtime, model and settings: conditions that belong beside every figure."""
        return self._describe("fp32", self.kv_bytes_per_token())


register_engine(
    EngineRecord(
        "optimum", "onnxruntime", "onnxruntime", "saap_edge.engines.optimum:OptimumEngine", kind="onnx",
        # The engine for saap-edge's own folders is asked before this one; other folders have only the graph.
        opens=lambda path: path.suffix == ".onnx" or (path / GRAPH_FILE).is_file(), context=folder_context,
        vocab_size=folder_vocab_size, cost=onnx_cost, environment=lambda path: environment(),
    )
)  # fmt: skip
