"""What the OpenVINO tests share: the model as anyone would run it, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov

# All that rounds is off: what is left is the order of sums.
EXACT = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


class PlainRequest:
    """A folder in an InferRequest, with none of the engine's own changes."""

    def __init__(self, folder: Path, **settings: object) -> None:
        compiled = ov.Core().compile_model(str(folder / "openvino_model.xml"), "CPU", {**EXACT, **settings})
        self.compiled, self.request, self.length = compiled, compiled.create_infer_request(), 0

    def reset(self) -> None:
        self.request.reset_state()
        self.length = 0

    def run(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Logits [batch, tokens, vocab]; `mask` covers the past too."""
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        return self.request.infer({**feeds, "beam_idx": np.arange(len(ids), dtype=np.int32)})[0].copy()

    def forward(self, tokens: list[int]) -> np.ndarray:
        total = self.length + len(tokens)
        positions = np.arange(self.length, total)[None]
        self.length = total
        return self.run(np.array([tokens]), np.ones((1, total), np.int64), positions)[0]

    def kinds(self) -> list[str]:
        """The kinds of nodes that the CPU plugin made of the model."""
        nodes = self.compiled.get_runtime_model().get_ordered_ops()
        return [str(node.get_rt_info()["layerType"].value) for node in nodes]
