"""LFM2 in the runtimes: answers as torch's, heads of zeros in llama.cpp, states of convolutions, and what they take."""

from __future__ import annotations

from pathlib import Path

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
from saap_edge.model.folder import load_model
from saap_edge.model.spec import LayerShape
from saap_edge.prediction.cost import artifact_cost
from saap_edge.recovery.imatrix import importance_matrix
from tests.conftest import tiny_model, write_folder
from tests.exporting.artifacts_support import counted_and_written
from tests.exporting.codes_support import tune
from tests.exporting.llama_support import exact_logits
from tests.exporting.test_families import assert_genai_answers_as_torch_does, assert_parity, pruned
from tests.exporting.test_kquants import check

IDS = list(range(1, 30))
FILLED = {"num_attention_heads": 4, "num_key_value_heads": 2}  # 4 heads of 16: the hidden size, as llama.cpp wants it
WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "num_hidden_layers": 6}


def alike(layers: int, heads: int, kv_heads: int, ffn: int) -> list[LayerShape]:
    return [LayerShape(heads, kv_heads, ffn)] * layers  # where a convolution is, it has no heads


# name -> (model, widths, query heads and KV heads of the layers in the file)
GGUF: dict[str, tuple[dict, list[LayerShape] | None, int, list[int]]] = {
    "dense": (FILLED, None, 4, [0, 2, 2]), "untied": (FILLED | {"tied": False, "conv_L_cache": 5}, None, 4, [0, 2, 2]),
    "yarn": (FILLED | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
             "original_max_position_embeddings": 32, "attention_factor": 1.5}}, None, 4, [0, 2, 2]),
    "kv groups": (FILLED, alike(3, 2, 1, 64), 4, [0, 1, 1]),
    "query slots": (WIDE, alike(6, 4, 4, 96), 8, [0, 4, 4, 0, 4, 4]),
    "groups no divisor": (WIDE, alike(6, 6, 3, 96), 8, [0, 4, 4, 0, 4, 4]),
    "both": (WIDE, alike(6, 2, 2, 96), 8, [0, 2, 2, 0, 2, 2]),
    "kv by layer": (WIDE, [LayerShape(0, 0, 96), LayerShape(8, 4, 96), LayerShape(2, 1, 96), LayerShape(0, 0, 96),
                           LayerShape(0, 0, 96), LayerShape(3, 3, 96)], 8, [0, 4, 1, 0, 1, 4]),
}  # fmt: skip


@pytest.mark.parametrize("artifact_format", ["gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1"])
@pytest.mark.parametrize("name", GGUF)
def test_llama_cpp_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    overrides, widths, heads, kv_heads = GGUF[name]
    model = tiny_model("lfm2", **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    assert assert_parity(folder, tmp_path, artifact_format) == "lfm2"
    path = tmp_path / f"{artifact_format}.gguf"
    fields = gguf.GGUFReader(path).fields
    assert fields["lfm2.attention.head_count"].contents() == heads
    assert fields["lfm2.attention.head_count_kv"].contents() == kv_heads
    assert artifact_cost(path).kv_bytes_per_token == LlamaCppEngine(path, 1, 16).kv_bytes_per_token()
    if artifact_format == "gguf-f32":
        np.testing.assert_allclose(exact_logits(path, IDS), logits(load_model(folder), IDS), atol=1e-4)


def test_tuned_blocks_move_as_they_are(tmp_path: Path) -> None:
    """Heads of zeros come between those of the model; what is between them in the file is zero."""
    folder = write_folder(pruned(tiny_model("lfm2", **WIDE), alike(6, 4, 4, 96)), tmp_path / "model")
    tune(folder, "q4_0", 32)
    write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    parameters = dict(shipped_model(folder, "gguf-q4_0").named_parameters())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}

    def held(name: str) -> np.ndarray:
        return gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)

    q, o = (parameters[f"model.layers.1.self_attn.{name}_proj.weight"].detach().numpy() for name in "qo")
    whole_q, whole_o = held("blk.1.attn_q.weight").reshape(4, 2, 32, 256), held("blk.1.attn_output.weight").T
    whole_o = whole_o.reshape(4, 2, 32, 256)
    np.testing.assert_array_equal(whole_q[:, 0].reshape(128, 256), q)
    np.testing.assert_array_equal(whole_o[:, 0].reshape(128, 256), o.T)
    assert not whole_q[:, 1].any() and not whole_o[:, 1].any()


