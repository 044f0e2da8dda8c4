"""Whole heads, filled up with zeros: what gpt4all and mistralrs take. Their own runs: benchmarks/runtime_matrix.py."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import logits
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.weights import ExportWeights
from saap_edge.layouts import gpt4all
from saap_edge.layouts.registry import Given
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from tests.conftest import randomise_projections, tiny_model, write_folder
from tests.exporting.codes_support import tune
from tests.exporting.llama_support import exact_logits

IDS = list(range(1, 30))


def pruned(folder, widths, family="llama", seed=1):
    dense = tiny_model(
        family, hidden_size=64, head_dim=16, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2
    )
    return write_folder(randomise_projections(build_pruned(dense, widths), seed), folder)


def fields(path):
    reader = gguf.GGUFReader(path)
    told = {name.split(".", 1)[1]: field.contents() for name, field in reader.fields.items() if "head_count" in name}
    return told, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_heads_of_zeros_change_no_answer(family, tmp_path):
    folder = pruned(tmp_path / "model", [LayerShape(2, 1, 64)] * 2, family)
    write_gguf(folder, tmp_path / "m.gguf", "f32", whole_heads=True)
    told, tensors = fields(tmp_path / "m.gguf")
    assert told == {"attention.head_count": 4, "attention.head_count_kv": 2}
    assert list(tensors["blk.0.attn_q.weight"].shape) == [64, 64]
    assert not tensors["blk.1.attn_v.weight"].data[16:].any() and tensors["blk.1.attn_v.weight"].data[:16].any()
    np.testing.assert_allclose(exact_logits(tmp_path / "m.gguf", IDS), logits(load_model(folder), IDS), atol=1e-4)


@pytest.mark.parametrize("tuned", [False, True])
def test_the_layout(tuned, tmp_path):
    """Tuned codes arrive in it as in the file of the run."""
    folder = pruned(tmp_path / "model", [LayerShape(2, 1, 64)] * 2)
    if tuned:
        tune(folder, "q4_0", 32)
    own = tmp_path / "model-q4_0.gguf"
    write_gguf(folder, own, "q4_0")
    (out := tmp_path / "out").mkdir()
    notes = gpt4all.write(Given("gguf-q4_0", own, folder, folder), out)
    assert notes == ["2 heads and 2 of zeros: the speed of the narrower attention is lost"]
    (_, before), (told, after) = fields(own), fields(out / own.name)
    assert told["attention.head_count"] == 4
    rows = len(before["blk.0.attn_v.weight"].data)
    np.testing.assert_array_equal(after["blk.0.attn_v.weight"].data[:rows], before["blk.0.attn_v.weight"].data)
    zeros = gguf.dequantize(after["blk.0.attn_v.weight"].data, gguf.GGMLQuantizationType.Q4_0)[rows:]
    assert len(zeros) and not zeros.any()


def test_whole_heads_are_left_as_they_are(tmp_path):
    folder = pruned(tmp_path / "model", [LayerShape(4, 2, 32)] * 2)
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    (out := tmp_path / "out").mkdir()
    assert "own file" in gpt4all.write(Given("gguf-f32", tmp_path / "m.gguf", folder, folder), out)[0]
    assert (out / "m.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()


def test_another_answer_is_refused(tmp_path):
    folder = pruned(tmp_path / "model", [LayerShape(2, 1, 64)] * 2)
    other = pruned(tmp_path / "other", [LayerShape(2, 1, 64)] * 2, seed=2)
    write_gguf(other, tmp_path / "m.gguf", "f32")
    (out := tmp_path / "out").mkdir()
    with pytest.raises(SaapError, match="answers something else"):
        gpt4all.write(Given("gguf-f32", tmp_path / "m.gguf", folder, folder), out)


@pytest.mark.parametrize(
    ("widths", "reason"),
    [
        ([LayerShape(2, 1, 64), LayerShape(4, 2, 64)], "use --method uniform"),
        ([LayerShape(3, 1, 64)] * 2, "no multiple of the 3 that share a KV head"),
    ],
)
def test_refusals(widths, reason, tmp_path):
    folder = pruned(tmp_path / "model", widths)
    with pytest.raises(SaapError, match=reason):
        ExportWeights(folder, whole_heads=True)


def test_heads_beyond_the_hidden_size_are_refused(tmp_path):
    model = tiny_model("qwen3", hidden_size=32, head_dim=16, num_attention_heads=4, num_key_value_heads=2)
    folder = write_folder(model, tmp_path)
    with pytest.raises(SaapError, match="4 heads of 16 cannot fill a hidden size of 32"):
        ExportWeights(folder, whole_heads=True)
