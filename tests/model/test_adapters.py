"""Adapters start at the very weight they are put on, and merge into what they computed."""

import pytest
import torch

from saap_edge.model.adapters import LoraLinear, SppLinear

SHAPES = pytest.mark.parametrize(("outputs", "inputs", "rank"), [(12, 8, 3), (13, 8, 4), (3, 5, 8), (7, 6, 1)])


def spp(outputs=12, inputs=8, rank=3, bias=True, trained=True):
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, outputs, bias).requires_grad_(False)
    linear.weight[::2, 1] = 0
    made = SppLinear(linear, rank)
    if trained:
        made.spp_beta.data.normal_()
    return made


def formula(made):
    """The paper's, row by row: which row of alpha serves a row of the weight is counted, not looked up."""
    weight, alpha, beta = made.linear.weight, made.spp_alpha, made.spp_beta
    outputs, rank = len(weight), len(alpha)
    return torch.stack([weight[i] + 2 * weight[i] * alpha[i * rank // outputs] * beta[i] for i in range(outputs)])


def test_lora_merges_into_what_it_computed():
    torch.manual_seed(0)
    linear = torch.nn.Linear(12, 5).requires_grad_(False)
    lora, x = LoraLinear(linear, 3), torch.randn(4, 12)
    before = linear(x)
    torch.testing.assert_close(lora(x), before)
    lora.lora_b.data.normal_()
    expected = lora(x)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(lora.merge()(x), expected)


@SHAPES
def test_untrained_spp_is_the_layer_it_is_put_on(outputs, inputs, rank):
    made, x = spp(outputs, inputs, rank, trained=False), torch.randn(4, inputs)
    assert torch.equal(made.values(), made.linear.weight) and bool(made.spp_alpha.all())
    torch.testing.assert_close(made(x), made.linear(x))


@SHAPES
def test_spp_multiplies_as_the_paper_says(outputs, inputs, rank):
    made = spp(outputs, inputs, rank)
    torch.testing.assert_close(made.values(), formula(made))
    used = torch.bincount(made.row)
    assert used.max() - used.min() <= 1 and used.sum() == outputs  # rows of alpha serve alike


@pytest.mark.parametrize("bias", [True, False])
def test_spp_merges_into_what_it_computed(bias):
    made, x = spp(bias=bias), torch.randn(2, 3, 8)
    expected, before = made(x), made.linear(x)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(made.merge()(x), expected)


@pytest.mark.parametrize("large", [1.0, 1e4])
def test_zeros_stay_zeros(large):
    made = spp()
    made.spp_beta.data.mul_(large)
    gone = made.linear.weight == 0
    merged = made.merge().weight
    assert gone.sum() == 6 and torch.equal(merged == 0, gone)


@SHAPES
def test_gradients_are_those_of_the_formula(outputs, inputs, rank):
    made = spp(outputs, inputs, rank)
    x, weights = torch.randn(2, 5, inputs, requires_grad=True), torch.randn(2, 5, outputs)
    wanted_of = [x, made.spp_alpha, made.spp_beta]
    (made(x) * weights).sum().backward()
    actual = [value.grad for value in wanted_of]
    output = x @ formula(made).T + made.linear.bias
    expected = torch.autograd.grad((output * weights).sum(), wanted_of)
    for found, wanted in zip(actual, expected, strict=True):
        assert wanted.any()
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_autograd_keeps_nothing_of_the_size_of_the_weight():
    made, x, kept = spp(), torch.randn(1, 3, 8, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.numel()) or value, lambda v: v):
        made(x)
    assert kept == [x.numel()]


def test_mixed_precision_multiplies_in_bfloat16():
    made, x = spp(), torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = made(x)
    output.float().sum().backward()
    assert made.spp_alpha.grad.dtype == made.spp_beta.grad.dtype == x.grad.dtype == torch.float32
    exact = x @ formula(made).T + made.linear.bias
    torch.testing.assert_close(output.float(), exact, atol=0.05, rtol=0.05)
    assert not torch.equal(output.float(), exact)
