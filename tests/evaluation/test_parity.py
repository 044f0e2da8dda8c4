"""Parity catches what it is there for."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saap_edge import formats
from saap_edge.artifacts import read_manifest
from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError, SaapError
from saap_edge.evaluation.parity import check_parity, relative_error, require, tolerated
from saap_edge.evaluation.verify import verify_folder
from saap_edge.exporting.weights import ExportWeights
from saap_edge.exporting.write import export_artifacts, write_artifact
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.tensors import Codes
from tests.conftest import TEXT, WIDTHS, randomise_projections, tiny_model, write_folder
from tests.exporting.codes_support import tune

TOLERANCE = {name: format.tolerance for name, format in formats.FORMATS.items()}
# Side by side what holds the same weights, unless ONNX has another group: verify keeps one reference at a time.
FORMATS = (
    "gguf-f16",
    "gguf-f32",
    "gguf-bf16",
    "gguf-q8_0",
    "onnx-int8",
    "gguf-q4_0",
    "onnx-int4",
    "gguf-q4_1",
    "onnx-fp32",
    "onnx-fp16",
)


@pytest.fixture(scope="module")
def exported(pruned_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("export")
    export_artifacts(pruned_folder, out, FORMATS, "pruned", {"model": "x"}, lambda name: None, 64)
    return out


def test_every_format_passes(exported, pruned_folder):
    """Groups of 64 in ONNX: `gguf-q4_0` and `onnx-int4` then hold different weights."""
    parities = verify_folder(exported, pruned_folder, TEXT, 1, lambda: None)
    require(parities)
    assert [parity.format for parity in parities] == list(FORMATS)
    assert all(parity.tolerance <= 0.06 for parity in parities)


@pytest.mark.parametrize(
    ("name", "group", "formats"),
    [
        ("q4_0", 128, ("gguf-q4_0", "onnx-int4")), ("q4_1", 64, ("gguf-q4_1", "onnx-int4")),
        ("q8_0", 32, ("gguf-q8_0", "onnx-int8")), ("int4_zp", 128, ("gguf-q4_0", "onnx-int4")),
        ("int8_zp", 64, ("onnx-int8",)),
    ],
)  # fmt: skip
def test_tuned_folders_pass(name, group, formats, tmp_path):
    """Where an artifact holds the tuned blocks, and where it rounds the weights anew."""
    folder = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), tmp_path / "model")
    tune(folder, name, group)
    (tmp_path / "out").mkdir()
    manifest = export_artifacts(folder, tmp_path / "out", formats, "pruned", {}, lambda name: None)
    assert manifest.tuned == name and read_manifest(tmp_path / "out") == manifest
    require(verify_folder(tmp_path / "out", folder, TEXT, 1, lambda: None))


def test_a_changed_code_is_refused(tmp_path):
    """One nibble in a hundred off by one, after the tuned blocks were written."""
    folder = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), tmp_path / "model")
    tuned = tune(folder, "q4_0", 64)
    (tmp_path / "out").mkdir()
    export_artifacts(folder, tmp_path / "out", ("gguf-q4_0", "onnx-int4"), "pruned", {}, lambda name: None)
    for blocks in tuned.values():
        blocks.codes.view(-1)[::100] ^= 1
    Codes.save(tuned, folder)
    with pytest.raises(ParityError, match=r"pruned gguf-q4_0 .*, pruned onnx-int4 "):
        require(verify_folder(tmp_path / "out", folder, TEXT, 1, lambda: None))


def test_a_prediction_beyond_floats_excuses_nothing():
    assert tolerated(float("inf"), "gguf-q4_0") == 0 and tolerated(float("inf"), "gguf-f16") == TOLERANCE["gguf-f16"]
    assert tolerated(0.01, "onnx-int4") == pytest.approx(0.02)


def wrong_rope(model):
    model.model.rotary_emb.inv_freq.mul_(3)


def swapped_heads(model):
    weight = model.model.layers[0].self_attn.o_proj.weight
    weight.copy_(weight.roll(16, dims=1))


def lost_channel_order(model):
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.copy_(weight.flip(0))


@pytest.mark.parametrize("damage", [wrong_rope, swapped_heads, lost_channel_order])
def test_a_model_that_answers_differently_is_refused(exported, pruned_folder, damage):
    reference = load_model(pruned_folder)
    with torch.no_grad():
        damage(reference)
    path = exported / "gguf" / "model-f16.gguf"
    with Worker("llama.cpp", path, 1, 64) as worker:
        artifact = (ExportWeights(pruned_folder), "gguf-f16", 32)
        parity = check_parity(reference, worker, artifact, "pruned", list(range(1, 30)), str)
    assert parity.max_error > 0.12 and not parity.passed
    with pytest.raises(ParityError, match="pruned gguf-f16"):
        require([parity])


def test_a_changed_artifact_is_refused(exported):
    path = exported / "gguf" / "model-q8_0.gguf"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    original, _ = path.read_bytes(), path.write_bytes(data)
    try:
        with pytest.raises(SaapError, match="changed since export"):
            read_manifest(exported)
    finally:
        path.write_bytes(original)
    (exported / "empty").mkdir()
    with pytest.raises(SaapError, match="not a manifest"):
        read_manifest(exported / "empty")


def test_relative_error():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 100))
    assert relative_error(logits + 7.0, logits) < 1e-12, "softmax does not see a constant"
    assert relative_error(logits * np.nan, logits) == np.inf
    assert relative_error(logits[:4], logits) == np.inf
    assert relative_error(1.1 * logits, logits) == pytest.approx(0.1)


@pytest.fixture
def tuned_folder(tmp_path):
    folder = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS)), tmp_path / "model")
    tune(folder, "q4_0", 32)
    return folder


@pytest.mark.parametrize("damage", [
    lambda codes: {name: part for name, part in codes.items() if "layers.1.mlp.up_proj" not in name},
    lambda codes: codes | {"model.layers.7.mlp.up_proj.weight.codes": torch.zeros(32, 32, dtype=torch.uint8)},
    lambda codes: {name: part[:-1].clone() for name, part in codes.items()},
    lambda codes: {name: part.float() for name, part in codes.items()},
])  # fmt: skip
def test_codes_that_are_not_of_the_model_beside_them(damage, tuned_folder):
    path = tuned_folder / "codes.safetensors"
    save_file(damage(load_file(path)), path, {"format": "q4_0", "group": "32"})
    with pytest.raises(SaapError, match=r"codes\.safetensors' is of another model"):
        ExportWeights(tuned_folder)


def test_codes_of_another_model_of_the_same_shape(tuned_folder, tmp_path):
    other = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS), seed=9), tmp_path / "other")
    shutil.copyfile(tuned_folder / "codes.safetensors", other / "codes.safetensors")
    with pytest.raises(SaapError, match=r"holds other values for model.*than the weights beside it"):
        write_artifact(other, tmp_path / "out.gguf", "gguf-q4_0")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(("part", "value"), [("scales", float("nan")), ("codes", 16)])
def test_codes_that_no_block_has(part, value, tuned_folder):
    path, name = tuned_folder / "codes.safetensors", "model.layers.0.mlp.up_proj.weight"
    codes = load_file(path)
    codes[f"{name}.{part}"][0, 0] = value
    save_file(codes, path, {"format": "q4_0", "group": "32"})
    with pytest.raises(SaapError, match=rf"'{name}' holds no blocks of q4_0"):
        Codes(tuned_folder).get(name)
