"""The emulation of a runtime's arithmetic is the runtime: on one layer, where few activations sit on a boundary."""

import numpy as np
import pytest

from saap_edge.artifacts import engine_of
from saap_edge.engines.worker import Worker
from saap_edge.evaluation.arithmetic import runtime_arithmetic
from saap_edge.evaluation.parity import logits, shipped_model
from saap_edge.exporting.weights import ExportWeights
from saap_edge.exporting.write import write_artifact
from saap_edge.model.folder import build_pruned
from tests.arithmetic_support import assert_as_predicted
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder
from tests.exporting.codes_support import tune

TOKENS = list(range(1, 30))


@pytest.mark.parametrize(
    ("artifact_format", "tuned", "group"),
    [
        ("gguf-f32", None, 32), ("gguf-f16", None, 32), ("gguf-bf16", None, 32), ("gguf-q8_0", None, 32),
        ("gguf-q4_0", None, 32), ("gguf-q4_1", None, 32),
        ("gguf-q8_0", "q8_0", 64), ("gguf-q4_0", "q4_0", 128), ("gguf-q4_1", "q4_1", 64), ("onnx-int4", None, 64),
        ("onnx-int8", None, 128), ("onnx-int4", "q4_0", 32), ("onnx-int4", "int4_zp", 128), ("onnx-int8", "q8_0", 128),
        ("onnx-int8", "int8_zp", 64),
    ],
)  # fmt: skip
def test_runtime_does_what_is_emulated(artifact_format, tuned, group, tmp_path):
    model = randomise_projections(build_pruned(tiny_model("llama", num_hidden_layers=1), WIDTHS[:1]))
    folder = write_folder(model, tmp_path / "model")
    if tuned:
        tune(folder, tuned, group)
    path = tmp_path / "artifact"
    write_artifact(folder, path, artifact_format, group)
    model = shipped_model(folder, artifact_format, group)
    exact = logits(model, TOKENS)
    with runtime_arithmetic(model, ExportWeights(folder), artifact_format, group):
        emulated = logits(model, TOKENS)
    np.testing.assert_array_equal(logits(model, TOKENS), exact)  # the model is as it was
    with Worker(engine_of(artifact_format), path, 1, 64) as worker:
        for mode in ("prefill", "steps"):
            assert_as_predicted(worker.logits(TOKENS, mode), emulated, exact)


@pytest.mark.parametrize("artifact_format", ["onnx-fp32", "onnx-fp16"])
def test_onnx_in_floats_rounds_no_activation(artifact_format, tmp_path):
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    model = shipped_model(folder, artifact_format)
    exact = logits(model, TOKENS)
    with runtime_arithmetic(model, ExportWeights(folder), artifact_format):
        np.testing.assert_array_equal(logits(model, TOKENS), exact)
