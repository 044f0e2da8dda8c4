"""Better first codes: less error where it counts, in the same blocks, and on the inputs that layers really get."""

import copy

import numpy as np
import pytest
import torch

from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import relative_error
from saap_edge.families import family_of
from saap_edge.model.blocks import BLOCK_FORMATS, Blocks, codes_at, dequantise, nearest
from saap_edge.model.folder import spec_of
from saap_edge.pruning.surgery import cut
from saap_edge.recovery.quantiser import GroupLinear
from saap_edge.recovery.start import gptq, in_blocks, weighted
from tests.conftest import tiny_model
from tests.pruning.test_surgery import random_kept

FORMATS = pytest.mark.parametrize("name", BLOCK_FORMATS)


def correlated(columns=96, rows=400):
    """Inputs as layers have them: correlated, some far larger than others."""
    torch.manual_seed(0)
    return torch.randn(rows, columns) @ torch.randn(columns, columns) * torch.rand(columns).exp() / columns**0.5


def values(weight, scales, offsets, format, group):
    codes = codes_at(weight, scales, offsets, format, group).to(torch.uint8)
    stored = {"none": None, "minimum": offsets.half(), "zero_point": offsets.to(torch.uint8)}[format.offset]
    return dequantise(Blocks(format, group, codes, scales.half(), stored))


@FORMATS
@pytest.mark.parametrize("group", [32, 64])
def test_each_start_loses_less_than_the_one_before(name, group):
    format, x, weight = BLOCK_FORMATS[name], correlated(), torch.randn(24, 96)
    power = x.square().mean(0)

    def square_error(found):
        return float((power * (found - weight).square()).sum())

    def output_error(found):
        return float((x @ (found - weight).T).square().sum())

    simple = values(weight, *nearest(weight, format, group), format, group)
    better = values(weight, *weighted(weight, power, format, group), format, group)
    assert square_error(better) < square_error(simple)
    start = gptq(weight, x.T @ x / len(x), format, group)
    best = values(start.weight, start.scales, start.offsets, format, group)
    assert output_error(best) < 0.8 * output_error(better)


def test_gptq_is_the_textbook_loop():
    """Against GPTQ written out, one column at a time with the whole inverse updated (2210.17323, equations 2 and 3)."""
    format, x, weight = BLOCK_FORMATS["q4_0"], correlated(64), torch.randn(8, 64)
    gram = (x.T @ x / len(x)).double()
    start = gptq(weight, gram.float(), format, 64)
    rest = weight.double().clone()
    inverse = torch.linalg.inv(gram + 0.01 * gram.diagonal().mean() * torch.eye(64))
    expected = torch.empty(8, 64, dtype=torch.float64)
    for column in range(64):
        codes = (rest[:, column] / start.scales[:, 0] + 8.5).floor().clamp(0, 15)
        expected[:, column] = start.scales[:, 0] * (codes - 8)
        error = (rest[:, column] - expected[:, column]) / inverse[column, column]
        rest -= error[:, None] * inverse[column]
        inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    actual = values(start.weight, start.scales, start.offsets, format, 64)
    assert ((actual - expected).abs() < 1e-4).float().mean() > 0.98  # a column may round the other way, in float32


def test_inputs_that_never_fire_are_no_trouble():
    x = correlated()
    x[:, 5] = x[:, 90:] = 0
    start = gptq(torch.randn(8, 96), x.T @ x, BLOCK_FORMATS["q4_0"], 32)
    assert torch.isfinite(start.weight).all() and torch.isfinite(start.scales).all()


def test_a_gram_matrix_that_rounding_left_indefinite_is_damped_more():
    """Sums in float32 take what is below 0 with them: GPTQ's own damping is then too little."""
    format, x, weight = BLOCK_FORMATS["q4_0"], correlated(), torch.randn(24, 96)
    gram = x.T @ x / len(x)
    start = gptq(weight, gram - 0.04 * gram.diagonal().mean() * torch.eye(96), format, 32)
    simple = values(weight, *nearest(weight, format, 32), format, 32)
    best = values(start.weight, start.scales, start.offsets, format, 32)
    assert (x @ (best - weight).T).square().sum() < (x @ (simple - weight).T).square().sum()


@pytest.mark.parametrize("value", [-1.0, torch.inf, torch.nan])
def test_what_is_no_gram_matrix_is_refused(value):
    gram = torch.eye(32)
    gram[3, 3] = value
    with pytest.raises(SaapError, match="no Cholesky factor"):
        gptq(torch.randn(8, 32), gram * (8 if value < 0 else 1), BLOCK_FORMATS["q4_0"], 32)


@pytest.mark.parametrize("method", ["weighted", "gptq"])
def test_inputs_too_large_to_be_squared_are_named(method):
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1e20)
    with pytest.raises(SaapError, match=r"^layer 1: what mlp\.down_proj takes on the calibration text is too large"):
        in_blocks(
            model, spec_of(model).family, BLOCK_FORMATS["q4_0"], method=method, windows=torch.randint(0, 320, (4, 16))
        )


@pytest.mark.parametrize("method", ["nearest", "weighted", "gptq"])
def test_every_family_goes_into_blocks(family, method):
    model = tiny_model(family)
    of_layers = [
        name for name, each in model.named_modules() if isinstance(each, torch.nn.Linear) and "layers." in name
    ]
    projections = len(of_layers)
    windows = torch.randint(0, 320, (4, 16))
    with torch.no_grad():
        expected = model(windows).logits
    in_blocks(model, family_of(spec_of(model).family.model_type), BLOCK_FORMATS["q8_0"], method=method, windows=windows)
    assert sum(isinstance(module, GroupLinear) for module in model.modules()) == projections
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained and all("block_" in name for name in trained)
    with torch.no_grad():
        assert relative_error(model(windows).logits.numpy(), expected.numpy()) < 0.05


def test_layers_are_looked_at_as_the_ones_before_leave_them():
    """The last layer's codes are those of inputs that came through the quantised layers before it."""
    dense = tiny_model("llama")
    family, windows, format = spec_of(dense).family, torch.randint(0, 320, (8, 32)), BLOCK_FORMATS["q4_0"]
    model = in_blocks(copy.deepcopy(dense), family, format, method="gptq", windows=windows)
    seen = []
    handle = model.model.layers[2].self_attn.q_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model(windows)
    handle.remove()
    x = seen[0].flatten(0, 1)
    start = gptq(dense.model.layers[2].self_attn.q_proj.weight.detach(), x.T @ x / len(x), format, 32)
    expected = values(start.weight, start.scales, start.offsets, format, 32)
    actual = dequantise(model.model.layers[2].self_attn.q_proj.blocks())
    assert ((actual - expected).abs() < 1e-6).float().mean() > 0.99


def test_layers_may_lack_a_sublayer_and_be_off_the_grid():
    kept = random_kept(0)
    kept[0]["attention"], kept[2]["ffn"], kept[1]["ffn"] = np.arange(0), np.arange(0), np.arange(44)
    model = cut(tiny_model("qwen3"), kept)
    windows = torch.randint(0, 320, (4, 16))
    in_blocks(model, spec_of(model).family, BLOCK_FORMATS["q4_0"], method="gptq", windows=windows)
    assert model.model.layers[1].mlp.down_proj.blocks().codes.shape == (64, 64)
    assert torch.isfinite(model(windows).logits).all()
