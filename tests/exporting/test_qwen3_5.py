"""Qwen3.5 in the runtimes: answers as torch's, llama.cpp's order of value heads, states, and what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import logits, shipped_model
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.imatrix import save_importance
from saap_edge.exporting.onnx import write_onnx
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.prediction.cost import artifact_cost
from saap_edge.pruning.space import model_cost
from saap_edge.recovery.imatrix import importance_matrix
from tests.conftest import tiny_model, write_folder
from tests.exporting.codes_support import tune
from tests.exporting.llama_support import exact_logits
from tests.exporting.test_families import assert_genai_answers_as_torch_does, assert_parity, pruned
from tests.exporting.test_kquants import check

IDS = list(range(1, 30))
FAMILY = "qwen3_5_text"
# 3 value heads a key head, DeltaNets where llama.cpp would not expect them, other taps.
THREE = {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "num_hidden_layers": 5, "linear_conv_kernel_dim": 3}
WIDE = {
    "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "num_hidden_layers": 6,
    "linear_key_head_dim": 64, "linear_value_head_dim": 64,
}  # fmt: skip


def alike(spec_layers: Any, delta: tuple[int, int], attention: tuple[int, int], ffn: int) -> list[LayerShape]:
    return [LayerShape(*(delta if layer.linear else attention), ffn) for layer in spec_layers]


# name -> (model, (value heads, key heads), (query heads, KV heads), FFN): widths of a uniform plan
GGUF: dict[str, tuple[dict, tuple | None]] = {
    "dense": ({}, None), "untied": ({"tied": False, "linear_conv_kernel_dim": 6}, None),
    "three": (THREE, None), "key heads": ({}, ((4, 2), (8, 4), 96)), "value heads": ({}, ((4, 4), (8, 4), 128)),
    "both": (THREE, ((2, 2), (4, 2), 64)), "small heads": (
        {"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}, ((2, 2), (4, 4), 64)),
    "whole rope": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}, None),
}  # fmt: skip


@pytest.mark.parametrize("artifact_format", ["gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1"])
@pytest.mark.parametrize("name", GGUF)
def test_llama_cpp_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    overrides, widths = GGUF[name]
    model = tiny_model(FAMILY, **overrides)
    model = pruned(model, alike(spec_of(model).layers, *widths)) if widths else model
    folder = write_folder(model, tmp_path / "model")
    assert assert_parity(folder, tmp_path, artifact_format) == "qwen35"
    path = tmp_path / f"{artifact_format}.gguf"
    fields, spec = gguf.GGUFReader(path).fields, read_spec(folder)
    delta = next(layer for layer in spec.layers if layer.linear)
    assert fields["qwen35.ssm.time_step_rank"].contents() == delta.heads
    assert fields["qwen35.ssm.group_count"].contents() == delta.kv_heads
    assert fields["qwen35.attention.recurrent_layers"].contents() == [layer.linear for layer in spec.layers]
    assert artifact_cost(path).kv_bytes_per_token == LlamaCppEngine(path, 1, 16).kv_bytes_per_token()
    if artifact_format == "gguf-f32":
        np.testing.assert_allclose(exact_logits(path, IDS), logits(load_model(folder), IDS), atol=1e-4)


def test_tuned_blocks_move_as_they_are(tmp_path: Path) -> None:
    """Value heads of one key head lie apart in the file: rows of v, z, b and a, and columns of the output."""
    folder = write_folder(tiny_model(FAMILY, **WIDE), tmp_path / "model")
    tune(folder, "q4_0", 32)
    write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    parameters = dict(shipped_model(folder, "gguf-q4_0").named_parameters())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}

    def held(name: str) -> np.ndarray:
        return gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)

    def ours(name: str) -> np.ndarray:
        return parameters[f"model.layers.0.linear_attn.{name}.weight"].detach().numpy()

    qkv = held("blk.0.attn_qkv.weight")
    np.testing.assert_array_equal(qkv[:512], np.concatenate([ours("in_proj_q"), ours("in_proj_k")]))
    for found, name, width in ((qkv[512:], "in_proj_v", 64), (held("blk.0.ssm_beta.weight"), "in_proj_b", 1)):
        np.testing.assert_array_equal(
            found.reshape(2, 4, width, 256), ours(name).reshape(4, 2, width, 256).swapaxes(0, 1)
        )
    out = held("blk.0.ssm_out.weight").reshape(256, 2, 4, 64)
    np.testing.assert_array_equal(out, ours("out_proj").reshape(256, 4, 2, 64).swapaxes(1, 2))


def test_types_that_llama_cpp_makes(tmp_path: Path) -> None:
    """By importance and without: values are read back from the file, past the order of value heads."""
    model = tiny_model(FAMILY, **WIDE | {"intermediate_size": 512, "num_hidden_layers": 2})
    model = pruned(model, alike(spec_of(model).layers, (4, 2), (8, 4), 256))
    windows = torch.randint(0, 320, (8, 32), generator=torch.Generator().manual_seed(0))
    matrix = save_importance(importance_matrix(model, windows), tmp_path)
    check(write_folder(model, tmp_path / "model"), matrix, tmp_path / "out", ("q4_k_m", "iq4_xs"))


REFUSED: list[tuple[dict, list[LayerShape] | None, str]] = [
    ({}, [LayerShape(8, 4, 96), LayerShape(8, 4, 64), LayerShape(8, 4, 64)], "one FFN width and one number of heads"),
    ({}, [LayerShape(8, 4, 64), LayerShape(8, 4, 64), LayerShape(4, 2, 64)], "one FFN width and one number of heads"),
    ({"linear_value_head_dim": 64}, None, "keys and values of one size, this model has 32 and 64"),
    ({"rms_norm_eps": 1e-5}, None, r"adds rms_norm_eps \(1e-05\) to the squared lengths"),
    ({"linear_key_head_dim": 16, "linear_value_head_dim": 16}, None, "value heads of 16 fill no blocks of 32"),
    ({"layer_types": ["full_attention"] * 3}, None, "without any gated DeltaNet"),
]


@pytest.mark.parametrize(("overrides", "widths", "reason"), REFUSED)
def test_what_llama_cpp_cannot_hold_is_refused_and_onnx_runs_it(
    overrides: dict, widths: list[LayerShape] | None, reason: str, tmp_path: Path
) -> None:
    model = tiny_model(FAMILY, **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    with pytest.raises(SaapError, match=f"Qwen3.5: .* cannot go to gguf-q4_0: .*{reason}.*leave gguf-q4_0 out"):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    assert not (tmp_path / "m.gguf").exists()
    assert_parity(folder, tmp_path, "onnx-fp32")


ONNX: dict[str, tuple[dict, list[LayerShape] | None]] = {
    "dense": ({"head_dim": 32, "tied": False}, None), "three": (THREE | {"linear_key_head_dim": 8}, None),
    "by layer": ({}, [LayerShape(3, 3, 96), LayerShape(4, 2, 64), LayerShape(2, 1, 32)]),
    "depth": ({}, [LayerShape(0, 0, 64), LayerShape(8, 4, 0), LayerShape(0, 0, 64)]),
}  # fmt: skip


@pytest.mark.parametrize("artifact_format", ["onnx-fp32", "onnx-fp16", "onnx-int4", "onnx-int4-full", "onnx-int8"])
@pytest.mark.parametrize("name", ONNX)
def test_onnx_runtime_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    overrides, widths = ONNX[name]
    model = tiny_model(FAMILY, **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    assert_parity(folder, tmp_path, artifact_format)


@pytest.mark.parametrize("widths", [None, [LayerShape(3, 3, 96), LayerShape(4, 2, 64), LayerShape(6, 2, 32)]], ids=str)
def test_genai_runs_it(widths: list[LayerShape] | None, tmp_path: Path) -> None:
    model = tiny_model(FAMILY)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    assert_genai_answers_as_torch_does(folder, tmp_path / "out")


@pytest.mark.parametrize("unit", ["bytes", "latency"])
@pytest.mark.parametrize("delta", [(8, 4), (4, 4), (4, 2)])
def test_a_plan_in_bytes_and_latency_is_what_the_file_and_its_states_are(
    unit: Any, delta: tuple[int, int], tmp_path: Path
) -> None:
    model = tiny_model(FAMILY, vocab_size=2048, **WIDE)
    dense = spec_of(model)
    folder = write_folder(pruned(model, alike(dense.layers, delta, (4, 2), 96)), tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    spec, found = read_spec(folder), artifact_cost(tmp_path / "m.gguf")
    cost = model_cost(dense, unit, "q8_0", context=100)
    total = cost.fixed + sum(cost.layer(layer, spec.hidden, spec.head_dim) for layer in spec.layers)
    tensors = sum(tensor.n_bytes for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors)
    expected = tensors + (found.state_bytes + 100 * found.kv_bytes_per_token if unit == "latency" else 0)
    assert total == pytest.approx(expected, rel=0.03)
