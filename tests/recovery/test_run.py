"""The stage: what is measured is what ships, in every format, and recovery never hands back worse than it got."""

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import shipped_model
from saap_edge.model.blocks import BLOCK_FORMATS, quantise
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.perplexity import Perplexity, perplexity
from saap_edge.model.tensors import Codes
from saap_edge.pruning.surgery import cut
from saap_edge.recovery.heldout import Found
from saap_edge.recovery.run import ADAPTERS, PHASES, Texts, recover, recovery_steps
from saap_edge.recovery.settings import RATES, SMALL, WHOLE, RecoverSettings
from tests.conftest import tiny_model, write_folder
from tests.pruning.test_surgery import random_kept

SHIPPED = {
    "q4_0": "gguf-q4_0",
    "q8_0": "onnx-int8",
    "q4_1": "gguf-q4_1",
    "int4_zp": "onnx-int4",
    "int8_zp": "onnx-int8",
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Folders of teacher and student, and texts that the teacher itself says."""
    root, dense = tmp_path_factory.mktemp("recover"), tiny_model("llama")
    dense.model.norm.weight.data.mul_(3)  # sure of itself: its text is far from noise
    torch.manual_seed(0)
    said = dense.generate(torch.randint(1, 320, (32, 1)), max_new_tokens=31, do_sample=True, pad_token_id=0)
    said = torch.nn.functional.pad(said, (0, 32 - said.shape[1]))
    pruned = cut(dense, random_kept(0))
    return (
        write_folder(dense, root / "dense"),
        write_folder(pruned, root / "pruned"),
        Texts(said[:8], said[:24], said[24:]),
    )


def run(setting, tmp_path, group=32, progress=lambda *news: None, **settings):
    usual = {"batch": 4, "rank": 4, "tokens": 4096, "weights": 0.5, "precision": "float32"}
    settings = RecoverSettings(**usual | settings)
    out = tmp_path / "out"
    return recover(
        *setting, settings, group=group, seed=0, out=out, work=tmp_path / "work", progress=progress
    ), out / "model"


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("group", [32, 64])
def test_what_is_measured_is_what_ships(setting, tmp_path, name, group):
    result, folder = run(setting, tmp_path, group, format=name)
    before, after = result["before"], result["after"]
    for figure in ("perplexity", "divergence"):
        assert after[f"{figure}_blocks"] < before[f"{figure}_blocks"]
        assert after[f"{figure}_fp"] < before[f"{figure}_fp"]
    assert (result["format"], result["group"], result["tokens"]) == (name, group, 4096)
    heldout = setting[2].heldout
    assert perplexity(load_model(folder), heldout).value == pytest.approx(after["perplexity_fp"], rel=1e-6)
    shipped = shipped_model(folder, SHIPPED[name])
    assert perplexity(shipped, heldout).value == pytest.approx(after["perplexity_blocks"], rel=0.005)  # Q8_0 embedding
    assert Codes(folder).format.name == name and Codes(folder).group == group


@pytest.mark.parametrize("through", [False, True])
def test_a_hostile_learning_rate_gives_back_what_came_in(setting, tmp_path, through):
    hostile = {"learning_rate": 1e3, "weights_learning_rate": 1e3, "start": "nearest", "through": through}
    dense, _, texts = setting  # a model that random weights are worse than
    result, folder = run((dense, dense, texts), tmp_path, **hostile)
    assert result["after"] == result["before"] and result["kept"] == "untuned weights, untuned blocks"
    assert not (folder / "codes.safetensors").exists()
    given, kept = load_model(dense), load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), kept.parameters(), strict=True))


@pytest.fixture(scope="module")
def noise(setting):
    """Text of which no model knows anything: weights that blew up and answer alike to all are better on it."""
    torch.manual_seed(0)
    ids = torch.randint(0, 320, (32, 32))
    return *setting[:2], Texts(ids[:8], ids[:24], ids[24:])


DIVERGING = [
    {"weights_learning_rate": 100, "weights": 1.0, "adapter": "lora"},
    {"weights_learning_rate": 1e4, "weights": 1.0, "start": "weighted", "precision": "bfloat16", "adapter": "lora"},
    {"weights_learning_rate": 1e8, "learning_rate": 1e8},
    {"weights_learning_rate": 1e8, "weights": 1.0, "adapter": "spp"},
    {"weights_learning_rate": 1e30, "weights": 1.0, "adapter": "all"},
    {"weights_learning_rate": 1e30, "learning_rate": 1e30, "start": "nearest"},
    {"learning_rate": 1e8, "weights": 0.0, "through": True},
    {"learning_rate": 1e8, "weights": 0.0, "start": "weighted", "precision": "bfloat16"},
]


@pytest.mark.parametrize("settings", DIVERGING, ids=lambda s: " ".join(map(str, s.values())))
def test_training_that_diverges_costs_nothing_but_time(noise, tmp_path, settings):
    """What came in is put back, codes are found on it, and a line says so."""
    result, folder = run(noise, tmp_path, tokens=2048, **settings)
    before, after = result["before"], result["after"]
    assert result["kept"].startswith("untuned weights") and after["perplexity_fp"] == before["perplexity_fp"]
    assert after["divergence_blocks"] <= before["divergence_blocks"]
    given, kept = load_model(noise[1]), load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), kept.parameters(), strict=True))
    shipped = perplexity(shipped_model(folder, "gguf-q4_0"), noise[2].heldout).value
    assert shipped == pytest.approx(after["perplexity_blocks"], rel=0.005)
    rate = "weights_learning_rate" if "weights_learning_rate" in settings else "learning_rate"
    assert f"a lower recover.{rate} than {settings[rate]:g} may help" in result["notes"][0]
    json.dumps(result, allow_nan=False)  # what a strict reader reads too


def test_codes_that_cannot_be_found_for_trained_weights_are_found_for_those_that_came_in(noise, tmp_path, monkeypatch):
    monkeypatch.setattr("saap_edge.recovery.run.FP16_MAX", 1e30)
    result, folder = run(noise, tmp_path, tokens=2048, weights=1.0, weights_learning_rate=1e10)
    assert "takes on the calibration text is too large to be squared" in result["notes"][0]
    untrained, expected = run(noise, tmp_path / "untrained", tokens=0)
    assert untrained["after"].items() <= result["after"].items() and result["kept"] == untrained["kept"]
    found, wanted = (load_file(path / "codes.safetensors") for path in (folder, expected))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_killed_run_that_diverged_goes_on_to_the_same(noise, tmp_path):
    settings = {"tokens": 2048, "weights_learning_rate": 1e4, "learning_rate": 1e-2}

    def kill(phase, step, loss, heldout):
        if (phase, step) == ("blocks", 5):
            raise KeyboardInterrupt

    whole, _ = run(noise, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(noise, tmp_path, progress=kill, **settings)
    (tmp_path / "out" / "model").rename(tmp_path / "gone")
    assert run(noise, tmp_path, **settings)[0] == whole and len(whole["notes"]) >= 1


def test_a_model_that_answers_no_numbers_is_refused(noise, tmp_path):
    broken = tiny_model("llama")
    broken.model.layers[1].mlp.up_proj.weight.data.mul_(1e38)
    folder = write_folder(broken, tmp_path / "broken")
    with pytest.raises(SaapError, match="the loss on held-out text is nan: the model or text is broken"):
        run((noise[0], folder, noise[2]), tmp_path)


def test_tuned_weights_never_drag_worse_blocks_along(setting, tmp_path, monkeypatch):
    """Weights got better and blocks did not: the blocks that ship are those of the weights that came in."""
    from saap_edge.recovery import run as module

    genuine = module.in_blocks

    def spoiled(model, *args, **keywords):
        for layer in genuine(model, *args, **keywords).model.layers:
            layer.mlp.down_proj.scales.mul_(-1)

    monkeypatch.setattr(module, "in_blocks", spoiled)
    result, folder = run(setting, tmp_path, learning_rate=1e-9)
    assert result["kept"] == "tuned weights, untuned blocks"
    assert result["after"]["perplexity_blocks"] == result["before"]["perplexity_blocks"]
    weight = load_model(setting[1]).model.layers[0].self_attn.q_proj.weight.detach()
    codes = Codes(folder).get("model.layers.0.self_attn.q_proj.weight").codes
    assert torch.equal(codes, quantise(weight, BLOCK_FORMATS["q4_0"]).codes)


@pytest.mark.parametrize("method", ["weighted", "gptq"])
def test_codes_are_found_in_float32_whatever_training_is_in(setting, tmp_path, method):
    """From inputs in bfloat16, GPTQ's codes of a real model were worse than plain rounding."""
    for precision in ("float32", "bfloat16"):
        run(setting, tmp_path / precision, tokens=0, start=method, precision=precision)
    one, other = (
        load_file(tmp_path / name / "out" / "model" / "codes.safetensors") for name in ("float32", "bfloat16")
    )
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_no_tokens_only_choose_better_codes(setting, tmp_path):
    result, folder = run(setting, tmp_path, tokens=0)
    assert result["tokens"] == 0 and result["after"]["perplexity_blocks"] <= result["before"]["perplexity_blocks"]
    pruned, kept = load_model(setting[1]), load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(pruned.parameters(), kept.parameters(), strict=True))


