"""Scores against gradients and activations taken the plain way."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from saap_edge.errors import SaapError
from saap_edge.model import head
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.head import next_token_gradient
from saap_edge.pruning import importance, score
from saap_edge.pruning.importance import per_structure
from saap_edge.pruning.score import VIEWS, load_scores, save_scores, score_model
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
        rows = [(module, slice(index, index + 1)) for module in inputs_of(block.mlp)]
        column, columns = block.mlp.down_proj, slice(index, index + 1)
    else:
        attention, kv, columns = block.self_attn, part(index, 16), part(index, 32)
        q = part(index, attention.q_proj.out_features // 4)  # twice as many with gates
        rows = [(attention.q_proj, q), (attention.k_proj, kv), (attention.v_proj, kv)]
        column = attention.o_proj
    return of_slices(model, rows, column, columns)


def inputs_of(mlp):
    return [getattr(mlp, name) for name in ("gate_proj", "up_proj") if hasattr(mlp, name)]


def part(index, size):
    return slice(size * index, size * index + size)


def of_slices(model, rows, column, columns):
    slices = [(m.weight[s], m.weight.grad[s]) for m, s in rows]
    slices += [(m.bias[s], m.bias.grad[s]) for m, s in rows if m.bias is not None]
    slices.append((column.weight[:, columns], column.weight.grad[:, columns]))
    vector = sum(float((g * w).sum().abs().detach()) for w, g in slices)
    element = sum(float((g * w - 0.5 * g**2 * w**2).abs().sum().detach()) for w, g in slices)
    model.zero_grad()
    return vector, element


@pytest.mark.parametrize(("kind", "index"), [("ffn", 0), ("ffn", 127), ("attention", 0), ("attention", 3)])
def test_equals_the_formulas(scored, kind, index):
    (model, batches, scores), layer = scored, 2 if kind == "ffn" else 1
    for number, batch in enumerate(batches):
        expected = by_hand(model, batch, layer, kind, index)
        assert scores.values[layer][kind][:2, number, index] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("index", [0, 3])
def test_key_heads_of_a_delta_net_are_scored_with_their_value_heads(index):
    model = tiny_model("qwen3_5_text")
    torch.manual_seed(0)
    batches = list(torch.randint(0, 320, (4, 24)).split(2))
    scores, mixer = score_model(model, batches, {}), model.model.layers[0].linear_attn
    keys, values, heads = part(index, 32), part(index, 64), part(index, 2)
    rows = [(mixer.in_proj_q, keys), (mixer.in_proj_k, keys), (mixer.in_proj_v, values), (mixer.in_proj_z, values)]
    rows += [(mixer.in_proj_b, heads), (mixer.in_proj_a, heads)]
    for number, batch in enumerate(batches):
        model.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        slot = sum(
            abs(sum(float((m.weight.grad[s] * m.weight[s]).sum().detach()) for s in map(rows_of, range(1, 8, 2))))
            for m, rows_of in ((m, lambda h, w=m.out_features // 8: part(h, w)) for m, _ in rows[2:])
        )
        out = mixer.out_proj.weight
        slot += abs(sum(float((out.grad[:, part(h, 32)] * out[:, part(h, 32)]).sum().detach()) for h in range(1, 8, 2)))
        expected = of_slices(model, rows, mixer.out_proj, values)
        assert scores.values[0]["attention"][:2, number, index] == pytest.approx(expected, rel=1e-4)
        assert scores.values[0]["slots"][0, number, 1] == pytest.approx(slot, rel=1e-4)


@pytest.mark.parametrize(("kind", "index"), [("ffn", 5), ("attention", 2)])
def test_biases_of_rows_belong_to_their_structure(kind, index):
    model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    torch.manual_seed(0)
    batches = list(torch.randint(0, 320, (4, 24)).split(2))
    scores = score_model(model, batches, {})
    for number, batch in enumerate(batches):
        expected = by_hand(model, batch, 1, kind, index)
        assert scores.values[1][kind][:2, number, index] == pytest.approx(expected, rel=1e-4)


def test_query_slots_are_scored_over_all_kv_groups(scored):
    """Slot 1: the second query head of each of the 4 kv groups."""
    model, batches, scores = scored
    model.zero_grad()
    model(input_ids=batches[0], labels=batches[0]).loss.backward()
    attention = model.model.layers[1].self_attn
    rows, wide = [slice(32 * j + 16, 32 * j + 32) for j in range(4)], attention.q_proj.out_features // 8
    own = [part(2 * j + 1, wide) for j in range(4)]
    query = sum((attention.q_proj.weight.grad[r] * attention.q_proj.weight[r]).sum() for r in own)
    output = sum((attention.o_proj.weight.grad[:, r] * attention.o_proj.weight[:, r]).sum() for r in rows)
    expected = float((query.abs() + output.abs()).detach())
    if attention.q_proj.bias is not None:
        expected += float(sum((attention.q_proj.bias.grad[r] * attention.q_proj.bias[r]).sum() for r in rows).abs())
    model.zero_grad()
    assert scores.values[1]["slots"][0, 0, 1] == pytest.approx(expected, rel=1e-4)


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
    magnitude = module.weight.abs().sum(0) + sum(m.weight.abs().sum(1) for m in inputs_of(model.model.layers[2].mlp))
    np.testing.assert_allclose(values[VIEWS.index("magnitude"), 0], magnitude.detach(), rtol=1e-4)


def test_fisher_is_the_mean_squared_gradient_at_the_output(scored):
    model, batches, scores = scored
    squares = torch.zeros(64)
    for batch in batches:
        outputs = []
        handle = model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda m, i, out: outputs.append(out))  # noqa: B023
        logits = model(input_ids=batch).logits[:, :-1]
        handle.remove()
        total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        gradient = torch.autograd.grad(total, outputs[0])[0]
        squares += gradient.flatten(0, 1).square().sum(0)
    tokens = sum(batch[:, 1:].numel() for batch in batches)
    np.testing.assert_allclose(scores.fisher[1]["attention"], squares / tokens, rtol=1e-3)


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
    np.testing.assert_allclose(scores.fisher[2]["ffn"], again.fisher[2]["ffn"], rtol=1e-3)
    assert not model.training and not model.is_gradient_checkpointing


def test_options_of_the_metrics(scored):
    model, batches, scores = scored
    second = score_model(model, batches, {}, second_order=True)
    running = score_model(model, batches, {}, running_fisher=True)
    plain, other = scores.values[2]["ffn"], second.values[2]["ffn"]
    np.testing.assert_allclose(plain[1], other[1], rtol=1e-4)
    assert not np.allclose(plain[0], other[0], rtol=1e-6)
    np.testing.assert_allclose(running.values[2]["ffn"][1, 0], plain[1, 0], rtol=1e-4)  # the mean of one batch
    assert not np.allclose(running.values[2]["ffn"][1, 2], plain[1, 2], rtol=1e-6)


def test_bfloat16_ranks_alike(scored):
    model, batches, scores = scored
    half = score_model(copy.deepcopy(model).bfloat16(), batches, {})
    a, b = (s.values[2]["ffn"][1].mean(0) for s in (scores, half))
    assert np.corrcoef(a, b)[0, 1] > 0.98


def test_no_gradient_outlives_scoring(scored):
    model, batches, _ = scored
    score_model(model, batches[:2], {})
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_one_gradient_at_a_time(scored, monkeypatch):
    model, batches, _ = scored
    reduce, seen = score.gradient_sums, []

    def watched(*arguments):
        assert all(parameter.grad is None for parameter in model.parameters())  # this one's is taken off already
        seen.append(arguments[1].shape)
        return reduce(*arguments)

    monkeypatch.setattr(score, "gradient_sums", watched)
    score_model(model, batches[:2], {})
    cut = {name for layer in model.model.layers for _, name in spec_of(model).family.projections(layer)}
    parameters = [name for name, _ in model.named_parameters() if name.split(".", 3)[-1].rpartition(".")[0] in cut]
    columns = [name for name in parameters if name.endswith(("o_proj.bias", "down_proj.bias"))]
    assert len(seen) == 2 * (len(parameters) - len(columns))


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


def test_loss_in_pieces_is_the_models_own(family, monkeypatch):
    """Gemma 2 bends its logits, here strongly enough to matter."""
    model = tiny_model(family, **({"final_logit_softcapping": 2.0} if family == "gemma2" else {}))
    batch = torch.randint(0, 320, (3, 24), generator=torch.Generator().manual_seed(3))
    states = []
    handle = model.model.register_forward_hook(lambda module, inputs, output: states.append(output.last_hidden_state))
    expected = model(input_ids=batch, labels=batch).loss
    handle.remove()
    wanted = torch.autograd.grad(expected, states[0])[0]
    monkeypatch.setattr(head, "LOGITS", 320 * 10)  # 69 predicted tokens: 6 pieces of 10 and one of 9
    sizes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    loss, gradient = next_token_gradient(model, states[0].detach(), batch)
    assert loss == pytest.approx(float(expected.detach()), abs=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-8)
    assert len(sizes) == 7 and max(sizes) == 320 * 10


def test_pieces_of_a_weight_change_nothing(monkeypatch):
    """Sums are taken some rows at a time: whatever the number, they are the sums of the whole."""
    torch.manual_seed(0)
    weight, gradient, fisher = torch.randn(30, 8), torch.randn(30, 8), torch.rand(30, 8)
    curved = gradient * weight - 0.5 * fisher * weight**2
    for rows in (1, 7, 30, 100):
        monkeypatch.setattr(importance, "CACHED", rows * 8)
        for columns in (False, True):
            axis = 0 if columns else 1
            vector, element = importance.gradient_sums(weight, gradient, columns, fisher)
            torch.testing.assert_close(vector, (gradient * weight).sum(axis))
            torch.testing.assert_close(element, curved.abs().sum(axis))
            second = importance.gradient_sums(weight, gradient, columns, fisher, second_order=True)[0]
            torch.testing.assert_close(second, curved.sum(axis))
            absolute, square = importance.weight_sums(weight, columns)
            torch.testing.assert_close(absolute, weight.abs().sum(axis))
            torch.testing.assert_close(square, weight.square().sum(axis))


@pytest.mark.parametrize("hooks", [False, True])
def test_a_model_placed_by_accelerate_scores_alike(dense_folder, hooks):
    """With hooks every module is dispatched on its own, as over several GPUs."""
    plain = load_model(dense_folder)
    placed = load_model(dense_folder, device_map={"": "cpu"})
    if hooks:
        parts = ["embed_tokens", "rotary_emb", *(f"layers.{index}" for index in range(3)), "norm"]
        places = {f"model.{part}": "cpu" for part in parts} | {"lm_head": "cpu"}
        placed = dispatch_model(placed, places, force_hooks=True)
        assert hasattr(placed.model.layers[1], "_hf_hook")
    batches = list(torch.randint(0, 320, (4, 24)).split(2))
    scores, others = score_model(plain, batches, {}), score_model(placed, batches, {}, checkpointing=hooks)
    for layer, other in zip(scores.values, others.values, strict=True):
        for kind in layer:
            np.testing.assert_allclose(layer[kind], other[kind], rtol=1e-3, atol=1e-6)


def test_no_device_is_assumed_to_hold_the_whole_model():
    program = Path(__file__).with_name("two_devices.py")
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, cwd=root,
                            env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert result.stdout.strip() == "ok", result.stderr[-2000:]
