"""Scores against gradients and activations taken the plain way."""

import copy

import numpy as np
import pytest
import torch

from saap_edge.errors import SaapError
from saap_edge.prune.importance import per_structure
from saap_edge.prune.score import VIEWS, load_scores, save_scores, score_model
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
        assert scores.values[1][kind][:2, number, index] == pytest.approx(expected, rel=1e-4)


def test_query_slots_are_scored_over_all_kv_groups(scored):
    """Slot 1: the second query head of each of the 4 kv groups."""
    model, batches, scores = scored
    model.zero_grad()
    model(input_ids=batches[0], labels=batches[0]).loss.backward()
    attention = model.model.layers[0].self_attn
    rows = [slice(32 * j + 16, 32 * j + 32) for j in range(4)]
    query = sum((attention.q_proj.weight.grad[r] * attention.q_proj.weight[r]).sum() for r in rows)
    output = sum((attention.o_proj.weight.grad[:, r] * attention.o_proj.weight[:, r]).sum() for r in rows)
    expected = float((query.abs() + output.abs()).detach())
    if attention.q_proj.bias is not None:
        expected += float(sum((attention.q_proj.bias.grad[r] * attention.q_proj.bias[r]).sum() for r in rows).abs())
    model.zero_grad()
    assert scores.values[0]["slots"][0, 0, 1] == pytest.approx(expected, rel=1e-4)


def test_activation_views_equal_their_definitions(scored):
    model, batches, scores = scored
    seen = []
    module = model.model.layers[2].mlp.down_proj
    handle = module.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach().flatten(0, 1)))
    model(input_ids=batches[1])
    handle.remove()
    flap = seen[0].var(0, unbiased=False) * module.weight.detach().square().sum(0)
    wanda = seen[0].square().mean(0).sqrt() * module.weight.detach().abs().sum(0)
    values = scores.values[2]["ffn"]
    np.testing.assert_allclose(values[VIEWS.index("flap"), 1], flap, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(values[VIEWS.index("wanda"), 1], wanda, rtol=1e-4)
    magnitude = module.weight.abs().sum(0) + sum(
        m.weight.abs().sum(1) for m in (model.model.layers[2].mlp.gate_proj, model.model.layers[2].mlp.up_proj)
    )
    np.testing.assert_allclose(values[VIEWS.index("magnitude"), 0], magnitude.detach(), rtol=1e-4)


def test_fisher_is_the_mean_squared_gradient_at_the_output(scored):
    model, batches, scores = scored
    squares = torch.zeros(64)
    for batch in batches:
        outputs = []
        handle = model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda m, i, out: outputs.append(out))  # noqa: B023
        logits = model(input_ids=batch).logits[:, :-1]
        handle.remove()
        total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        gradient = torch.autograd.grad(total, outputs[0])[0]
        squares += gradient.flatten(0, 1).square().sum(0)
    tokens = sum(batch[:, 1:].numel() for batch in batches)
    np.testing.assert_allclose(scores.fisher[0]["attention"], squares / tokens, rtol=1e-3)


def test_influence_is_high_where_a_layer_changes_much(scored):
    model, batches, scores = scored
    hidden = model(input_ids=torch.cat(batches), output_hidden_states=True).hidden_states
    change = 1 - torch.nn.functional.cosine_similarity(hidden[0], hidden[1], dim=-1).mean()
    assert scores.influence[0] == pytest.approx(float(change.detach()), rel=1e-4)


def test_checkpointing_changes_nothing(scored):
    model, batches, scores = scored
    again = score_model(model, batches, {}, checkpointing=True)
    for layer, other in zip(scores.values, again.values, strict=True):
        for kind in layer:
            np.testing.assert_allclose(layer[kind], other[kind], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(scores.fisher[1]["ffn"], again.fisher[1]["ffn"], rtol=1e-3)
    assert not model.training and not model.is_gradient_checkpointing


def test_options_of_the_metrics(scored):
    model, batches, scores = scored
    second = score_model(model, batches, {}, second_order=True)
    running = score_model(model, batches, {}, running_fisher=True)
    plain, other = scores.values[0]["ffn"], second.values[0]["ffn"]
    np.testing.assert_allclose(plain[1], other[1], rtol=1e-4)
    assert not np.allclose(plain[0], other[0], rtol=1e-6)
    np.testing.assert_allclose(running.values[0]["ffn"][1, 0], plain[1, 0], rtol=1e-4)  # the mean of one batch
    assert not np.allclose(running.values[0]["ffn"][1, 2], plain[1, 2], rtol=1e-6)


def test_bfloat16_ranks_alike(scored):
    model, batches, scores = scored
    half = score_model(copy.deepcopy(model).bfloat16(), batches, {})
    a, b = (s.values[1]["ffn"][1].mean(0) for s in (scores, half))
    assert np.corrcoef(a, b)[0, 1] > 0.98


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
        per_structure(torch.ones(5, 2), 2)
