"""Our fp32 graph against the graph that torch.onnx.export(dynamo=True) traces from transformers' code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers import DynamicCache

from saap_edge.exporting.onnx import write_onnx
from saap_edge.model.folder import build_pruned, load_model
from tests.conftest import VOCABULARY, WIDTHS, randomise_projections, tiny_model, write_folder
from tests.exporting.onnx_support import random_tokens

TOKENS = np.array([random_tokens(VOCABULARY, 12, seed=3)])
PAST, OPSET = 5, 23  # 23 has Attention, RMSNormalization and RotaryEmbedding: other code than our contrib operators


class WithCache(torch.nn.Module):
    """The model with its KV cache as plain inputs and outputs: keys and values of every layer, one after the other."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, past: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        for index in range(len(past) // 2):
            cache.update(past[2 * index], past[2 * index + 1], index)
        answer = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        return answer.logits, *(part for layer in cache.layers for part in (layer.keys, layer.values))


def traced(folder: Path, out: Path, names: list[str], shapes: list[tuple[int, int]]) -> ort.InferenceSession:
    """A session of the traced graph, its inputs and outputs under our names. `shapes`: heads and head_dim per input."""
    past = [torch.zeros(1, heads, PAST, head_dim) for heads, head_dim in shapes]
    seq, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    torch.onnx.export(
        WithCache(load_model(folder)).eval(), (torch.tensor(TOKENS[:, :4]), past), out, dynamo=True,
        opset_version=OPSET, input_names=["input_ids", *names],
        output_names=["logits", *(name.replace("past_key_values", "present") for name in names)],
        dynamic_shapes=({1: seq}, [{2: length}] * len(past)), verbose=False,
    )  # fmt: skip
    return ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    wanted = {value.name for value in session.get_inputs()}
    answers = session.run(None, {name: value for name, value in feeds.items() if name in wanted})
    return dict(zip((value.name for value in session.get_outputs()), answers, strict=True))


@pytest.mark.parametrize(("family", "widths"), [("llama", None), ("qwen3", WIDTHS)], ids=["uniform", "widths"])
def test_logits_and_cache_equal_the_traced_graph(family: str, widths: list | None, tmp_path: Path) -> None:
    """Prefill, then several tokens on top of the cache that each graph itself has made."""
    model = tiny_model(family)
    if widths:
        model = randomise_projections(build_pruned(model, widths))
    folder = write_folder(model, tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    ours = ort.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    caches = [value for value in ours.get_inputs() if value.name.startswith("past")]
    names, shapes = [value.name for value in caches], [(value.shape[1], value.shape[3]) for value in caches]
    theirs = traced(folder, tmp_path / "traced.onnx", names, shapes)
    pasts = [{n: np.zeros((1, h, 0, d), np.float32) for n, (h, d) in zip(names, shapes, strict=True)} for _ in range(2)]
    for start, end in ((0, 7), (7, 11), (11, 12)):
        feeds = {"input_ids": TOKENS[:, start:end], "attention_mask": np.ones((1, end), np.int64)}
        mine, other = (run(session, feeds | past) for session, past in zip((ours, theirs), pasts, strict=True))
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            np.testing.assert_allclose(value, other[name], atol=1e-4, err_msg=name)
        pasts = [{name: got[name.replace("past_key_values", "present")] for name in names} for got in (mine, other)]
