"""Nemotron-H in the runtimes: answers as torch's with widths of each block, and what they take."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import logits
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.imatrix import save_importance
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.refusal import export_refusal
from saap_edge.families.nemotron_h import FAMILY
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.prediction.cost import artifact_cost
from saap_edge.recovery.imatrix import importance_matrix
from tests.conftest import tiny_model, write_folder
from tests.exporting.artifacts_support import counted_and_written
from tests.exporting.llama_support import exact_logits
from tests.exporting.test_families import assert_genai_answers_as_torch_does, assert_parity, pruned
from tests.exporting.test_kquants import check

IDS = list(range(1, 30))
MAMBA, ATTENTION, FFN = "linear_attention", "full_attention", "mlp"
BLOCKS = [MAMBA, FFN, ATTENTION, FFN, MAMBA, ATTENTION, FFN]
BY_LAYER = [
    LayerShape(0, 0, 0), LayerShape(0, 0, 96), LayerShape(4, 2, 0), LayerShape(0, 0, 32), LayerShape(0, 0, 0),
    LayerShape(2, 2, 0), LayerShape(0, 0, 128),
]  # fmt: skip
GONE = [*BY_LAYER[:1], LayerShape(0, 0, 0), *BY_LAYER[2:5], LayerShape(0, 0, 0), LayerShape(0, 0, 64)]
# Attention first and last, other groups, states and taps, no bias of the convolution, biases of FFNs.
OTHER = {
    "layers_block_type": [ATTENTION, FFN, MAMBA, FFN, ATTENTION], "mamba_num_heads": 6, "mamba_head_dim": 16,
    "n_groups": 3, "ssm_state_size": 8, "conv_kernel": 3, "use_conv_bias": False, "mlp_bias": True,
    "num_key_value_heads": 1, "num_attention_heads": 4, "head_dim": 32, "layer_norm_epsilon": 1e-3,
}  # fmt: skip
CASES: dict[str, tuple[dict, list[LayerShape] | None]] = {
    "dense": ({}, None), "other": (OTHER, None), "by layer": ({}, BY_LAYER), "gone": ({}, GONE),
    "ffn off the grid": ({"intermediate_size": 100}, None), "no ffn": ({"layers_block_type": [MAMBA, ATTENTION]}, None),
}  # fmt: skip


def made(name: str, folder: Path) -> Path:
    overrides, widths = CASES[name]
    model = tiny_model("nemotron_h", **{"layers_block_type": BLOCKS} | overrides)
    return write_folder(pruned(model, widths) if widths else model, folder)


@pytest.mark.parametrize("artifact_format", ["gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1"])
@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    folder, path = made(name, tmp_path / "model"), tmp_path / f"{artifact_format}.gguf"
    assert assert_parity(folder, tmp_path, artifact_format) == "nemotron_h"
    fields, layers = gguf.GGUFReader(path).fields, read_spec(folder).layers
    assert fields["nemotron_h.attention.head_count_kv"].contents() == [layer.kv_heads for layer in layers]
    padded = [-(-layer.ffn // 32) * 32 for layer in layers]
    assert fields["nemotron_h.feed_forward_length"].contents() == padded
    assert artifact_cost(path).kv_bytes_per_token == LlamaCppEngine(path, 1, 16).kv_bytes_per_token()
    if artifact_format == "gguf-f32":
        np.testing.assert_allclose(exact_logits(path, IDS), logits(load_model(folder), IDS), atol=1e-4)


@pytest.mark.parametrize("artifact_format", ["onnx-fp32", "onnx-fp16", "onnx-int4", "onnx-int4-full", "onnx-int8"])
@pytest.mark.parametrize("name", CASES)
def test_onnx_runtime_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    assert_parity(made(name, tmp_path / "model"), tmp_path, artifact_format)


@pytest.mark.parametrize("name", ["dense", "by layer", "gone"])
def test_genai_runs_it(name: str, tmp_path: Path) -> None:
    folder = made(name, tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    assert_genai_answers_as_torch_does(folder, tmp_path / "out")


@pytest.mark.parametrize("artifact_format", ["gguf-f32", "onnx-fp32"])
def test_biases_of_repair(artifact_format: str, tmp_path: Path) -> None:
    model = tiny_model("nemotron_h", layers_block_type=BLOCKS)
    for index, end in ((1, "mlp.down_proj"), (2, "self_attn.o_proj")):
        model.model.layers[index].get_submodule(end).bias = torch.nn.Parameter(torch.randn(64) * 0.1)
    assert_parity(write_folder(pruned(model, BY_LAYER), tmp_path / "model"), tmp_path, artifact_format)


def test_types_that_llama_cpp_makes(tmp_path: Path) -> None:
    """By importance and without: values are read back from the file."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "mamba_num_heads": 8, "mamba_head_dim": 32, "head_dim": 32}
    model = tiny_model("nemotron_h", **shape)
    model = pruned(model, [LayerShape(8, 4, 256)] * 3)
    windows = torch.randint(0, 320, (8, 32), generator=torch.Generator().manual_seed(0))
    matrix = save_importance(importance_matrix(model, windows), tmp_path)
    check(write_folder(model, tmp_path / "model"), matrix, tmp_path / "out", ("q4_k_m", "iq4_xs"))


def test_heads_that_fill_no_blocks_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("nemotron_h", mamba_num_heads=2, n_groups=2), tmp_path / "model")
    with pytest.raises(SaapError, match="2 heads of a Mamba-2 of 8 are 16 wide, not a multiple of 32"):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")


def test_a_plan_in_bytes_knows_what_stays_in_the_file(tmp_path: Path) -> None:
    sizes = []
    for name, ffn in (("wide", 128), ("narrow", 64)):
        model = tiny_model("nemotron_h", vocab_size=2048, hidden_size=128, layers_block_type=BLOCKS)
        folder = write_folder(pruned(model, [LayerShape(8, 4, ffn)] * 7), tmp_path / f"{name}-m")
        total, file = counted_and_written(folder, tmp_path / name)
        assert total == pytest.approx(file, rel=0.03)
        sizes.append((total, file))
    assert sizes[0][0] - sizes[1][0] == sizes[0][1] - sizes[1][1]


def test_per_layer_plans_are_native() -> None:
    assert FAMILY.exports.gguf_layers == FAMILY.exports.gguf_uniform == "nemotron_h"
    assert export_refusal(spec_of(tiny_model("nemotron_h")), "gguf-q4_0", per_layer=True) is None
