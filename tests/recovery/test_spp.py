"""Recovery with multiplied weights (recover.adapter: spp): it helps, keeps zeros, and merges into what it computed."""

import copy

import numpy as np
import pytest
import torch

from saap_edge.model.adapters import SppLinear, put
from saap_edge.model.arithmetic import products
from saap_edge.model.attention import short_attention
from saap_edge.model.blocks import dequantise
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.perplexity import perplexity, text_windows
from saap_edge.model.tensors import Codes
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.pruning.surgery import cut
from saap_edge.recipe import bundled_model, bundled_text
from saap_edge.recovery.heldout import Heldout
from saap_edge.recovery.judged import projections
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.recovery.teacher import DenseTeacher
from saap_edge.recovery.train import Training, train
from tests.conftest import write_folder
from tests.recovery import test_run
from tests.recovery.test_run import run

setting = test_run.setting


@pytest.fixture(scope="module")
def sparse(setting, tmp_path_factory):
    """The student with a third of its weights zero."""
    model = load_model(setting[1])
    for _, weight in projections(model, spec_of(model).family):
        weight[torch.rand_like(weight) < 0.3] = 0
    return setting[0], write_folder(model, tmp_path_factory.mktemp("sparse") / "pruned"), setting[2]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_that_are_multiplied_get_better_and_keep_their_zeros(sparse, tmp_path, precision):
    settings = {
        "adapter": "spp",
        "weights": 1.0,
        "weights_learning_rate": 1e-2,
        "precision": precision,
        "start": "weighted",
    }
    result, folder = run(sparse, tmp_path, **settings)
    assert result["after"]["perplexity_fp"] < 0.99 * result["before"]["perplexity_fp"]
    given, kept = (projections(load_model(path), read_spec(path).family) for path in (sparse[1], folder))
    for (name, before), (_, after) in zip(given, kept, strict=True):
        assert torch.equal(before == 0, after == 0) and not torch.equal(before, after), name
        blocks = dequantise(Codes(folder).get(name))[:, : before.shape[1]]
        assert not blocks[before == 0].any(), name  # unlike gptq's, these codes keep zeros
    model = load_model(folder)
    with products(precision), short_attention(model):
        alone = np.exp(np.mean([perplexity(model, window[None]).nll for window in sparse[2].heldout]))
    assert alone == pytest.approx(result["after"]["perplexity_fp"])


def test_multiplied_weights_that_nothing_trains_are_those_that_came_in(setting, tmp_path):
    result, folder = run(setting, tmp_path, tokens=1024, adapter="spp", weights=0.5, weights_learning_rate=1e-30)
    given, kept = load_model(setting[1]), load_model(folder)
    assert all(torch.equal(a, b) for a, b in zip(given.parameters(), kept.parameters(), strict=True))
    assert result["before"]["perplexity_fp"] == pytest.approx(perplexity(given, setting[2].heldout).value, rel=1e-6)
    assert result["phases"]["weights"]["start"] == pytest.approx(result["before"]["divergence_fp"], abs=1e-7)
    # A loss of training's own, which adapters that change nothing leave as it was.
    assert result["phases"]["weights"]["history"][-1][1] == pytest.approx(result["before"]["divergence_fp"], rel=0.02)


def test_a_killed_run_of_multiplied_weights_goes_on_to_the_same(setting, tmp_path):
    settings = {"adapter": "spp", "weights": 1.0, "weights_learning_rate": 1e-2}
    whole, expected = run(setting, tmp_path / "whole", **settings)
    assert whole["kept"].startswith("tuned weights")

    def kill(phase, step, loss, heldout):
        if (phase, step) == ("weights", 17):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(setting, tmp_path, progress=kill, **settings)
    seen = []
    resumed, folder = run(setting, tmp_path, progress=lambda phase, step, *_: seen.append((phase, step)), **settings)
    assert resumed == whole and ("weights", 17) in seen and ("weights", 15) not in seen
    found, wanted = (load_model(path).state_dict() for path in (folder, expected))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_rounding_that_fills_zeros_is_refused_with_weights_that_keep_them():
    with pytest.raises(ValueError, match="would fill the zeros that adapter: spp keeps: use adapter: lora"):
        RecoverSettings(adapter="spp", through=True)
    with pytest.raises(ValueError, match="adapter"):
        RecoverSettings(adapter="dora")


def test_the_bundled_model_learns_and_merges_into_what_it_learnt(tmp_path):
    """Half of every FFN is gone, without repair. Logits are those of before the merge, and the held-out loss falls."""
    dense, tokenizer = load_model(bundled_model()), load_tokenizer(bundled_model())
    spec = spec_of(dense)
    half = [
        {"attention": np.arange(one.kv_heads), "slots": np.arange(one.heads // one.kv_heads), "ffn": np.arange(384)}
        for one in spec.layers
    ]
    student = cut(dense, half).requires_grad_(False)
    texts = [
        text_windows(tokenizer, bundled_text(name).read_text(encoding="utf-8"), 128, 16)
        for name in ("calibration", "heldout")
    ]
    torch.manual_seed(0)
    names = [(layer, name) for layer in student.model.layers for _, name in spec.family.projections(layer)]
    for layer, name in names:
        put(layer, name, SppLinear(layer.get_submodule(name), 32))
    training = Training(tokens=4096, batch=2, learning_rate=5e-2, distillation=1.0)
    result = train(student, DenseTeacher(dense), texts[0], Heldout(texts[1]), training, tmp_path)
    assert result.best < result.start - 0.02 and result.best_step
    merged = copy.deepcopy(student)
    for layer in merged.model.layers:
        for _, name in spec.family.projections(layer):
            put(layer, name, layer.get_submodule(name).merge())
    with torch.no_grad():
        logits = [model(input_ids=texts[1][:2]).logits for model in (student, merged)]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
    assert perplexity(merged, texts[1]).nll == pytest.approx(result.best, abs=1e-5)
