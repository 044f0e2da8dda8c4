"""Plans over random scores: always on the grid, always enough removed, always valid for the runtimes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saap_edge.errors import SaapError
from saap_edge.model.spec import LayerShape
from saap_edge.pruning.kept import kept_structures, method_widths, ranked_widths, uniform_widths
from saap_edge.pruning.orders import ORDERS, structure_values
from saap_edge.pruning.plan import check_plan, load_plan, make_plan, save_plan
from saap_edge.pruning.score import KINDS, VIEWS, Scores
from saap_edge.pruning.settings import RankingSettings
from saap_edge.pruning.space import Cost, Space, kv_unit, shape_widths

BANKLESS = [name for name in ORDERS if name not in ("kfac", "obs", "fused", "uniform", "shortgpt")]


def random_scores(seed, layers=4, kv_heads=4, group=2, ffn=256, head_dim=16, hidden=64):
    rng = np.random.default_rng(seed)
    shape = LayerShape(kv_heads * group, kv_heads, ffn)
    values = [
        {
            kind: rng.lognormal(rng.normal(0, 1), 1, (len(VIEWS), 3, count)).astype(np.float32)
            for kind, count in shape_widths(shape).items()
        }
        for _ in range(layers)
    ]
    influence = rng.random(layers).astype(np.float32)
    return Scores(values, [shape] * layers, hidden, head_dim, {}, influence=influence)


def space_of(scores, **options):
    return Space(tuple(scores.shapes), scores.hidden, scores.head_dim, **options)


def values_of(scores, method, ranking=None, **options):
    return structure_values(method, scores, space_of(scores, **options), None, ranking or RankingSettings())


def plan_of(scores, method, ratio, **options):
    space = space_of(scores, **options)
    values = structure_values(method, scores, space, None, RankingSettings())
    return make_plan(method, method, ratio, space, method_widths(method, values, space, ratio)), values


shapes = st.fixed_dictionaries({
    "layers": st.integers(1, 6), "kv_heads": st.integers(1, 6), "group": st.integers(1, 4),
    "ffn": st.integers(64, 400), "head_dim": st.sampled_from([8, 16, 32, 64]),
})  # fmt: skip
options = st.fixed_dictionaries({
    "slots": st.booleans(), "minimum": st.sampled_from([0.0, 0.2]), "trim": st.booleans(),
    "protect": st.sampled_from([(), (0,), (0, -1)]), "grid": st.sampled_from([32, 64]),
})  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), shapes, options, st.sampled_from(BANKLESS), st.floats(0.02, 0.9))
def test_every_plan_is_valid_and_removes_enough(seed, shape, option, method, ratio):
    scores = random_scores(seed, **shape)
    try:
        plan, values = plan_of(scores, method, ratio, **option)
    except SaapError as error:
        assert "at most" in str(error) or "no uniform plan" in str(error)
        return
    check_plan(plan, scores.shapes, scores.head_dim)
    assert plan.achieved_ratio >= ratio - 0.002 - 1e-9
    for layer, widths in zip(kept_structures(values, plan.widths), plan.widths, strict=True):
        assert {kind: len(layer[kind]) for kind in KINDS} == widths
        assert (np.diff(layer["ffn"]) > 0).all()
    for layer in option["protect"]:
        assert plan.layers[layer].after == plan.layers[layer].before
    if not option["slots"]:
        assert all(layer.heads[1] == layer.kv_heads[1] * shape["group"] for layer in plan.layers)
    if option["minimum"]:
        assert all(layer.ffn[1] >= 0.2 * shape["ffn"] - 1 for layer in plan.layers)


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_ranked_plans_stop_one_unit_after_the_goal(seed):
    plan, _ = plan_of(random_scores(seed, layers=6), "saap", 0.4)
    largest = max(2 * 64 * 16 * 3 * kv_unit(2, 16), 3 * 64 * 32)
    assert plan.parameters[0] * (plan.achieved_ratio - 0.4) < largest


def test_depth_removes_whole_sublayers_of_the_least_influential_layer():
    scores = random_scores(0)
    plan, _ = plan_of(scores, "shortgpt", 0.25, depth=True)
    worst = int(np.argmin(scores.influence))
    assert plan.shapes[worst] == LayerShape(0, 0, 0)
    assert sum(shape != scores.shapes[0] for shape in plan.shapes) == 1


def test_uniform_on_a_coarse_grid_stays_within_a_step_of_the_budget():
    """stories260K's shape: truly uniform plans miss by up to 11 %."""
    space = Space((LayerShape(8, 4, 172),) * 5, 64, 8)
    for ratio in (0.2, 0.35, 0.5):
        widths = uniform_widths(space, ratio)
        assert -0.002 <= space.removed(widths) - ratio <= 0.02
        assert max(layer["ffn"] for layer in widths) - min(layer["ffn"] for layer in widths) <= 32
    assert len({str(layer) for layer in uniform_widths(replace(space, uniform_only="because"), 0.35)}) == 1


def test_a_family_of_uniform_plans_only_refuses_others_with_the_reason():
    space = replace(space_of(random_scores(0)), uniform_only="Gemma has no runtime for them")
    with pytest.raises(SaapError, match=r"saap.*Gemma has no runtime.*uniform"):
        method_widths("saap", [], space, 0.3)


