"""What is trained is what is coded, and recovery never hands back worse than it got."""

import json

import numpy as np
import pytest
import torch

from saap_edge.evaluate.perplexity import perplexity
from saap_edge.families import family_of
from saap_edge.model.blocks import dequantise_q4, quantise_q4
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.tensors import Codes
from saap_edge.prune.surgery import cut
from saap_edge.recipe import RecoverSettings
from saap_edge.recover.quantiser import GroupLinear
from saap_edge.recover.run import recover
from saap_edge.recover.train import in_blocks
from tests.conftest import tiny_model, write_folder
from tests.prune.test_surgery import random_kept


def trained_like(linear):
    """A GroupLinear with adapters away from zero, as after training."""
    torch.manual_seed(1)
    group = GroupLinear(linear, 4)
    with torch.no_grad():
        group.lora_b.normal_(0, 0.05)
        group.scale_u.normal_(0, 0.05)
    return group


@pytest.mark.parametrize("inputs", [64, 44])
def test_untrained_is_round_to_nearest(inputs):
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, 16)
    codes, scales = GroupLinear(linear, 4).codes()
    padded = np.pad(linear.weight.detach().numpy(), ((0, 0), (0, -inputs % 32)))
    expected = quantise_q4(padded)
    np.testing.assert_array_equal(codes.numpy(), expected[0])
    np.testing.assert_array_equal(scales.numpy(), expected[1])


@pytest.mark.parametrize("inputs", [64, 44])
def test_forward_is_exactly_what_the_codes_say(inputs):
    linear = torch.nn.Linear(inputs, 16)
    group = trained_like(linear)
    codes, scales = group.codes()
    weight = torch.from_numpy(dequantise_q4(codes.numpy(), scales.numpy()))
    torch.testing.assert_close(group.quantised().detach(), weight, atol=1e-6, rtol=1e-6)
    assert (weight[:, inputs:] == 0).all()
    x = torch.randn(3, inputs)
    torch.testing.assert_close(group(x), x @ weight[:, :inputs].T + linear.bias, atol=1e-5, rtol=1e-5)


def test_both_adapters_get_gradients():
    group = trained_like(torch.nn.Linear(64, 16))
    group(torch.randn(5, 64)).square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for n, p in group.named_parameters() if n != "bias")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    dense = tiny_model("llama")
    pruned = cut(dense, random_kept(0))
    folder = write_folder(pruned, tmp_path_factory.mktemp("pruned"))
    torch.manual_seed(0)
    return dense, pruned, folder, torch.randint(0, 320, (32, 32)), torch.randint(0, 320, (8, 32))


def run(setting, out, **settings):
    out.mkdir(exist_ok=True)
    return recover(*setting, RecoverSettings(batch=4, rank=4, **settings), 0, out, lambda step, loss: None)


def test_distillation_improves_and_the_codes_are_what_was_measured(setting, tmp_path):
    # Random text has nothing to learn but the teacher: the held-out loss is judged on the teacher's own samples.
    dense, pruned, folder, windows, _ = setting
    heldout = dense.generate(torch.randint(0, 320, (8, 1)), max_new_tokens=31, do_sample=True, pad_token_id=0)
    heldout = torch.nn.functional.pad(heldout, (0, 32 - heldout.shape[1]))
    result = run((dense, pruned, folder, windows, heldout), tmp_path, tokens=6400, learning_rate=3e-3)
    assert result["after"]["perplexity_q4"] < result["before"]["perplexity_q4"]
    model, codes = load_model(tmp_path / "model"), Codes(tmp_path / "model")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in codes:
                parameter.copy_(torch.from_numpy(codes.dequantise(name))[:, : parameter.shape[1]])
    assert perplexity(model, heldout).value == pytest.approx(result["after"]["perplexity_q4"], rel=1e-4)


def test_a_hostile_learning_rate_gives_back_what_came_in(setting, tmp_path):
    _, pruned, _, _, heldout = setting
    result = run(setting, tmp_path, tokens=1280, learning_rate=100.0)
    assert result["after"]["perplexity_q4"] <= result["before"]["perplexity_q4"]
    assert result["after"]["perplexity_fp"] <= result["before"]["perplexity_fp"] == perplexity(pruned, heldout).value
    json.loads((tmp_path / "recover.json").read_text())


def test_no_tokens_no_codes(setting, tmp_path):
    _, pruned, _, _, heldout = setting
    result = run(setting, tmp_path, tokens=0)
    assert result["tokens"] == 0 and not (tmp_path / "model" / "codes.safetensors").exists()
    assert perplexity(load_model(tmp_path / "model"), heldout).value == pytest.approx(perplexity(pruned, heldout).value)


def test_in_blocks_leaves_the_model_alone(family):
    model = tiny_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student = in_blocks(model, family_of(spec_of(model).family.model_type))
    assert sum(isinstance(module, GroupLinear) for module in student.modules()) == 21
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_lack_a_sublayer_are_tuned_too(tmp_path):
    kept = random_kept(0)
    kept[0]["attention"], kept[2]["ffn"] = np.arange(0), np.arange(0)
    dense = tiny_model("qwen3")
    pruned, windows = cut(dense, kept), torch.randint(0, 320, (8, 32))
    setting = (dense, pruned, write_folder(pruned, tmp_path / "pruned"), windows, windows)
    result = run(setting, tmp_path / "out", tokens=640)
    assert result["after"]["perplexity_q4"] <= result["before"]["perplexity_q4"]
    assert len(in_blocks(pruned, spec_of(pruned).family).model.layers[0].mlp.down_proj.weight) == 64
    assert spec_of(load_model(tmp_path / "out" / "model")).layers == spec_of(pruned).layers
