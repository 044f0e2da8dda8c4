"""The OpenVINO folder against transformers: values, logits, what the CPU plugin fuses, and what GenAI makes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from saap_edge.engines.openvino_folder import folder_cost
from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import relative_error, shipped_model
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.weights import ExportWeights
from saap_edge.model.blocks import BLOCK_FORMATS, Blocks, joined
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned
from saap_edge.model.spec import LayerShape
from tests.conftest import (
    AS_LLAMA,
    PER_LAYER,
    STATEFUL,
    VOCABULARY,
    WIDTHS,
    randomise_projections,
    raw_model,
    tiny_model,
    write_folder,
)
from tests.exporting.codes_support import tune
from tests.exporting.onnx_support import random_tokens, reference

ov = pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("openvino_tokenizers", reason="openvino-tokenizers is not installed")
from saap_edge.exporting.openvino import write_openvino  # noqa: E402
from tests.exporting.openvino_support import EXACT, PlainRequest  # noqa: E402

TOKENS = random_tokens(VOCABULARY, 24)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
SUMS = 2e-6  # float32 sums in another order; a group's scale off by 1 in 100,000 would be seen


def check_logits(folder: Path, out: Path, quantisation: str, group: int = 32) -> PlainRequest:
    """Prefill, steps, and chunks on top of a past, all against torch with the same weights."""
    expected = reference(shipped_model(folder, f"openvino-{quantisation}", group), TOKENS)
    request = PlainRequest(out)
    assert relative_error(request.forward(TOKENS), expected) < SUMS
    request.reset()
    assert relative_error(np.concatenate([request.forward([token]) for token in TOKENS]), expected) < SUMS
    request.reset()
    chunks = [TOKENS[:9], TOKENS[9:10], TOKENS[10:21], TOKENS[21:]]
    assert relative_error(np.concatenate([request.forward(chunk) for chunk in chunks]), expected) < SUMS
    return request


def written(model: torch.nn.Module, tmp_path: Path, quantisation: str = "int4", group: int = 32) -> tuple[Path, Path]:
    folder = write_folder(model, tmp_path / "model")
    write_openvino(folder, tmp_path / "out", quantisation, group)
    return folder, tmp_path / "out"


def constants(out: Path) -> dict[str, np.ndarray]:
    """The constants by name as OpenVINO reads them back, with 4 bits unpacked."""
    found = {}
    for node in ov.Core().read_model(out / "openvino_model.xml").get_ordered_ops():
        if node.get_type_name() != "Constant":
            continue
        values, kind = node.get_data(), node.get_element_type().get_type_name()
        if kind in ("i4", "u4"):
            packed = values.view(np.uint8).reshape(-1)
            values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1).astype(int)
            values = np.where(values > 7, values - 16, values) if kind == "i4" else values
            values = values[: math.prod(node.get_output_shape(0))]
        found[node.get_friendly_name()] = values
    return found


def check_values(folder: Path, out: Path, format: str, group: int) -> None:
    """Every projection of the file against what the folder holds or rounds to, bit for bit."""
    weights, found = ExportWeights(folder), constants(out)
    for index in range(len(weights.spec.layers)):
        prefix = f"model.layers.{index}."
        for module, parts in {
            "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.o_proj": ("self_attn.o_proj",), "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.down_proj": ("mlp.down_proj",),
        }.items():  # fmt: skip
            names = [f"{prefix}{part}.weight" for part in parts]
            blocks = joined([weights.blocks(name, BLOCK_FORMATS[format], group) for name in names])
            check_blocks(found, f"{prefix}{module}.weight", blocks)


def check_blocks(found: dict[str, np.ndarray], name: str, expected: Blocks) -> None:
    rows, columns = expected.codes.shape
    middle = 0 if expected.offsets is not None else expected.format.middle
    np.testing.assert_array_equal(found[name].reshape(rows, columns), expected.codes.numpy().astype(int) - middle)
    group = math.gcd(expected.group, columns)
    at = np.arange(columns // group) * group // expected.group
    np.testing.assert_array_equal(found[f"{name}/scale"].reshape(rows, -1), expected.scales.numpy()[:, at])
    if expected.offsets is not None:
        np.testing.assert_array_equal(found[f"{name}/zero_point"].reshape(rows, -1), expected.offsets.numpy()[:, at])


@pytest.mark.parametrize("quantisation", ["int4", "int8"])
@pytest.mark.parametrize("family", sorted(set(PER_LAYER) - {*STATEFUL, "gemma4_text"}))
def test_logits_equal_torch_with_a_different_width_in_every_layer(
    family: str, quantisation: str, tmp_path: Path
) -> None:
    folder, out = written(randomise_projections(build_pruned(tiny_model(family), WIDTHS)), tmp_path, quantisation)
    check_logits(folder, out, quantisation)
    check_values(folder, out, {"int4": "q4_0", "int8": "q8_0"}[quantisation], 32)


@pytest.mark.parametrize(
    ("family", "tied", "overrides"),
    [
        ("llama", False, {}), ("llama", False, {"attention_bias": True, "mlp_bias": True}),
        ("granite", True, {"mlp_bias": True, "intermediate_size": 44}), ("llama", True, {"head_dim": 8}),
        ("llama", True, {"rope_parameters": LLAMA3}), ("llama", True, {"rope_parameters": YARN}),
        ("qwen2", False, {"intermediate_size": 44}), ("llama", True, {"num_key_value_heads": 8}),
        ("qwen3", True, {"num_key_value_heads": 1}), ("hunyuan_v1_dense", False, {"attention_bias": True}),
    ],
    ids=["untied", "biases", "ffn-44-bias", "head-dim-8", "llama3", "yarn", "ffn-44", "no-groups", "one-kv-head",
         "norms-after-rope"],
)  # fmt: skip
def test_variants(family: str, tied: bool, overrides: dict, tmp_path: Path) -> None:
    folder, out = written(tiny_model(family, tied=tied, **overrides), tmp_path)
    check_logits(folder, out, "int4")


@pytest.mark.parametrize("family", AS_LLAMA)
def test_dense_models_in_other_layouts(family: str, tmp_path: Path) -> None:
    """Answers of transformers' own class, up to the rounding of the weights."""
    raw = raw_model(family)
    folder, out = written(raw, tmp_path, "int8")
    request = check_logits(folder, out, "int8")
    request.reset()
    assert relative_error(request.forward(TOKENS), reference(raw, TOKENS)) < 0.05


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_removed_sublayers_and_query_slots(family: str, tmp_path: Path) -> None:
    widths = [LayerShape(0, 0, 64), LayerShape(2, 2, 96), LayerShape(8, 4, 0)]
    folder, out = written(randomise_projections(build_pruned(tiny_model(family), widths)), tmp_path)
    check_logits(folder, out, "int4")


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("name", ["q4_0", "q8_0", "int4_zp", "int8_zp"])
def test_tuned_blocks_arrive(name: str, group: int, tmp_path: Path) -> None:
    """Zero points, scales of both signs, and groups of 128 in rows of 96 and 64 inputs, which are split."""
    folder = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), tmp_path / "model")
    tune(folder, name, group)
    quantisation = f"int{BLOCK_FORMATS[name].bits}"
    summary = write_openvino(folder, tmp_path / "out", quantisation, 64)
    assert summary["blocks"] == {"format": name, "group": group}
    check_values(folder, tmp_path / "out", name, group)
    check_logits(folder, tmp_path / "out", quantisation)


