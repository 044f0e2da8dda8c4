"""Parity catches what it is there for."""

import numpy as np
import pytest
import torch

from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError, SaapError
from saap_edge.evaluate.parity import TOLERANCE, check_parity, relative_error, require
from saap_edge.evaluate.verify import verify_folder
from saap_edge.export.artifacts import export_artifacts, read_manifest
from saap_edge.model.folder import load_model
from saap_edge.recipe import FORMATS
from tests.conftest import TEXT


@pytest.fixture(scope="module")
def exported(pruned_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("export")
    export_artifacts(pruned_folder, out, FORMATS, "pruned", {"model": "x"}, lambda name: None)
    return out


def test_every_format_passes(exported, pruned_folder):
    parities = verify_folder(exported, pruned_folder, TEXT, 1, lambda: None)
    require(parities)
    assert [parity.format for parity in parities] == list(FORMATS)


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
        parity = check_parity(reference, worker, "gguf-f16", "pruned", list(range(1, 30)), str)
    assert parity.max_error > 2 * max(TOLERANCE.values()) and not parity.passed
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
