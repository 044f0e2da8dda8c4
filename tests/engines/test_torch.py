"""Plain torch as an engine: answers against transformers directly, its folders verified and measured as all others."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from saap_edge.artifacts import context_of, read_manifest, vocab_size_of
from saap_edge.engines.registry import engine_at
from saap_edge.engines.torch import TorchEngine
from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError, SaapError
from saap_edge.evaluation.parity import require
from saap_edge.evaluation.verify import verify_folder
from saap_edge.exporting.write import export_artifacts
from saap_edge.measuring.folders import measure_beside
from saap_edge.measuring.measure import BenchConditions
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from saap_edge.prediction.cost import artifact_cost
from saap_edge.progress import no_bar
from tests.conftest import TEXT, VOCABULARY, WIDTHS, randomise_projections, raw_model, tiny_model, write_folder

IDS = list(range(1, 41))  # more than a sliding window of 8
GONE = [LayerShape(8, 4, 96), LayerShape(0, 0, 64), LayerShape(2, 1, 0)]  # no attention here, no FFN there


def folder_of(name, tmp_path):
    if name == "pruned":
        return write_folder(randomise_projections(build_pruned(tiny_model("llama"), GONE)), tmp_path / name)
    return write_folder(raw_model(name), tmp_path / name)


@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3", "gemma2", "gemma3_text", "pruned"])
def test_answers_are_those_of_transformers(name, tmp_path):
    folder = folder_of(name, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=name == "pruned")
    with torch.no_grad():
        answer = model.eval()(torch.tensor([IDS]), use_cache=True)
        likeliest = torch.log_softmax(answer.logits[0, :-1], -1).gather(1, torch.tensor(IDS[1:])[:, None])
    engine, expected = TorchEngine(folder, 1, 64), answer.logits[0].numpy()
    close = {"atol": 1e-5 * np.abs(expected).max(), "rtol": 0}
    np.testing.assert_allclose(engine.forward(IDS, all_logits=True), expected, **close)
    engine.truncate(20)
    np.testing.assert_allclose(engine.forward(IDS[20:30])[0], expected[29], **close)
    for at in range(30, 40):
        np.testing.assert_allclose(engine.forward([IDS[at]])[0], expected[at], **close)
    assert engine.vocab_size == VOCABULARY and context_of(folder) == 128 and vocab_size_of(folder) == VOCABULARY
    with Worker("torch", folder, 1, 64) as worker:
        for mode in ("prefill", "steps", "mixed"):
            np.testing.assert_allclose(worker.logits(IDS, mode), expected, **close)
        assert worker.nll([IDS])[0] == pytest.approx(-float(likeliest.sum()), rel=1e-5)
        loaded, memory = worker.loaded, worker.memory()
    heads = {"pruned": 4 + 1}.get(name, 12)  # kv heads of 16, of all layers
    assert loaded["kv_bytes_per_token"] == 2 * 4 * 16 * heads and memory["peak"] > 2**26 and loaded["seconds"] < 5


def test_what_does_not_fit_is_refused(tmp_path):
    folder = folder_of("llama", tmp_path)
    engine = TorchEngine(folder, 1, 8)
    for tokens in ([], [VOCABULARY], [-1], range(9)):
        with pytest.raises(ValueError, match=r"token ids must be|do not fit"):
            engine.forward(list(tokens))
    with pytest.raises(ValueError, match="cannot keep 1 of 0 tokens"):
        engine.truncate(1)
    with pytest.raises(SaapError, match="a context of 129 tokens is outside the model's 1 to 128"):
        TorchEngine(folder, 1, 129)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SaapError, match="transformers cannot load it"):
        TorchEngine(folder, 1, 8)


def test_code_of_others_is_not_run(tmp_path):
    folder = folder_of("pruned", tmp_path)
    with (folder / "modeling_saap_edge.py").open("a") as file:
        file.write("raise SystemExit('run')\n")
    with pytest.raises(SaapError, match="carries code of its own"):
        TorchEngine(folder, 1, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = randomise_projections(build_pruned(tiny_model("llama"), WIDTHS))
    return write_folder(model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("torch")
    export_artifacts(folder, out, ("torch-f32", "gguf-f16"), "pruned", {}, lambda name: None)
    return out


def test_an_export_is_verified(exported, folder):
    parities = verify_folder(exported, folder, TEXT, 1, lambda: None)
    require(parities)
    assert {parity.format for parity in parities} == {"torch-f32", "gguf-f16"}
    artifact = next(artifact for artifact in read_manifest(exported).artifacts if artifact.format == "torch-f32")
    cost = artifact_cost(exported, "torch-f32")
    assert engine_at(exported / artifact.path).name == "torch"
    assert (cost.projection_bytes, cost.file_bytes) == (artifact.projection_bytes, artifact.bytes)
    config = json.loads((exported / artifact.path / "config.json").read_text())
    assert cost.kv_bytes_per_token == sum(2 * 4 * 16 * kv_heads for _, kv_heads, _ in config["layer_widths"])


def test_another_models_weights_are_refused(exported, folder, tmp_path):
    other = write_folder(randomise_projections(load_model(folder), 5), tmp_path / "other")
    shutil.copytree(exported, tmp_path / "out")
    with pytest.raises(ParityError, match="pruned torch-f32"):
        require(verify_folder(tmp_path / "out", other, TEXT, 1, lambda: None))


def test_it_is_measured_beside_others_by_turns(exported, monkeypatch):
    monkeypatch.setattr("saap_edge.measuring.measure.LOADS", 2)  # torch takes seconds to start
    windows = [list(range(1, 33))]
    conditions = BenchConditions(1, 8, 4, 3, windows)
    document = measure_beside((exported, "gguf-f16"), (exported, "torch-f32"), conditions, no_bar)
    ours, rival = (next(e for e in document["artifacts"] if e["role"] == role) for role in ("baseline", "candidate"))
    assert (ours["engine"], rival["engine"]) == ("llama.cpp", "torch")
    assert rival["metrics"]["perplexity"] == pytest.approx(ours["metrics"]["perplexity"], rel=0.01)
    assert rival["metrics"]["decode_tok_s"]["median"] > 0 and len(document["comparisons"]) == 1
    assert rival["metrics"]["peak_rss_mib"]["median"] > 100, "torch itself counts"