def test_groups_of_rounded_blocks(tmp_path: Path) -> None:
    folder, out = written(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), tmp_path, "int4", 256)
    check_values(folder, out, "q4_0", 256)
    check_logits(folder, out, "int4", 256)


def test_a_batch_with_left_padding(tmp_path: Path) -> None:
    """As OpenVINO GenAI pads a batch: zeros of the mask before the shorter text."""
    folder, out = written(tiny_model("llama"), tmp_path)
    model, short, step = shipped_model(folder, "openvino-int4"), TOKENS[3:8], TOKENS[9]
    request = PlainRequest(out)
    mask = np.array([[1] * 8, [0] * 3 + [1] * 5])
    logits = request.run(np.array([TOKENS[:8], [0, 0, 0, *short]]), mask, np.maximum(np.cumsum(mask, 1) - 1, 0))
    assert relative_error(logits[0], reference(model, TOKENS[:8])) < SUMS
    assert relative_error(logits[1, 3:], reference(model, short)) < SUMS
    mask = np.hstack([mask, [[1], [1]]])
    logits = request.run(np.array([[step], [step]]), mask, np.array([[8], [5]]))
    assert relative_error(logits[0], reference(model, [*TOKENS[:8], step])[-1:]) < SUMS
    assert relative_error(logits[1], reference(model, [*short, step])[-1:]) < SUMS


