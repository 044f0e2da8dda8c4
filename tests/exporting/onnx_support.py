"""What the ONNX tests share: references in torch, and a plain session with growing caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from transformers import PreTrainedModel


def reference(model: PreTrainedModel, tokens: list[int]) -> np.ndarray:
    """Logits [len(tokens), vocab] of transformers."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def random_tokens(vocabulary: int, count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, count).tolist()


class PlainSession:
    """The graph as anyone would run it: past in, present out, no shared buffers, no option of ours."""

    def __init__(self, folder: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_outputs()]
        self.reset()

    def reset(self, batch: int = 1) -> None:
        self.past = {
            value.name: np.zeros((batch, value.shape[1], 0, value.shape[3]), np.float32)
            for value in self.session.get_inputs()
            if value.name.startswith("past")
        }

    def run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        feeds = {"input_ids": ids, "attention_mask": mask, **self.past}
        results = dict(zip(self.names, self.session.run(None, feeds), strict=True))
        logits = results.pop("logits")
        self.past = {name.replace("present", "past_key_values"): value for name, value in results.items()}
        return logits

    def forward(self, tokens: list[int]) -> np.ndarray:
        past = next(iter(self.past.values())).shape[2]
        return self.run(np.array([tokens]), np.ones((1, past + len(tokens)), np.int64))[0]
