"""Gates learnt under a budget: they meet it, close on what is useless, and leave the model as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saap_edge.errors import SaapError
from saap_edge.model.folder import spec_of
from saap_edge.pruning.compresso import Gates, compresso_values
from saap_edge.pruning.kept import ranked_widths
from saap_edge.pruning.masks import masked
from saap_edge.pruning.policy import policy_values
from saap_edge.pruning.settings import PruneSettings
from saap_edge.pruning.space import Space, shape_widths
from saap_edge.pruning.surgery import cut
from tests.conftest import tiny_model
from tests.pruning.test_bank import planner_of
from tests.pruning.test_surgery import random_kept

USELESS = [3, 17, 40, 41, 90, 127]  # channels of the second layer


@pytest.fixture(scope="module")
def said():
    """A model of which some channels give nothing, and text that it says itself."""
    model = tiny_model("llama")
    model.model.norm.weight.data.mul_(3)
    model.model.layers[1].mlp.down_proj.weight.data[:, USELESS] *= 1e-6
    torch.manual_seed(0)
    start = torch.randint(1, 320, (16, 1))
    windows = model.generate(start, max_new_tokens=31, do_sample=True, pad_token_id=0)
    return model, torch.nn.functional.pad(windows, (0, 32 - windows.shape[1]))


def space_of(model, **settings):
    spec = spec_of(model)
    return Space(spec.layers, spec.hidden, spec.head_dim, **settings)


def expected_share(space, values):
    """The share of the dense cost that is expected to go, structure by structure."""
    gone = sum(
        space.structure_cost(layer, kind) * (1 - value)
        for layer, kinds in enumerate(values)
        for kind in ("attention", "ffn")
        for value in kinds[kind]
    )
    return gone / space.total(space.dense())


def same(one, other):
    return all(np.array_equal(a[kind], b[kind]) for a, b in zip(one, other, strict=True) for kind in a)


def test_gates_are_open_as_often_as_they_say():
    gates = Gates(5, torch.Generator().manual_seed(0))
    gates.a.data = torch.tensor([-4.0, -1.5, 0.0, 1.5, 4.0])
    draws = torch.stack([gates.draw().detach() for _ in range(20_000)])
    torch.testing.assert_close((draws > 0).float().mean(0), gates.open().detach(), atol=0.01, rtol=0)
    assert ((draws >= 0) & (draws <= 1)).all() and (draws == 1).any() and ((draws > 0) & (draws < 1)).any()


@pytest.mark.parametrize("seed", range(3))
def test_a_masked_model_computes_what_the_cut_one_does(seed):
    model, kept = tiny_model("llama"), random_kept(seed)
    space, ids = space_of(model), torch.randint(0, 320, (2, 16))
    masks = {}
    for layer, kinds in enumerate(kept):
        for kind in ("attention", "ffn"):
            masks[layer, kind] = torch.zeros(shape_widths(space.shapes[layer])[kind])
            masks[layer, kind][kinds[kind]] = 1
    with torch.no_grad(), masked(model, space, masks):
        found = model(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(found, cut(model, kept)(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, model(input_ids=ids).logits)  # and the masks are off again


@pytest.mark.parametrize(("ratio", "precision"), [(0.2, "float32"), (0.5, "float32"), (0.35, "bfloat16")])
def test_the_budget_is_met(said, ratio, precision):
    space = space_of(said[0])
    values = compresso_values(*said[:1], space, said[1], ratio, 200, precision=precision)
    assert expected_share(space, values) == pytest.approx(ratio, abs=0.03)
    assert space.met(ranked_widths(values, space, ratio), ratio)


def test_useless_channels_go_first(said):
    model, windows = said
    values = compresso_values(model, space_of(model), windows, 0.1, 200)[1]["ffn"]
    order = np.argsort(values, kind="stable").tolist()
    assert max(order.index(channel) for channel in USELESS) < 0.25 * len(values)
    assert values[USELESS].mean() < 0.5 * np.delete(values, USELESS).mean()


def test_a_seed_gives_one_order_and_the_model_is_as_it_was(said):
    model, windows = said
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    space, random = space_of(model), torch.random.get_rng_state()
    steps = []
    runs = [
        compresso_values(model, space, windows, 0.3, 12, seed, lambda: steps.append(1), checkpointing=checkpointing)
        for seed, checkpointing in ((0, False), (0, False), (1, False))
    ]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2]) and len(steps) == 36
    assert torch.equal(random, torch.random.get_rng_state())
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters()) and not model.training


def test_checkpointing_changes_nothing_but_memory(said):
    model, windows = said
    one, other = (
        compresso_values(model, space_of(model), windows, 0.3, 12, checkpointing=wanted) for wanted in (False, True)
    )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a["ffn"], b["ffn"], atol=1e-3)


def test_protected_layers_and_query_slots_have_no_gates(said):
    space = space_of(said[0], protect=(0, -1), slots=True)
    values = compresso_values(said[0], space, said[1], 0.1, 40)
    assert all((values[layer][kind] == 1).all() for layer in (0, 2) for kind in ("attention", "ffn"))
    assert all((layer["slots"] == 1).all() for layer in values) and (values[1]["ffn"] < 1).all()


def test_a_model_that_answers_no_numbers_is_refused_and_given_back(said):
    broken = tiny_model("llama")
    broken.model.layers[1].mlp.up_proj.weight.data.mul_(1e38)
    names = [name for name, _ in broken.named_parameters()]
    with pytest.raises(SaapError, match="compresso: the loss under gates is nan: the model or text is broken"):
        compresso_values(broken, space_of(broken), said[1], 0.3, 3)
    assert [name for name, _ in broken.named_parameters()] == names


@pytest.mark.parametrize("method", ["compresso", "policy-gradient"])
def test_models_of_equal_layers_are_refused(method, tmp_path):
    planner = planner_of("gemma2", tmp_path)
    with pytest.raises(SaapError, match=f"method '{method}' makes layers of different widths.*use 'uniform'"):
        planner.plan(method, 0.3)


def test_whole_sublayers_may_go_and_progress_gets_to_its_end(tmp_path):
    planner = planner_of("llama", tmp_path)
    planner = replace(planner, space=replace(planner.space, slots=False, depth=True), mix=None)
    steps = []
    plan, values = planner.plan("compresso", 0.6, steps.append)
    assert planner.space.met(plan.widths, 0.6) and sum(steps) == pytest.approx(planner.work("compresso"))
    assert same(values, planner.plan("compresso", 0.6)[1])


def test_the_policy_learns_on_the_same_masks(said):
    space = space_of(said[0])
    start = [{kind: np.arange(n) for kind, n in shape_widths(shape).items()} for shape in space.shapes]
    values = policy_values(said[0], space, start, said[1], 0.3, 3)
    assert expected_share(space, values) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"query_slots": True}, "gates on kv groups and FFN channels only"), ({"rounds": 2}, "methods that rank")],
)
def test_settings_that_it_cannot_follow_are_refused(settings, why):
    with pytest.raises(ValueError, match=why):
        PruneSettings(method="compresso", **settings)