def test_llm_pruner_removes_the_least_important_first():
    scores = random_scores(0)
    for layer, values in enumerate(scores.values):
        for kind in values.values():
            kind *= 100.0**layer
    widths = plan_of(scores, "llm-pruner-element", 0.3)[0].shapes
    assert widths[0].ffn < widths[-1].ffn == 256


def test_kept_are_the_best_of_the_layer():
    scores = random_scores(1)
    plan, values = plan_of(scores, "llm-pruner-element", 0.5)
    kept = kept_structures(values, plan.widths)[0]["ffn"]
    mean = scores.view(0, "ffn", "element").mean(0)
    assert mean[kept].min() >= mean[np.setdiff1d(np.arange(256), kept)].max()


@pytest.mark.parametrize("change", [
    {"scale": "log"}, {"sigma": "layer"}, {"fluctuation": 0.7}, {"standardise": "none"}, {"standardise": "kind"},
    {"per_cost": True}, {"fluctuation": 0.7, "log_fluctuation": True},
])  # fmt: skip
def test_every_ranking_option_changes_the_order(change):
    scores = random_scores(3)
    plain, other = values_of(scores, "saap"), values_of(scores, "saap", RankingSettings(**change))
    flat = [np.concatenate([layer[kind] for layer in v for kind in ("attention", "ffn")]) for v in (plain, other)]
    assert (np.argsort(flat[0]) != np.argsort(flat[1])).any()


def test_kv_cache_makes_attention_leave_first_when_latency_counts():
    scores = random_scores(2)
    cached = plan_of(scores, "magnitude", 0.3, cost=Cost("latency", 1.0, 1e5, 0.0))[0]
    assert all(s.ffn == 256 for s in cached.shapes) and sum(s.kv_heads for s in cached.shapes) < 12
    assert any(s.ffn < 256 for s in plan_of(scores, "magnitude", 0.3)[0].shapes)
    assert cached.unit == "latency"


def test_fixed_bytes_are_part_of_the_budget():
    scores = random_scores(2)
    plan, _ = plan_of(scores, "saap", 0.2, cost=Cost("bytes", 0.5625, 0.0, 20_000.0))
    before, after = plan.parameters
    assert 1 - after / before > plan.achieved_ratio >= 0.2 - 0.002


def test_off_grid_width_goes_to_the_grid():
    scores = random_scores(0, ffn=172)
    assert all(s.ffn == 172 or s.ffn % 32 == 0 for s in plan_of(scores, "saap", 0.3)[0].shapes)
    assert all(s.ffn <= 160 for s in plan_of(scores, "saap", 0.1, trim=True)[0].shapes)


def test_impossible_ratio_says_how_much_is_possible():
    scores = random_scores(0)
    with pytest.raises(SaapError, match=r"at most 0\.\d+"):
        ranked_widths(values_of(scores, "saap"), space_of(scores), 0.99)


def test_unknown_orders_and_missing_banks_are_clear_errors():
    with pytest.raises(SaapError, match="known: saap"):
        values_of(random_scores(0), "magic")
    with pytest.raises(SaapError, match="saap-edge bank"):
        values_of(random_scores(0), "kfac")


def edited(**change):
    dense = (LayerShape(8, 4, 256),) * 2
    after = LayerShape(**{"heads": 4, "kv_heads": 2, "ffn": 128} | change)
    plan = make_plan("saap", "saap", 0.3, Space(dense, 64, 16), Space(dense, 64, 16).dense())
    layer = plan.layers[0].model_copy(update={
        "heads": (8, after.heads), "kv_heads": (4, after.kv_heads), "ffn": (256, after.ffn),
    })  # fmt: skip
    return list(dense), plan.model_copy(update={"layers": [layer, plan.layers[1]]})


@pytest.mark.parametrize(("change", "reason"), [
    ({"heads": 5}, "aborts"), ({"heads": 6}, "at most 4 query heads"), ({"ffn": 100}, "use 96 or 128"),
    ({"kv_heads": 8, "heads": 16}, "within"), ({"ffn": 512}, "within"), ({"heads": 0}, "half an attention"),
])  # fmt: skip
def test_a_plan_that_breaks_a_rule_is_refused_with_the_reason(change, reason):
    dense, plan = edited(**change)
    with pytest.raises(SaapError, match=f"layer 0.*({reason})"):
        check_plan(plan, dense, 16)


def test_fewer_query_heads_a_group_are_a_plan_too():
    dense, plan = edited(heads=2)
    check_plan(plan, dense, 16)


def test_narrow_heads_must_fill_a_block():
    dense, plan = edited(heads=6, kv_heads=3)
    with pytest.raises(SaapError, match="multiple of 2 kv heads"):
        check_plan(plan, dense, 8)


def test_plan_file_round_trip_and_errors(tmp_path):
    dense, plan = edited()
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path) == plan
    check_plan(load_plan(tmp_path / "plan.json"), dense, 16)
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"ffn": [256, 128]', '"ffn": [256, "wide"]'))
    with pytest.raises(SaapError, match=r"layers\.0\.ffn\.1"):
        load_plan(tmp_path)
    with pytest.raises(SaapError, match="cannot read"):
        load_plan(tmp_path / "none.json")
    with pytest.raises(SaapError, match="made for"):
        check_plan(plan, [LayerShape(8, 4, 512)] * 2, 16)
    with pytest.raises(SaapError, match="2 layers"):
        check_plan(plan, dense[:1], 16)