def test_types_that_llama_cpp_makes(tmp_path: Path) -> None:
    """By importance and without: values are read back from the file, past the heads of zeros."""
    overrides = WIDE | {"hidden_size": 512, "head_dim": 64, "intermediate_size": 512, "num_hidden_layers": 3}
    model = pruned(tiny_model("lfm2", **overrides), alike(3, 4, 4, 256))
    windows = torch.randint(0, 320, (8, 32), generator=torch.Generator().manual_seed(0))
    matrix = save_importance(importance_matrix(model, windows), tmp_path)
    details = check(write_folder(model, tmp_path / "model"), matrix, tmp_path / "out", ("q4_k_m", "iq2_xs"))
    assert all(not detail["fallbacks"] for detail in details.values())


REFUSED = [
    (WIDE, [LayerShape(8, 4, 96), *[LayerShape(8, 4, 64)] * 5], "one FFN width for all layers"),
    ({}, None, "4 query heads, which 4 kv heads of 2 cannot share"),
    (FILLED | {"layer_types": ["full_attention"] * 3}, None, "ends the process at an 'lfm2' without convolutions"),
    (FILLED | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 48}, None, "which heads of 48 do not"),
    (FILLED | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 16}}, None, "no llama3 rope scaling"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "widths", "reason"), REFUSED)
def test_what_llama_cpp_cannot_hold_is_refused_and_onnx_runs_it(
    overrides: dict, widths: list[LayerShape] | None, reason: str, tmp_path: Path
) -> None:
    model = tiny_model("lfm2", **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    with pytest.raises(SaapError, match=f"LFM2: .* cannot go to gguf-q4_0: .*{reason}.*leave gguf-q4_0 out"):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    assert not (tmp_path / "m.gguf").exists()
    assert_parity(folder, tmp_path, "onnx-fp32")


ONNX: dict[str, tuple[dict, list[LayerShape] | None]] = {
    "dense": ({}, None), "untied": ({"tied": False, "conv_L_cache": 2}, None), "head-dim-8": ({"head_dim": 8}, None),
    "long": ({"conv_L_cache": 7, "num_hidden_layers": 5}, None),
    "by layer": ({}, [LayerShape(0, 0, 96), LayerShape(4, 2, 64), LayerShape(2, 1, 32)]),
    "depth": ({}, [LayerShape(0, 0, 0), LayerShape(0, 0, 64), LayerShape(4, 2, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("artifact_format", ["onnx-fp32", "onnx-fp16", "onnx-int4", "onnx-int4-full", "onnx-int8"])
@pytest.mark.parametrize("name", ONNX)
def test_onnx_runtime_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    overrides, widths = ONNX[name]
    model = tiny_model("lfm2", **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    assert_parity(folder, tmp_path, artifact_format)


@pytest.mark.parametrize("overrides", [{}, {"tied": False, "conv_L_cache": 5}], ids=str)
def test_genai_runs_it(overrides: dict, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("lfm2", **overrides), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    assert_genai_answers_as_torch_does(folder, tmp_path / "out")


def test_genai_wants_one_number_of_kv_heads(tmp_path: Path) -> None:
    widths = [LayerShape(0, 0, 96), LayerShape(4, 2, 96), LayerShape(2, 1, 96)]
    folder = write_folder(pruned(tiny_model("lfm2"), widths), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    with pytest.raises(RuntimeError, match=r"invalid dimensions for input: past_key_values\.2\.key"):
        assert_genai_answers_as_torch_does(folder, tmp_path / "out")


@pytest.mark.parametrize("heads", [4, 8])
def test_a_plan_in_bytes_knows_what_stays_in_the_file(heads: int, tmp_path: Path) -> None:
    """q and o are as wide as the model in GGUF, whatever heads are left; convolutions stay."""
    sizes = []
    for name, ffn in (("wide", 128), ("narrow", 64)):
        folder = write_folder(
            pruned(tiny_model("lfm2", vocab_size=2048, **WIDE), alike(6, heads, heads // 2, ffn)),
            tmp_path / f"{name}-m",
        )
        total, file = counted_and_written(folder, tmp_path / name)
        assert total == pytest.approx(file, rel=0.03)
        sizes.append((total, file))
    assert sizes[0][0] - sizes[1][0] == sizes[0][1] - sizes[1][1]
