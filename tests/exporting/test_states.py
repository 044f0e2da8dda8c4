"""Families whose layers remember more than keys and values: batches, texts that are shortened, costs and memory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from saap_edge.engines.torch import folder_cost
from saap_edge.evaluation.parity import logits
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.write import export_artifacts
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, spec_of
from saap_edge.prediction.cost import artifact_cost
from saap_edge.prediction.predict import predict
from saap_edge.targets import load_target
from saap_edge.worth.fit import cost_at
from tests.conftest import tiny_model, write_folder
from tests.exporting.artifacts_support import opened

IDS = list(range(1, 30))
WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "num_hidden_layers": 6}
DELTA = {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
MAMBA = {"mamba_head_dim": 32, "ssm_state_size": 32}
TAPS = {"lfm2": "conv_L_cache", "qwen3_5_text": "linear_conv_kernel_dim", "nemotron_h": "conv_kernel"}
# By family: a model, float32 numbers of its states, and how many of them are a token before each channel's.
MODELS: dict[str, tuple[dict[str, int], int, int]] = {
    "lfm2": (WIDE, 2 * 2 * 256, 2 * 256),
    "qwen3_5_text": (WIDE | DELTA, 2 * (3 * 1024 + 8 * 64 * 64), 2 * 1024),
    "nemotron_h": (WIDE | MAMBA, 2 * (3 * 384 + 256 * 32), 2 * 384),
}


@pytest.fixture(scope="module", params=TAPS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path, Any]:
    family, root = request.param, tmp_path_factory.mktemp(request.param)
    folder = write_folder(tiny_model(family, vocab_size=2048, **MODELS[family][0]), root / "model")
    (root / "out").mkdir()
    formats = ("gguf-f32", "gguf-q8_0", "onnx-fp32", "onnx-int8")
    return family, folder, root / "out", export_artifacts(folder, root / "out", formats, "dense", {}, lambda name: None)


@pytest.mark.parametrize("family", TAPS)
def test_a_batch_with_right_padding(family: str, tmp_path: Path) -> None:
    """What is remembered of a row is of its own tokens, not of the padding behind them."""
    folder = write_folder(tiny_model(family, **{TAPS[family]: 4}), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    session, model = ort.InferenceSession(str(tmp_path / "out" / "model.onnx")), load_model(folder)
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        if value.name.startswith("past"):
            shape = [size if isinstance(size, int) else {"batch_size": 2}.get(size, 0) for size in value.shape]
            feeds[value.name] = np.zeros(shape, dtype=np.float32)
    rows = [IDS[:8], IDS[10:12]]  # the second is shorter than what a convolution remembers
    feeds["input_ids"] = np.array([rows[0], [*rows[1], *[0] * 6]])
    feeds["attention_mask"] = np.array([[1] * 8, [1] * 2 + [0] * 6])
    for step in range(3):
        names = [value.name for value in session.get_outputs()]
        found = dict(zip(names, session.run(names, feeds), strict=True))
        for row, tokens in enumerate(rows):
            at = len(tokens) - 1 if not step else 0
            np.testing.assert_allclose(found["logits"][row, at], logits(model, tokens)[-1], atol=1e-4)
        rows = [[*tokens, 20 + step] for tokens in rows]
        feeds = {
            name.replace("present", "past" if name.endswith(("conv", "recurrent")) else "past_key_values"): value
            for name, value in found.items() if name != "logits"
        }  # fmt: skip
        feeds["input_ids"] = np.array([[20 + step]] * 2)
        feeds["attention_mask"] = np.array([[1] * (9 + step), [1] * (3 + step) + [0] * 6])


@pytest.mark.parametrize("engine", ["torch", "gguf", "onnx"])
def test_a_sequence_is_shortened(engine: str, exported: tuple[str, Path, Path, Any]) -> None:
    """Also inside a text, and to nothing: what is remembered has no way back, so that the rest is read again."""
    _, folder, out, manifest = exported
    made = opened(engine, folder, out, manifest)
    whole = made.forward(IDS, all_logits=True).copy()
    for kept in (9, 9, 2, 1, 0):
        made.truncate(kept)
        np.testing.assert_allclose(made.forward(IDS[kept:], all_logits=True), whole[kept:], atol=2e-2)
    made.truncate(len(IDS))
    made.forward(IDS[:3])
    made.truncate(5)
    np.testing.assert_allclose(made.forward(IDS[5:], all_logits=True), whole[5:], atol=2e-2)
    with pytest.raises(ValueError, match="cannot keep"):
        made.truncate(len(IDS) + 1)


def test_costs_count_keys_values_and_states(exported: tuple[str, Path, Path, Any]) -> None:
    """From the files, and beforehand from the shape: KV in layers with attention, states in the others."""
    family, folder, out, manifest = exported
    spec, (_, states, a_token) = read_spec(folder), MODELS[family]
    assert spec.state_bytes() == 4 * states
    for artifact in manifest.artifacts:
        cost = artifact_cost(out / artifact.path)
        assert cost.state_bytes == spec.state_bytes()
        assert cost.kv_bytes_per_token == spec.kv_bytes_per_token(2 if artifact.format.startswith("gguf") else 4)
        assert cost.projection_bytes == artifact.projection_bytes
        assert cost.parameters == pytest.approx(manifest.parameters, rel=0.01)
        told = cost_at(spec, artifact.format, 32, 0)
        assert told.projection_bytes == pytest.approx(artifact.projection_bytes, rel=0.03)
        assert told.file_bytes == pytest.approx(artifact.bytes, rel=0.1)
        assert (told.kv_bytes_per_token, told.state_bytes) == (cost.kv_bytes_per_token, cost.state_bytes)
    plain = folder_cost(folder, None)
    assert plain.kv_bytes_per_token == spec.kv_bytes_per_token(4)
    assert plain.state_bytes == 4 * (states + a_token)  # transformers keeps one token more


@pytest.mark.parametrize(("family", "channels"), [
    ("lfm2", 64), ("qwen3_5_text", 2 * 4 * 32 + 8 * 32), ("nemotron_h", 8 * 8 + 2 * 2 * 16),
])  # fmt: skip
def test_memory_counts_states(family: str, channels: int) -> None:
    small, large = (
        predict(cost, load_target("rpi5"), 64, 64).ram_mib
        for cost in (
            cost_at(spec_of(tiny_model(family, **{TAPS[family]: taps})), "gguf-q4_0", 32, 0) for taps in (2, 1024)
        )
    )  # fmt: skip
    assert small and large and large.value - small.value == pytest.approx(1022 * channels * 4 / 2**20)


@pytest.mark.parametrize(("family", "shape"), [
    ("lfm2", {"conv_L_cache": 1024}),
    ("qwen3_5_text", {"linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 64}),
    ("nemotron_h", {"mamba_head_dim": 64, "ssm_state_size": 128, "conv_kernel": 64}),
])  # fmt: skip
def test_states_are_what_llama_cpp_reserves(family: str, shape: dict[str, int], tmp_path: Path) -> None:
    """By its own report, as it opens a context."""
    folder = write_folder(tiny_model(family, **WIDE | shape), tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    code = (
        "import llama_cpp; from llama_cpp import Llama; import sys\n"
        "Llama(sys.argv[1], n_ctx=256, n_batch=32, n_threads=1, verbose=True)"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.gguf")], capture_output=True, text=True)
    sizes = re.findall(r"(llama_kv_cache|llama_memory_recurrent): size = +([\d.]+) MiB", child.stderr)
    told = {kind: float(size) for kind, size in sizes}
    cost = artifact_cost(tmp_path / "m.gguf")
    assert told["llama_memory_recurrent"] == pytest.approx(cost.state_bytes / 2**20, abs=0.006)
    assert told["llama_kv_cache"] == pytest.approx(cost.kv_bytes_per_token * 256 / 2**20, abs=0.006)


@pytest.mark.parametrize("artifact_format", ["openvino-int4", "onnx-optimum"])
@pytest.mark.parametrize("family", TAPS)
def test_formats_without_states_are_refused(family: str, artifact_format: str) -> None:
    refusal = export_refusal(spec_of(tiny_model(family)), artifact_format)
    assert refusal and f"cannot go to {artifact_format}" in refusal
