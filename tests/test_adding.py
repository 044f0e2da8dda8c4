"""The examples of docs/adding.md are run, and what they add does what it says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.seed_oss import SeedOssConfig, SeedOssForCausalLM

import saap_edge as se
from saap_edge.artifacts import engine_of
from saap_edge.engines.answers import relative_error
from saap_edge.engines.worker import Worker
from saap_edge.exporting.write import write_artifact
from saap_edge.families import FAMILIES
from saap_edge.gating import Budget
from saap_edge.gating.budget import OUTSIDE_METRICS
from saap_edge.model.folder import load_model
from saap_edge.pruning.settings import OUTSIDE_ORDERS, PruneSettings
from saap_edge.registry import Registry, source_file
from tests.conftest import TEXT, tiny_model, tiny_tokenizer, write_folder
from tests.test_cli import SMALL

PAGE = (Path(__file__).parents[1] / "docs" / "adding.md").read_text(encoding="utf-8")


def example(title):
    """The code below a heading of the page."""
    section = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


@pytest.fixture(autouse=True)
def as_before():
    """What an example registers is gone afterwards."""
    registries = (OUTSIDE_ORDERS, OUTSIDE_METRICS, FAMILIES)
    before = [dict(registry._records) for registry in registries]
    yield
    for registry, things in zip(registries, before, strict=True):
        registry._records.clear()
        registry._records.update(things)


@pytest.fixture
def recipe(tmp_path):
    model = write_folder(tiny_model("llama"), tmp_path / "model")
    texts = {}
    for role in ("calibration", "heldout", "test"):
        (tmp_path / f"{role}.txt").write_text(TEXT)
        texts[role] = str(tmp_path / f"{role}.txt")
    return {"model": str(model), "data": texts, **SMALL}


def test_a_pruning_order(recipe, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(example("A pruning order"))
    names = {"recipe": recipe, "out": tmp_path / "out"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    assert "before and after, in the last layer" in capsys.readouterr().out
    plan = names["run"].plan
    assert plan.method == plan.order == "late-first"
    removed = [layer.ffn[0] - layer.ffn[1] + layer.heads[0] - layer.heads[1] for layer in plan.layers]
    assert removed[-1] > 0 and removed[0] == 0
    first = names["run"].folder
    file.write_text(file.read_text().replace("- index", "- 2 * index"))  # its file decides whether it is run again
    exec(compile(file.read_text(), str(file), "exec"), names)
    assert names["run"].folder != first


def test_a_model_family(tmp_path):
    exec(example("A model family"), {})
    config = SeedOssConfig(
        vocab_size=320, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, head_dim=16, max_position_embeddings=128, initializer_range=0.1, bos_token_id=0,
        eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    SeedOssForCausalLM(config).save_pretrained(tmp_path / "m")
    tiny_tokenizer("qwen2").save_pretrained(tmp_path / "m")
    ids = torch.arange(1, 40).view(1, -1)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()(ids).logits[0]
        found = load_model(tmp_path / "m")(ids).logits[0]
    assert torch.allclose(found, expected, atol=1e-5)
    write_artifact(tmp_path / "m", tmp_path / "m.gguf", "gguf-f32")
    with Worker(engine_of("gguf-f32"), tmp_path / "m.gguf", 1, 64) as worker:
        answer = worker.logits(ids[0].tolist(), "prefill")
    assert relative_error(answer, expected.numpy()) < 0.01
    (tmp_path / "m" / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "m" / "config.json").read_text()) | {"attention_out_bias": True})
    )
    with pytest.raises(se.SaapError, match="biases elsewhere"):
        load_model(tmp_path / "m")


def test_a_metric(tmp_path):
    document = {
        "schema": 2, "machine": {"cpu": "x", "cores": 2}, "conditions": {"prompt_tokens": 4, "decode_tokens": 4},
        "artifacts": [{"name": "pruned gguf-f16", "role": "pruned", "format": "gguf-f16", "engine": "llama.cpp",
                       "metrics": {"file_bytes": 400, "parameters": 100}}], "comparisons": [],
    }  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(document))
    names = {"bench": tmp_path / "bench.json"}
    exec(example("A metric of the gate"), names)
    [verdict] = names["verdicts"]["verdicts"]
    assert (verdict["value"], verdict["verdict"]) == (32.0, "pass")
    with pytest.raises(ValueError, match="did you mean 'bits_per_parameter'"):
        Budget.model_validate({"limits": {"bit_per_parameter": {"max": 1}}})


def test_a_timed_metric_needs_an_interval(tmp_path):
    se.register_metric("warmth", "on the board", lambda artifact, evidence: 3.0)
    document = {
        "schema": 2, "machine": {"cpu": "x", "cores": 2}, "conditions": {"prompt_tokens": 4, "decode_tokens": 4},
        "artifacts": [{"name": "a", "role": "pruned", "format": "gguf-f16", "metrics": {}}], "comparisons": [],
    }  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(document))
    [verdict] = se.gate(tmp_path / "bench.json", {"limits": {"warmth": {"max": 4}}}, target="host")["verdicts"]
    assert verdict["verdict"] == "inconclusive"


def test_names_of_our_own_are_not_taken():
    with pytest.raises(se.SaapError, match="'kfac' is saap-edge's own"):
        se.register_order("kfac", lambda *inputs: [])
    with pytest.raises(se.SaapError, match="'file_mib' is saap-edge's own"):
        se.register_metric("file_mib", "counted", lambda artifact, evidence: 1)
    with pytest.raises(se.SaapError, match="'llama' is saap-edge's own"):
        se.register_family(replace(FAMILIES["llama"], title="Mine"))


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="unknown method 'kfak', did you mean 'kfac'"):
        PruneSettings(method="kfak")


def test_what_installed_packages_name(tmp_path, monkeypatch):
    """Entry points are loaded when a name is asked for that is none of ours."""
    (tmp_path / "a_package.py").write_text(
        "from saap_edge.gating import Kind, Metric\n"
        "thing = Metric('mine', Kind.COUNTED, lambda artifact, evidence: 1)\n"
    )
    described = tmp_path / "a_package-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: a-package\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(
        "[saap_edge.tests]\nmine = a_package:thing\n[saap_edge.broken]\nx = a_package:nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry("thing", "saap_edge.tests", taken=["own"])
    assert registry["mine"].figure(None, None) == 1 and list(registry) == ["mine"] and registry.check("own") == "own"
    assert "none" not in registry
    with pytest.raises(se.SaapError, match="the thing 'x' cannot be loaded"):
        Registry("thing", "saap_edge.broken")["y"]
    assert source_file(example) == Path(__file__)