def test_a_dense_model_is_tuned_too(setting, tmp_path):
    dense, _, texts = setting
    result, folder = run((dense, dense, texts), tmp_path, tokens=2048, weights=0.0)
    assert result["after"]["perplexity_blocks"] < result["before"]["perplexity_blocks"]
    assert spec_of(load_model(folder)).uniform and result["after"]["perplexity_fp"] == result["before"]["perplexity_fp"]


def test_a_killed_run_goes_on_and_teaches_from_a_file(setting, tmp_path, monkeypatch):
    whole, expected = run(setting, tmp_path / "whole", top=64)

    def kill(phase, step, loss, heldout):
        if (phase, step) == ("blocks", 9):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(setting, tmp_path, top=64, progress=kill)
    (tmp_path / "out" / "model").rename(tmp_path / "gone")  # a stage's own folder does not outlive it, its work does
    seen = []
    monkeypatch.setattr("saap_edge.recovery.teacher.write_cache", None)  # is not written again
    resumed, folder = run(setting, tmp_path, top=64, progress=lambda phase, step, *_: seen.append((phase, step)))
    assert resumed == whole
    assert json.loads((tmp_path / "out" / "recover.json").read_text()) == json.loads(json.dumps(whole))
    assert ("blocks", 9) in seen and ("blocks", 8) not in seen and ("weights", 8) not in seen
    tuned, wanted = (load_file(path / "codes.safetensors") for path in (folder, expected))
    assert tuned.keys() == wanted.keys() and all(torch.equal(tuned[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nothing_of_training_outlives_it(setting, tmp_path, monkeypatch, precision):
    """Neither the student nor Adam's moments: what ships is measured on a model that has the memory for itself."""
    from saap_edge.recovery import run as module

    genuine, students = module.train, []

    def noted(model, *args, **keywords):
        students.append(weakref.ref(model))
        return genuine(model, *args, **keywords)

    def measured(*args):
        assert [student() for student in students] == [None, None]
        return Found(Perplexity(1.0, 1, 2), 1.0)

    monkeypatch.setattr(module, "train", noted)
    monkeypatch.setattr("saap_edge.recovery.judged._rounded", measured)
    gc.disable()  # nothing is left to chance
    try:
        run(setting, tmp_path, tokens=256, weights=0.5, precision=precision)
    finally:
        gc.enable()
    assert students


def test_steps_are_those_that_are_reported(setting, tmp_path):
    settings = {"tokens": 4096, "top": 8, "batch": 4, "weights": 0.5}
    last: dict[str, int] = {}
    run(setting, tmp_path, progress=lambda phase, step, *_: last.update({phase: step}), **settings)
    layers = len(read_spec(setting[1]).layers)
    steps = recovery_steps(RecoverSettings(**settings), setting[2], layers)
    assert tuple(steps) == PHASES and last == {phase: number for phase, (number, _) in steps.items()}


def test_layers_that_lack_a_sublayer_are_tuned_too(setting, tmp_path):
    kept = random_kept(0)
    kept[0]["attention"], kept[2]["ffn"] = np.arange(0), np.arange(0)
    dense = tiny_model("qwen3")
    folders = [write_folder(model, tmp_path / name) for name, model in (("d", dense), ("p", cut(dense, kept)))]
    result, folder = run((*folders, setting[2]), tmp_path, tokens=1024)
    assert result["after"]["divergence_blocks"] <= result["before"]["divergence_blocks"]
    assert spec_of(load_model(folder)).layers == spec_of(load_model(folders[1])).layers


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_weights_of_the_projections_are_trained_and_nothing_else(setting, tmp_path, precision):
    settings = {"adapter": "all", "weights": 1.0, "weights_learning_rate": 1e-3, "precision": precision}
    result, folder = run(setting, tmp_path, **settings)
    assert result["after"]["perplexity_fp"] < result["before"]["perplexity_fp"]
    given, kept = (dict(load_model(path).named_parameters()) for path in (setting[1], folder))
    changed = {name for name, value in given.items() if not torch.equal(value, kept[name])}
    assert changed == {name for name in given if "_proj" in name}
    again, _ = run(setting, tmp_path / "again", **settings)
    assert again == result  # the same seed gives the same weights


def test_every_adapter_has_a_learning_rate_of_its_own():
    rates = {name: RecoverSettings(adapter=name).resolved(1, 64).weights_learning_rate for name in ADAPTERS}
    assert rates == RATES | {"all": pytest.approx(WHOLE / 64, rel=0.1)}
    assert RecoverSettings(adapter="all", weights_learning_rate=0.5).resolved(1, 64).weights_learning_rate == 0.5
    assert [RecoverSettings().resolved(count, 64).adapter for count in (SMALL, SMALL + 1)] == ["all", "lora"]
