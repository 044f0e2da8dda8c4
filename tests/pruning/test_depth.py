"""Sublayers and blocks that go whole, and every kind of structure in every family: what is cut equals zeroed."""

import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saap_edge.errors import SaapError
from saap_edge.families import FAMILIES
from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.perplexity import perplexity
from saap_edge.model.spec import LayerShape, attends_nowhere, mixed_as
from saap_edge.pruning.plan import check_plan, make_plan
from saap_edge.pruning.repair import repair
from saap_edge.pruning.space import Space, shape_widths
from saap_edge.pruning.surgery import cut, kept_shapes, zero_removed
from tests.conftest import tiny_model, write_folder

IDS = torch.arange(1, 40).view(1, -1)
DENSE = {"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(128)}
NOTHING = np.arange(0)
# What each kind of structure leaves of a layer.
KINDS = {
    "kv group": {"attention": np.array([0, 2])},
    "query slot": {"slots": np.array([1])},
    "channels": {"ffn": np.arange(32, 96)},
    "attention": {"attention": NOTHING},
    "ffn": {"ffn": NOTHING},
    "block": {"attention": NOTHING, "ffn": NOTHING},
}


def assert_cut_equals_zeroed(dense, kept):
    pruned = cut(dense, kept)
    zero_removed(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=3e-5, rtol=1e-4)  # DeltaNets round most
    return pruned


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_removed_equals_zeroed(family, kind):
    dense, kept = tiny_model(family), [dict(DENSE) for _ in range(3)]
    declared = FAMILIES[family]
    if (declared.uniform_only or declared.no_depth) and not all(len(indices) for indices in KINDS[kind].values()):
        with pytest.raises(SaapError, match="all layers alike" if declared.uniform_only else "removed whole"):
            cut(dense, [DENSE | KINDS[kind], DENSE, DENSE])
        return
    if declared.uniform_only:
        kept = [DENSE | KINDS[kind] for _ in range(3)]
    else:
        kept[0] = DENSE | KINDS[kind]
        kept[2] = DENSE | KINDS[kind] | ({"ffn": np.arange(64)} if kind == "attention" else {})
    pruned = assert_cut_equals_zeroed(dense, kept)
    left = [shape for shape in mixed_as(kept_shapes(kept), spec_of(dense).layers) if not shape.gone]
    assert spec_of(pruned).layers == tuple(left)
    stays = any(shape.conv or shape.mamba for shape in left)
    gone = kind == "block" or (kind == "ffn" and FAMILIES[family].ungated)  # whose blocks are one sublayer
    assert len(pruned.model.layers) == len(left) == (1 + stays if gone else 3)


def test_what_is_left_of_deleted_blocks_is_the_plain_class(deep_family, tmp_path):
    dense = tiny_model(deep_family)
    kept = [DENSE, DENSE | KINDS["block"], DENSE]
    if FAMILIES[deep_family].ungated:  # the second block has the attention
        kept = [DENSE, DENSE, DENSE | KINDS["block"]]
    pruned = assert_cut_equals_zeroed(dense, kept)
    loaded = load_model(write_folder(pruned, tmp_path))
    assert type(loaded) is type(dense) and loaded.config.num_hidden_layers == len(loaded.model.layers) == 2
    assert len(getattr(loaded.config, "layer_types", None) or [0, 0]) == 2
    torch.testing.assert_close(loaded(IDS, use_cache=True).logits, dense(IDS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("first", ["attention", "ffn"])
def test_step_by_step_equals_prefill(deep_family, first, tmp_path):
    """Without attention in the first layer too: its place in the cache must not stand empty."""
    pruned = cut(tiny_model(deep_family), [DENSE | KINDS[first], DENSE | KINDS["ffn"], DENSE])
    model = load_model(write_folder(pruned, tmp_path))
    whole, cache, ids = model(IDS).logits, None, IDS[:, :12]
    torch.testing.assert_close(whole, pruned(IDS).logits)
    for position in range(ids.shape[1]):
        step = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        torch.testing.assert_close(step.logits[:, 0], whole[:, position], atol=1e-5, rtol=1e-4)
    assert cache.get_seq_length() == ids.shape[1]
    greedy = model.generate(ids[:, :5], max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    for end in range(5, 11):
        assert int(model(greedy[:, :end]).logits[0, -1, 1:].argmax()) + 1 == int(greedy[0, end])


def test_hidden_states_and_attentions_are_recorded():
    model = cut(tiny_model("qwen3"), [DENSE | KINDS["attention"], DENSE, DENSE | KINDS["ffn"]])
    model.set_attn_implementation("eager")
    outputs = model(IDS, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 4 and len(outputs.attentions) == 2
    torch.testing.assert_close(outputs.logits, cut(
        tiny_model("qwen3"), [DENSE | KINDS["attention"], DENSE, DENSE | KINDS["ffn"]]
    )(IDS).logits, atol=1e-5, rtol=1e-4)  # fmt: skip


def test_repair_around_removed_sublayers(deep_family):
    if FAMILIES[deep_family].ungated:
        pytest.skip("the only attention has to stay")
    dense = tiny_model(deep_family)
    kept = [DENSE, DENSE | KINDS["attention"], DENSE | KINDS["ffn"] | {"attention": np.array([1, 3])}]
    torch.manual_seed(0)
    windows, fresh = torch.randint(0, 320, (48, 32)), torch.randint(0, 320, (8, 32))
    target = dense(fresh).logits
    before = float((cut(dense, kept)(fresh).logits - target).square().mean())
    repair(dense, kept, windows)
    pruned = cut(dense, kept)(fresh).logits
    torch.testing.assert_close(dense(fresh).logits, pruned, atol=1e-4, rtol=1e-3)
    assert float((pruned - target).square().mean()) < before


def test_repair_with_biases_in_some_layers_only():
    dense, kept = tiny_model("llama"), [dict(DENSE), DENSE | KINDS["channels"], DENSE | KINDS["attention"]]
    repair(dense, kept, torch.randint(0, 320, (8, 32)), bias=True)
    pruned = cut(dense, kept)
    torch.testing.assert_close(pruned(IDS).logits, dense(IDS).logits, atol=1e-4, rtol=1e-3)
    assert pruned.config.down_bias and perplexity(pruned, IDS).value > 1


@pytest.mark.parametrize(
    ("bias", "kind", "name"),
    [("attention_bias", "attention", "self_attn.o_proj"), ("mlp_bias", "ffn", "mlp.down_proj")],
)
def test_a_bias_that_would_have_to_stay_is_refused(bias, kind, name):
    dense = tiny_model("llama", **{bias: True})
    with pytest.raises(SaapError, match=f"layer 1: {re.escape(name)} has a bias"):
        cut(dense, [DENSE, DENSE | KINDS[kind], DENSE])
    assert "bias" in spec_of(dense).no_depth and spec_of(tiny_model("llama")).no_depth is None


def test_a_model_cannot_vanish():
    with pytest.raises(SaapError, match="every layer"):
        cut(tiny_model("llama"), [DENSE | KINDS["block"]] * 3)


def space_of(model, **options):
    spec = spec_of(model)
    return Space(spec.layers, spec.hidden, spec.head_dim, uniform_only=spec.family.uniform_only, **options)


def plan_of(model, widths):
    return make_plan("saap", "saap", 0.3, space_of(model), widths)


def check(model, plan):
    spec = spec_of(model)
    reasons = {"uniform_only": spec.family.uniform_only, "no_depth": spec.no_depth}
    check_plan(plan, list(spec.layers), spec.head_dim, **reasons)


@st.composite
def plans(draw, family):
    """(kept, widths) of a random valid plan: the same widths in all layers where the family can have no others."""
    model = MODELS.setdefault(family, tiny_model(family))
    uniform = bool(FAMILIES[family].uniform_only)
    space = space_of(model, slots=True, depth=not spec_of(model).no_depth)

    def layer(index):
        widths = {kind: draw(st.sampled_from(space.options(index, kind))) for kind in DENSE}
        return widths if space.fits(index, widths) else space.dense()[index]

    first = layer(0)
    widths = [first if uniform else layer(index) for index in range(3)]
    after = mixed_as([space.shape(layer) for layer in widths], space.shapes)
    if all(shape.gone for shape in after) or attends_nowhere(after):
        widths[1] = space.dense()[1]
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    kept = [
        {kind: np.sort(rng.choice(len(DENSE[kind]), width, replace=False)) for kind, width in layer.items()}
        for layer in widths
    ]
    return kept, widths


MODELS: dict = {}


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_logits_of_any_valid_plan_are_those_of_the_masked_model(name, data):
    kept, widths = data.draw(plans(name))
    model = MODELS[name]
    check(model, plan_of(model, widths))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        assert_cut_equals_zeroed(model, kept)
    finally:
        model.load_state_dict(before)


ROWS = st.fixed_dictionaries({
    "heads": st.integers(-1, 9), "kv_heads": st.integers(-1, 5), "ffn": st.sampled_from([-32, 0, 16, 32, 48, 96, 160]),
})  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["llama", "gemma2"]), st.lists(ROWS, min_size=3, max_size=3))
def test_any_plan_is_either_refused_with_the_reason_or_can_be_built(name, rows):
    """`check_plan` lets nothing through that cannot be built, and says where and why."""
    model = MODELS.setdefault(name, tiny_model(name))
    plan = plan_of(model, space_of(model).dense())
    layers = [
        layer.model_copy(update={kind: (getattr(layer, kind)[0], value) for kind, value in row.items()})
        for layer, row in zip(plan.layers, rows, strict=True)
    ]
    plan = plan.model_copy(update={"layers": layers})
    try:
        check(model, plan)
    except SaapError as error:
        assert str(error).startswith("plan") and ":" in str(error)
        return
    kept = [{kind: np.arange(width) for kind, width in layer.items()} for layer in plan.widths]
    pruned = cut(model, kept)
    assert spec_of(pruned).layers == tuple(shape for shape in plan.shapes if not shape.gone)


def edited(model, index, **after):
    plan = plan_of(model, space_of(model).dense())
    layer = plan.layers[index]
    update = {kind: (getattr(layer, kind)[0], width) for kind, width in after.items()}
    layers = [*plan.layers[:index], layer.model_copy(update=update), *plan.layers[index + 1 :]]
    return plan.model_copy(update={"layers": layers})


@pytest.mark.parametrize(("name", "after", "reason"), [
    ("llama", {"heads": 0}, "0 query heads with 4 kv heads are half an attention.*set both to 0"),
    ("llama", {"kv_heads": 0}, "8 query heads with 0 kv heads are half"),
    ("gemma2", {"ffn": 0}, "cannot be removed whole, because no architecture.*keep some of both"),
    ("gemma3_text", {"ffn": 64}, "differ from layer 0's, but no architecture.*give all layers the same"),
])  # fmt: skip
def test_plans_a_family_cannot_have_name_layer_rule_and_remedy(name, after, reason):
    model = MODELS.setdefault(name, tiny_model(name))
    with pytest.raises(SaapError, match=f"^plan, layer 1: .*{reason}"):
        check(model, edited(model, 1, **after))


def test_a_plan_without_any_layer_is_refused():
    model = MODELS.setdefault("llama", tiny_model("llama"))
    plan = plan_of(model, [{"attention": 0, "slots": 0, "ffn": 0}] * 3)
    with pytest.raises(SaapError, match="every layer is gone"):
        check(model, plan)
    check(model, edited(model, 1, heads=0, kv_heads=0, ffn=0))


def test_depth_is_refused_where_a_bias_would_stay():
    model = tiny_model("llama", attention_bias=True)
    with pytest.raises(SaapError, match=r"layer 2: .*removed whole, because o_proj or down_proj has a bias"):
        check(model, edited(model, 2, heads=0, kv_heads=0))


def test_widths_of_removed_sublayers():
    assert shape_widths(LayerShape(0, 0, 64)) == {"attention": 0, "slots": 0, "ffn": 64}
