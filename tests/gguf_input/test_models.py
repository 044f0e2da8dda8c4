"""Models out of GGUF files: logits against transformers' class of the model they were written from, and llama.cpp's."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import logits, shipped_model
from saap_edge.exporting.gguf import write_gguf
from saap_edge.gguf_file.reader import GgufModel
from saap_edge.gguf_input import folder as folder_module
from saap_edge.gguf_input.config import config_of
from saap_edge.gguf_input.folder import unpack
from saap_edge.gguf_input.rope import _of_table
from saap_edge.model.checkpoint import open_checkpoint
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from tests.conftest import WIDTHS, randomise_projections, raw_model, tiny_model, write_folder
from tests.exporting.llama_support import exact_logits
from tests.gguf_input.foreign import finish, tensors_of, write_foreign, writer_of

IDS = list(range(1, 30))  # more than Gemma's window of 8
# qwen2 and phi3 of llama.cpp have heads that fill the hidden size.
SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2}
SMOLLM3 = {"no_rope_layer_interval": 4, "num_hidden_layers": 5}  # as llama.cpp has it
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.3, 1.5, 1.6, 2.0, 2.2, 3.0],
    "long_factor": [4.0] * 8, "original_max_position_embeddings": 512,
}  # fmt: skip
# llama.cpp takes the long factors in any context beyond the original one, and has no context below 256.
LONG = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 512, "max_position_embeddings": 1024}
CASES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {}),
    "llama-untied-biases": ("llama", {"tied": False, "attention_bias": True}),
    "llama-all-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "granite": ("granite", {}),
    "granite-untied": ("granite", {"tied": False}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-untied-yarn": ("qwen3", {"tied": False, "rope_parameters": YARN}),
    "phi3": ("phi3", {"tied": False}),
    "ernie4_5": ("ernie4_5", {}),
    "hunyuan": ("hunyuan_v1_dense", {}),
    "phi3-longrope": ("phi3", LONG),
    "phi3-partial": ("phi3", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default",
                                                  "partial_rotary_factor": 0.5}}),
    "smollm3": ("smollm3", SMOLLM3),
    "smollm3-untied-yarn": ("smollm3", SMOLLM3 | {"tied": False, "rope_parameters": YARN}),
    "lfm2": ("lfm2", {"num_hidden_layers": 5, "conv_L_cache": 4}), "lfm2-untied-yarn": ("lfm2", {"tied": False,
    "rope_parameters": YARN}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6, "num_hidden_layers": 6}),
}  # fmt: skip


@functools.cache
def original(case: str) -> PreTrainedModel:
    family, overrides = CASES[case]
    model = raw_model(family, **SHAPE | overrides)
    if family.startswith("gemma"):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.sub_(1)  # around 1 with the 1 that is added, as in trained models
    return model


def as_folder(path: Path, folder: Path) -> Path:
    """What `unpack` makes of a file, without its tokenizer."""
    folder.mkdir()
    (folder / "model.gguf").symlink_to(path)
    (folder / "config.json").write_text(json.dumps(config_of(GgufModel(path))))
    return folder


@pytest.mark.parametrize("case", list(CASES))
def test_a_file_of_llama_cpp_answers_as_transformers_and_llama_cpp(case, tmp_path):
    model = original(case)
    path = write_foreign(model, tmp_path / "m.gguf")
    read = load_model(as_folder(path, tmp_path / "folder"))
    expected = logits(model, IDS)
    np.testing.assert_allclose(logits(read, IDS), expected, atol=2e-4)
    # llama.cpp looks GELU up in a table of half precision
    np.testing.assert_allclose(exact_logits(path, IDS), expected, atol=5e-3 if "gemma" in case else 1e-3)


NOT_READ = {"qwen3_5_text": "qwen35", "nemotron_h": "nemotron_h", "gemma4_text": "gemma4"}


@pytest.mark.parametrize("quantisation", ["f32", "f16", "bf16", "q8_0", "q4_1"])
def test_a_file_of_ours_is_the_model_that_shipped(family, quantisation, tmp_path):
    overrides = {"query_pre_attn_scalar": 16} if family.startswith("gemma") else {}
    if family == "gemma3_text":
        overrides |= {"sliding_window_pattern": 6, "num_hidden_layers": 6}
    if family == "smollm3":
        overrides = SMOLLM3
    if family == "lfm2":
        overrides = SHAPE  # heads that fill the hidden size
    folder = write_folder(raw_model(family, **overrides), tmp_path / "hf")
    write_gguf(folder, tmp_path / "m.gguf", quantisation)
    if family in NOT_READ:
        with pytest.raises(SaapError, match=f"architecture '{NOT_READ[family]}' is not supported"):
            as_folder(tmp_path / "m.gguf", tmp_path / "folder")
        return
    read = load_model(as_folder(tmp_path / "m.gguf", tmp_path / "folder"))
    expected = logits(shipped_model(folder, f"gguf-{quantisation}"), IDS)
    np.testing.assert_allclose(logits(read, IDS), expected, atol=2e-4)


@pytest.mark.parametrize("quantisation", ["q4_0", "q4_1", "q8_0"])
def test_the_same_blocks_again_lose_nothing(quantisation, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(raw_model("llama", attention_bias=True), tmp_path / "hf")
    write_gguf(folder, tmp_path / "m.gguf", quantisation)
    write_gguf(unpack(tmp_path / "m.gguf"), tmp_path / "again.gguf", quantisation)
    first, second = (gguf.GGUFReader(tmp_path / name).tensors for name in ("m.gguf", "again.gguf"))
    for one, two in zip(first, second, strict=True):
        assert one.name == two.name and one.tensor_type == two.tensor_type
        np.testing.assert_array_equal(one.data, two.data)


# Attention gone in the first layer, FFN gone in the last, query heads gone in the middle.
DEPTH = [LayerShape(0, 0, 64), LayerShape(2, 2, 96), LayerShape(8, 4, 0)]
PRUNED = {
    "llama": ("llama", WIDTHS, {}), "llama-depth": ("llama", DEPTH, {}), "qwen2": ("qwen2", WIDTHS, {}),
    "llama-biases": ("llama", WIDTHS, {"attention_bias": True}), "qwen3": ("qwen3", WIDTHS, {}),
    "llama-all-biases": ("llama", WIDTHS, {"attention_bias": True, "mlp_bias": True}),
    "qwen3-depth": ("qwen3", DEPTH, {}), "llama3-rope": ("llama", WIDTHS, {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", WIDTHS, {"rope_parameters": YARN}),
    "phi3-longrope": ("phi3", [LayerShape(4, 2, 96), LayerShape(2, 1, 64), LayerShape(2, 1, 32)], SHAPE | LONG),
    "off-grid": ("llama", [LayerShape(8, 4, 44), LayerShape(4, 2, 70), LayerShape(2, 1, 32)], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", list(PRUNED))
def test_a_pruned_file_comes_back(case, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    family, widths, overrides = PRUNED[case]
    folder = write_folder(randomise_projections(build_pruned(tiny_model(family, **overrides), widths)), tmp_path / "hf")
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    back = unpack(tmp_path / "m.gguf")
    np.testing.assert_allclose(logits(load_model(back), IDS), logits(load_model(folder), IDS), atol=2e-4)
    write_gguf(back, tmp_path / "again.gguf", "f32")
    first, second = (gguf.GGUFReader(tmp_path / name).tensors for name in ("m.gguf", "again.gguf"))
    assert [tensor.name for tensor in first] == [tensor.name for tensor in second]
    for one, two in zip(first, second, strict=True):
        np.testing.assert_allclose(one.data, two.data, rtol=1e-6)


def test_a_slice_of_rows_is_that_of_the_whole(tmp_path):
    back = as_folder(write_foreign(original("llama-untied-biases"), tmp_path / "m.gguf"), tmp_path / "folder")
    stored = open_checkpoint(back).stored
    for name, entry in stored.entries.items():
        whole = stored.read(name, 0, entry.shape[0])
        assert tuple(whole.shape) == entry.shape
        for start, stop in ((0, 1), (3, 21), (17, entry.shape[0])):
            assert torch.equal(stored.read(name, start, stop), whole[start:stop]), name


@pytest.mark.parametrize("factor,low,high,context,theta", [
    (8.0, 1.0, 4.0, 8192, 500000.0), (32.0, 1.0, 4.0, 8192, 500000.0), (16.0, 1.0, 2.0, 4096, 10000.0),
])  # fmt: skip
def test_the_parameters_of_llama3_are_found(factor, low, high, context, theta):
    plain = theta ** (-np.arange(0, 128, 2) / 128)
    kept = np.clip((context * plain / (2 * np.pi) - low) / (high - low), 0, 1)
    table = (1 / ((1 - kept) / factor + kept)).astype(np.float32).astype(np.float64)
    found = _of_table(table, theta, 1.0, 131072)
    assert found == {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }  # fmt: skip


def test_any_other_table_is_kept_factor_by_factor():
    table = np.array([1.0, 1.0, 3.0, 2.0, 5.0])
    found = _of_table(table, 1e4, 1.0, 4096)
    assert found["rope_type"] == "longrope" and found["short_factor"] == table.tolist() == found["long_factor"]


def broken(case: str, tmp_path: Path, metadata=None, tensors=None) -> Path:
    """A file with other metadata (None: the key is gone) or tensors (None: it is gone)."""
    model = original(case)
    writer = writer_of(model, tmp_path / "m.gguf")
    for key, value in (metadata or {}).items():
        key = key.replace("{arch}", writer.arch)
        writer.kv_data[0].pop(key, None)
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            if kind == gguf.GGUFValueType.INT32 and value >= 0:
                kind = gguf.GGUFValueType.UINT32
            writer.add_key_value(key, value, kind)
    found = tensors_of(model) | (tensors or {})
    finish(writer, {name: data for name, data in found.items() if data is not None})
    return tmp_path / "m.gguf"


ZEROS = np.zeros((64, 64), np.float32)


@pytest.mark.parametrize("case,metadata,tensors,reason", [
    ("llama", {"general.architecture": "mamba"}, {}, "architecture 'mamba' is not supported"),
    ("llama", {"{arch}.block_count": None}, {}, "lacks llama.block_count"),
    ("llama", {"{arch}.block_count": 4}, {}, "tensor 'model.layers.3."),
    ("llama", {"{arch}.block_count": 2}, {}, "block_count is 2"),
    ("llama", {"{arch}.embedding_length": 96}, {}, "llama.embedding_length is 96"),
    ("llama", {"{arch}.attention.head_count": 3}, {}, "3 query heads cannot share 2 kv heads"),
    ("llama", {"{arch}.attention.head_count": [4, 4, 2]}, {}, "layers of different widths"),
    ("llama", {"{arch}.attention.key_length": 32}, {}, "keys of 32 and values of 16"),
    ("llama", {"{arch}.feed_forward_length": 96}, {}, "config.json says"),
    ("llama", {"{arch}.attention.layer_norm_rms_epsilon": float("nan")}, {}, "not a finite number"),
    ("llama", {"{arch}.expert_count": 8}, {}, "mixture of experts"),
    ("llama", {"{arch}.rope.scaling.type": "su", "{arch}.rope.scaling.factor": 2.0}, {}, "'su' is not supported"),
    ("llama", {"{arch}.rope.dimension_count": 18}, {}, "a head has 16 dimensions"),
    ("llama", {}, {"blk.1.ffn_up.weight": None}, "is missing"),
    ("llama", {}, {"blk.1.ffn_gate_exps.weight": ZEROS}, "'blk.1.ffn_gate_exps.weight' has no place"),
    ("llama", {}, {"rope_freqs.weight": np.zeros(8, np.float32)}, "no positive numbers"),
    ("llama", {}, {"rope_freqs.weight": np.ones(5, np.float32)}, "rope_freqs.weight is (5,)"),
    ("llama-untied-biases", {}, {"blk.1.attn_q.bias": None}, "blk.1.attn_q has no bias"),
    ("granite", {"granite.rope.scaling.finetuned": False}, {}, "no rotary positions"),
    ("phi3-longrope", {}, {"rope_factors_long.weight": None}, "one is missing"),
])  # fmt: skip
def test_what_does_not_add_up_is_refused(case, metadata, tensors, reason, tmp_path, monkeypatch):
    path = broken(case, tmp_path, metadata, tensors)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SaapError) as error:
        unpack(path)
    assert reason in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)
    assert not any((tmp_path / "cache" / "saap-edge" / "gguf").iterdir())


ODD_VALUES = [0, 3, 2**32 - 1, -1, -1.5, float("nan"), True, "x", [3, -1, 3]]


@pytest.mark.parametrize("case", ["phi3-longrope", "gemma3", "granite"])
def test_a_value_that_cannot_be_is_refused_or_read_as_it_is(case, tmp_path, monkeypatch):
    """Every key of the architecture and of the tokenizer's ids with every odd value: a model, or one line."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_module, "find_spec", lambda name: None)  # llama.cpp takes a second to start
    writer = writer_of(original(case), tmp_path / "none.gguf")
    keys = [key for key in writer.kv_data[0] if key.startswith(writer.arch) or key.endswith("_id")]
    refused = 0
    for key, value in itertools.product(keys, ODD_VALUES):
        path = broken(case, tmp_path, {key: value})
        try:
            open_checkpoint(unpack(path))
        except SaapError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > len(keys) * len(ODD_VALUES) / 2
