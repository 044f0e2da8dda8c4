"""What a layer in blocks computes is what its blocks say, and its gradients are those of the formula."""

import pytest
import torch

from saap_edge.model.blocks import BLOCK_FORMATS, dequantise, nearest, quantise
from saap_edge.recovery.quantiser import GroupLinear, Start

FORMATS = pytest.mark.parametrize("name", BLOCK_FORMATS)
WIDTHS = pytest.mark.parametrize(("inputs", "group"), [(64, 32), (44, 32), (96, 64)])


def layer(name, inputs=64, group=32, through=False, trained=False):
    torch.manual_seed(0)
    linear = torch.nn.Linear(inputs, 16).requires_grad_(False)
    weight = torch.nn.functional.pad(linear.weight, (0, -inputs % 32))
    format = BLOCK_FORMATS[name]
    made = GroupLinear(linear, Start(weight, *nearest(weight, format, group)), format, group, 4, through)
    with torch.no_grad():
        for parameter in made.parameters():
            if trained and parameter.requires_grad and not parameter.any():
                parameter.normal_(0, 0.1)
    return made, weight


@FORMATS
@WIDTHS
@pytest.mark.parametrize("through", [False, True])
def test_untrained_is_round_to_nearest(name, inputs, group, through):
    made, weight = layer(name, inputs, group, through)
    expected, actual = quantise(weight, BLOCK_FORMATS[name], group), made.blocks()
    assert torch.equal(actual.codes, expected.codes) and torch.equal(actual.scales, expected.scales)
    assert (expected.offsets is None) == (actual.offsets is None)
    assert expected.offsets is None or torch.equal(actual.offsets, expected.offsets)


@FORMATS
@WIDTHS
@pytest.mark.parametrize("through", [False, True])
def test_output_is_exactly_what_the_blocks_say(name, inputs, group, through):
    made, weight = layer(name, inputs, group, through, trained=True)
    blocks = made.blocks()
    assert not torch.equal(dequantise(blocks), dequantise(quantise(weight, BLOCK_FORMATS[name], group)))
    x = torch.randn(2, 3, inputs)
    expected = x @ dequantise(blocks)[:, :inputs].T + made.bias
    torch.testing.assert_close(made(x), expected, atol=0, rtol=0)


@FORMATS
def test_codes_stay_where_only_blocks_are_trained(name):
    made, weight = layer(name, trained=True)
    expected, actual = quantise(weight, BLOCK_FORMATS[name]), made.blocks()
    assert torch.equal(actual.codes, expected.codes)
    if name == "q4_1":
        assert torch.equal(actual.scales, expected.scales) and not torch.equal(actual.offsets, expected.offsets)


def formula(made, through):
    """The values as autograd sees them: rounding, and storing in float16, have the derivative 1."""

    def spread(figures):
        return figures.repeat_interleave(made.group, 1)[:, : made.held.shape[1]]

    blocks, change = made.blocks(), made.block_u @ made.block_v
    moves_minimum = made.format.offset == "minimum" and not through
    scales = made.scales if moves_minimum else made.scales * (1 + change)
    offsets = made.offsets + made.scales * change if moves_minimum else made.offsets
    zero, minimum = (0, offsets) if made.format.offset == "minimum" else (spread(offsets), torch.zeros_like(offsets))
    if not through:
        return spread(scales) * (blocks.codes.float() - zero) + spread(minimum)
    weight = made.held + made.lora_b @ made.lora_a
    steps = (weight - spread(minimum)) / spread(scales)
    return spread(scales) * (steps + (blocks.codes.float() - zero - steps).detach()) + spread(minimum)


@FORMATS
@WIDTHS
@pytest.mark.parametrize("through", [False, True])
def test_gradients_are_those_of_the_formula(name, inputs, group, through):
    made, _ = layer(name, inputs, group, through, trained=True)
    x, weights = torch.randn(2, 5, inputs, requires_grad=True), torch.randn(2, 5, 16)
    adapters = [value for value in made.parameters() if value.requires_grad]
    (made(x) * weights).sum().backward()
    actual = [value.grad.clone() for value in (x, *adapters)]
    output = x @ formula(made, through)[:, :inputs].T + made.bias
    expected = torch.autograd.grad((output * weights).sum(), [x, *adapters])
    for found, wanted in zip(actual, expected, strict=True):
        assert wanted.any()
        torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)


def test_autograd_keeps_nothing_of_the_size_of_the_weight():
    made, _ = layer("q4_0", trained=True)
    kept = []
    x = torch.randn(1, 3, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.numel()) or value, lambda v: v):
        made(x)
    assert kept == [x.numel()]


def test_mixed_precision_multiplies_in_bfloat16():
    made, _ = layer("q4_0", trained=True)
    x = torch.randn(4, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = made(x)
    output.float().sum().backward()
    assert made.block_u.grad.dtype == x.grad.dtype == torch.float32
    exact = x @ dequantise(made.blocks()).T + made.bias
    torch.testing.assert_close(output.float(), exact, atol=0.05, rtol=0.05)
    assert not torch.equal(output.float(), exact)
