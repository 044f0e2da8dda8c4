"""Gemma 4 in the runtimes: widths of every layer, borrowed keys and values, embeddings of layers, and their costs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from saap_edge.engines.torch import folder_cost
from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import logits, relative_error
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.imatrix import save_importance
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.write import export_artifacts
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.prediction.cost import artifact_cost
from saap_edge.pruning.space import model_cost
from saap_edge.recovery.imatrix import importance_matrix
from saap_edge.worth.fit import cost_at
from tests.conftest import tiny_model, write_folder
from tests.exporting.artifacts_support import opened
from tests.exporting.llama_support import exact_logits, with_gelu_table
from tests.exporting.random_plans import GELU_TABLE
from tests.exporting.test_families import assert_genai_answers_as_torch_does, assert_parity, pruned
from tests.exporting.test_kquants import check
from tests.families.test_gemma4 import LARGE, LENT

IDS = list(range(1, 30))  # more than the window of 8
FAMILY = "gemma4_text"
WIDE = LENT | {"hidden_size": 256, "global_head_dim": 64, "head_dim": 32, "hidden_size_per_layer_input": 256}
# Each layer its own, but for the KV heads that are shared.
BY_LAYER = [
    LayerShape(4, 2, 96), LayerShape(3, 3, 64), LayerShape(4, 4, 128), LayerShape(8, 4, 32), LayerShape(8, 4, 160),
    LayerShape(4, 4, 224),
]  # fmt: skip
MODELS: dict[str, tuple[dict, list[LayerShape] | None]] = {
    "dense": ({}, None), "lent": (LENT, None), "by layer": (LENT, BY_LAYER), "large": (LARGE | {"tied": False}, None),
    "few": (LARGE, [LayerShape(4, 2, 64), LayerShape(8, 4, 96), LayerShape(2, 2, 32)]),
}  # fmt: skip


def assert_only_gelu_parts(folder: Path, path: Path) -> None:
    """In float32, llama.cpp's answers are torch's but for GELU, a table that rounds arguments and values to fp16."""
    actual, model = exact_logits(path, IDS), load_model(folder)
    assert relative_error(actual, logits(model, IDS)) < GELU_TABLE
    emulated = logits(with_gelu_table(model), IDS)
    assert np.median([relative_error(actual[[at]], emulated[[at]]) for at in range(len(IDS))]) < 1e-4


@pytest.mark.parametrize("artifact_format", ["gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1"])
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    overrides, widths = MODELS[name]
    model = tiny_model(FAMILY, **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    assert assert_parity(folder, tmp_path, artifact_format) == "gemma4"
    path, spec = tmp_path / f"{artifact_format}.gguf", read_spec(folder)
    fields = gguf.GGUFReader(path).fields
    for key, attribute in (
        ("attention.head_count", "heads"), ("attention.head_count_kv", "kv_heads"), ("feed_forward_length", "ffn"),
    ):  # fmt: skip
        assert fields[f"gemma4.{key}"].contents() == [getattr(layer, attribute) for layer in spec.layers]
    assert artifact_cost(path).kv_bytes_per_token == spec.kv_bytes_per_token(2)
    if artifact_format == "gguf-f32":
        assert_only_gelu_parts(folder, path)


def test_types_that_llama_cpp_makes(tmp_path: Path) -> None:
    """By importance and without; what llama.cpp leaves in floats is so in our own files."""
    model = pruned(
        tiny_model(FAMILY, **WIDE | {"intermediate_size": 512}),
        [LayerShape(8, 4, 256), *[LayerShape(4, 4, 512)] * 3, *[LayerShape(8, 4, 768)] * 2],
    )
    windows = torch.randint(0, 320, (8, 32), generator=torch.Generator().manual_seed(0))
    matrix = save_importance(importance_matrix(model, windows), tmp_path)
    check(write_folder(model, tmp_path / "model"), matrix, tmp_path / "out", ("q4_k_m", "iq4_xs"))


S, F = "sliding_attention", "full_attention"
REFUSED: list[tuple[dict, str]] = [
    ({"layer_types": [F, F, F]}, "needs two layers or more, and one of them with a sliding window"),
    (
        {"layer_types": [S, F, S, F], "num_hidden_layers": 4, "num_kv_shared_layers": 1},
        "takes borrowed keys and values",
    ),
    ({"hidden_size_per_layer_input": 48}, "embeddings of 48 for each layer are no multiple of 32"),
]


@pytest.mark.parametrize(("overrides", "reason"), REFUSED)
def test_what_llama_cpp_cannot_hold_is_refused(overrides: dict, reason: str, tmp_path: Path) -> None:
    folder = write_folder(tiny_model(FAMILY, **overrides), tmp_path / "model")
    with pytest.raises(SaapError, match=reason):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    assert not (tmp_path / "m.gguf").exists()
    if "layer_types" in overrides:
        assert_parity(folder, tmp_path, "onnx-fp32")


@pytest.mark.parametrize("artifact_format", ["onnx-fp32", "onnx-fp16", "onnx-int4", "onnx-int4-full", "onnx-int8"])
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    overrides, widths = MODELS[name]
    model = tiny_model(FAMILY, **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    assert_parity(folder, tmp_path, artifact_format)


@pytest.mark.parametrize("name", ["dense", "by layer"])
def test_genai_runs_it(name: str, tmp_path: Path) -> None:
    overrides, widths = MODELS[name]
    model = tiny_model(FAMILY, **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    assert_genai_answers_as_torch_does(folder, tmp_path / "out")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    root = tmp_path_factory.mktemp("gemma4")
    folder = write_folder(tiny_model(FAMILY, vocab_size=2048, **WIDE), root / "model")
    (root / "out").mkdir()
    formats = ("gguf-f32", "gguf-q8_0", "gguf-q4_0", "onnx-fp32", "onnx-int8")
    return folder, root / "out", export_artifacts(folder, root / "out", formats, "dense", {}, lambda name: None)


def test_costs(exported: tuple[Path, Path, Any]) -> None:
    """From the files, and beforehand from the shape: a table of which a token reads a row, KV of layers that own it."""
    folder, out, manifest = exported
    spec = read_spec(folder)
    for artifact in manifest.artifacts:
        cost, told = artifact_cost(out / artifact.path), cost_at(spec, artifact.format, 32, 0)
        assert cost.kv_bytes_per_token == spec.kv_bytes_per_token(2 if artifact.format.startswith("gguf") else 4)
        assert cost.projection_bytes == artifact.projection_bytes
        assert cost.parameters == pytest.approx(manifest.parameters, rel=0.01)
        assert told.projection_bytes == pytest.approx(artifact.projection_bytes, rel=0.03)
        assert told.file_bytes == pytest.approx(artifact.bytes, rel=0.05)
        assert told.parameters == pytest.approx(manifest.parameters, rel=0.01)
        assert told.kv_bytes_per_token == cost.kv_bytes_per_token
        table = 2048 * 6 * 256 * (4 if artifact.format.endswith("32") else 1)
        assert cost.file_bytes - cost.projection_bytes > table
    assert folder_cost(folder, None).kv_bytes_per_token == spec.kv_bytes_per_token(4)
    half = cost_at(spec, "gguf-q8_0", 32, 0.5)  # of layers that neither lend nor borrow
    assert half.kv_bytes_per_token == pytest.approx(0.75 * spec.kv_bytes_per_token(2))


def test_the_cache_is_what_llama_cpp_reserves(exported: tuple[Path, Path, Any]) -> None:
    """By its own report: that of layers with a window, and that of the others; none where layers borrow."""
    folder, out, manifest = exported
    path = next(out / artifact.path for artifact in manifest.artifacts if artifact.format == "gguf-q8_0")
    code = (
        "import llama_cpp; from llama_cpp import Llama; import sys\n"
        "Llama(sys.argv[1], n_ctx=1024, n_batch=32, n_threads=1, flash_attn=True, verbose=True)"
    )
    child = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    sizes = [float(size) for size in re.findall(r"llama_kv_cache: size = +([\d.]+) MiB", child.stderr)]
    spec = read_spec(folder)
    held = {width: 2 * spec.kv_width(spec.layers[index]) * 2 * 2 for index, width in ((0, "window"), (1, "whole"))}
    assert sorted(sizes) == pytest.approx(sorted(each * 1024 / 2**20 for each in held.values()), abs=0.006)
    assert sum(sizes) == pytest.approx(artifact_cost(path).kv_bytes_per_token * 1024 / 2**20, abs=0.012)


@pytest.mark.parametrize("engine", ["torch", "gguf", "onnx"])
def test_a_sequence_is_shortened(engine: str, exported: tuple[Path, Path, Any]) -> None:
    """Also behind the window, of which transformers' own cache forgets the start."""
    folder, out, manifest = exported
    made = opened(engine, folder, out, manifest)
    whole = made.forward(IDS, all_logits=True).copy()
    for kept in (20, 9, 2, 0):
        made.truncate(kept)
        np.testing.assert_allclose(made.forward(IDS[kept:], all_logits=True), whole[kept:], atol=2e-2)


@pytest.mark.parametrize("unit", ["bytes", "latency"])
@pytest.mark.parametrize("widths", [None, BY_LAYER], ids=["dense", "by layer"])
def test_a_plan_in_bytes_and_latency_is_what_the_file_is(
    unit: Any, widths: list[LayerShape] | None, tmp_path: Path
) -> None:
    model = tiny_model(FAMILY, vocab_size=2048, **WIDE)
    dense = spec_of(model)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    spec, found = read_spec(folder), artifact_cost(tmp_path / "m.gguf")
    cost = model_cost(dense, unit, "q8_0", context=100)
    total = cost.fixed + sum(cost.layer(layer, spec.hidden, spec.head_dim) for layer in spec.layers)
    tensors = sum(tensor.n_bytes for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors)
    expected = tensors if unit == "bytes" else found.projection_bytes + 100 * found.kv_bytes_per_token
    assert total == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("artifact_format", ["openvino-int4", "onnx-optimum"])
def test_formats_that_do_not_know_it_are_refused(artifact_format: str) -> None:
    refusal = export_refusal(spec_of(tiny_model(FAMILY)), artifact_format)
    assert refusal and f"cannot go to {artifact_format}" in refusal