def test_the_cpu_plugin_fuses_what_it_should(tmp_path: Path) -> None:
    """Attention with its cache, rotations and norms are one node each, and no product has its weights in floats."""
    _, out = written(randomise_projections(build_pruned(tiny_model("qwen3"), WIDTHS)), tmp_path)
    kinds = PlainRequest(out).kinds()
    counts = {kind: kinds.count(kind) for kind in ("ScaledDotProductAttention", "RoPE", "RMS", "FullyConnected")}
    assert counts == {"ScaledDotProductAttention": 3, "RoPE": 6, "RMS": 13, "FullyConnected": 13}
    assert kinds.count("MemoryInput") == kinds.count("MemoryOutput") == 6


def test_summary_and_cost_count_bytes(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    summary = write_openvino(folder, tmp_path / "out", "int4")
    spec = read_spec(folder)
    norms, head, layers = 7 * 64 * 4, VOCABULARY * 64, spec.layer_parameters()
    # 4 bits and a float16 scale for 32 weights in projections, 8 bits and one for 64 in the tied table
    read = layers // 2 + layers // 16 + head + head // 32 + norms
    assert summary["projection_bytes"] == read
    assert sum(summary["constants"].values()) == read + 8 * 4  # and the rotary frequencies
    assert 0 <= summary["weight_bytes"] - read < 4096
    cost = folder_cost(tmp_path / "out", None)
    assert (cost.format, cost.projection_bytes, cost.context) == ("openvino-int4", read, 128)
    assert cost.parameters == sum(parameter.numel() for parameter in tiny_model("llama").parameters())
    assert cost.kv_bytes_per_token == 3 * 2 * 4 * (16 + 8)
    assert not [*(tmp_path / "out").glob("*.part")]


def test_gemma_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("gemma3_text"), tmp_path / "model")
    with pytest.raises(SaapError, match=r"Gemma 3.*paged attention has no soft caps.*leave openvino-int4 out"):
        write_openvino(folder, tmp_path / "out", "int4")
    newer = write_folder(tiny_model("gemma4_text"), tmp_path / "newer")
    with pytest.raises(SaapError, match=r"Gemma 4: .*caches of two sizes or none.*leave openvino-int4 out"):
        write_openvino(newer, tmp_path / "out", "int4")
    with pytest.raises(SaapError, match="unknown OpenVINO quantisation 'int3'"):
        write_openvino(folder, tmp_path / "out", "int3")
    assert not (tmp_path / "out").exists()


def test_without_the_packages_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = read_spec(write_folder(tiny_model("llama"), tmp_path / "model"))
    assert export_refusal(spec, "openvino-int4") is None
    monkeypatch.setattr("saap_edge.exporting.refusal.find_spec", lambda name: None)
    assert "pip install 'saap-edge[openvino]'" in str(export_refusal(spec, "openvino-int4"))


@pytest.mark.parametrize("attention", ["PA", "SDPA"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_genai_generates_the_same_tokens(family: str, attention: str, tmp_path: Path) -> None:
    """Its LLMPipeline with paged attention, its default, and with the state, on a different width in every layer."""
    genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    folder, out = written(randomise_projections(build_pruned(tiny_model(family), WIDTHS)), tmp_path)
    prompt = TOKENS[:7]
    expected = shipped_model(folder, "openvino-int4").generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0
    )[0].tolist()[7:]  # fmt: skip
    pipeline = genai.LLMPipeline(str(out), "CPU", ATTENTION_BACKEND=attention, **EXACT)
    search = pipeline.get_generation_config()
    search.max_new_tokens = 16
    found = pipeline.generate(ov.Tensor(np.array([prompt], dtype=np.int64)), search).tokens[0]
    assert found == expected


def test_the_folder_carries_what_genai_reads(tmp_path: Path) -> None:
    genai = pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    _, out = written(tiny_model("llama"), tmp_path)
    names = {path.name for path in out.iterdir()}
    assert {"openvino_tokenizer.xml", "openvino_detokenizer.xml", "config.json", "tokenizer.json"} <= names
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    tokenizer = genai.Tokenizer(str(out))
    text = "The quick brown fox jumps"
    ids = tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist()
    assert tokenizer.decode(ids) == text
