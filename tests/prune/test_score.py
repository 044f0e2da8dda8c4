"""Scores against gradients taken the plain way."""

import numpy as np
import pytest
import torch

from saap_edge.errors import SaapError
from saap_edge.prune.importance import structure_importance
from saap_edge.prune.score import load_scores, save_scores, score_model
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def scored(family):
    model = tiny_model(family)
    torch.manual_seed(0)
    batches = list(torch.randint(0, 320, (6, 24)).split(2))
    return model, batches, score_model(model, batches, {"window": 24})


def by_hand(model, batch, layer, kind, index):
    """Vector and element importance of one structure, from the formulas, with autograd's own gradients."""
    model.zero_grad()
    model(input_ids=batch, labels=batch).loss.backward()
    block = model.model.layers[layer]
    if kind == "ffn":
        rows = [(block.mlp.gate_proj, slice(index, index + 1)), (block.mlp.up_proj, slice(index, index + 1))]
        column, columns = block.mlp.down_proj, slice(index, index + 1)
    else:
        attention, kv, q = block.self_attn, slice(16 * index, 16 * index + 16), slice(32 * index, 32 * index + 32)
        rows = [(attention.q_proj, q), (attention.k_proj, kv), (attention.v_proj, kv)]
        column, columns = attention.o_proj, q
    slices = [(m.weight[s], m.weight.grad[s]) for m, s in rows]
    slices += [(m.bias[s], m.bias.grad[s]) for m, s in rows if m.bias is not None]
    slices.append((column.weight[:, columns], column.weight.grad[:, columns]))
    vector = sum(float((g * w).sum().abs().detach()) for w, g in slices)
    element = sum(float((g * w - 0.5 * g**2 * w**2).abs().sum().detach()) for w, g in slices)
    model.zero_grad()
    return vector, element


@pytest.mark.parametrize(("kind", "index"), [("ffn", 0), ("ffn", 127), ("attention", 0), ("attention", 3)])
def test_equals_the_formulas(scored, kind, index):
    model, batches, scores = scored
    for number, batch in enumerate(batches):
        expected = by_hand(model, batch, 1, kind, index)
        assert scores.values[1][kind][:, number, index] == pytest.approx(expected, rel=1e-4)


def test_no_gradient_outlives_scoring(scored):
    model, batches, _ = scored
    score_model(model, batches[:2], {})
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_round_trip(scored, tmp_path):
    scores = scored[2]
    save_scores(scores, tmp_path)
    again = load_scores(tmp_path)
    assert again.shapes == scores.shapes and again.calibration == {"window": 24}
    np.testing.assert_array_equal(again.values[2]["ffn"], scores.values[2]["ffn"])


def test_no_scores_is_a_clear_error(tmp_path):
    with pytest.raises(SaapError, match="saap-edge score"):
        load_scores(tmp_path)


def test_broken_weights_are_named(family):
    model = tiny_model(family)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(SaapError, match="batch 0"):
        score_model(model, [torch.ones(1, 8, dtype=torch.long)] * 2, {})


def test_uneven_slices_are_refused():
    with pytest.raises(ValueError):
        structure_importance(torch.ones(5, 2), torch.ones(5, 2), 2, columns=False)
