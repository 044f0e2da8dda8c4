"""Plans over random scores: always on the grid, always enough removed, always valid for the runtimes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saap_edge.errors import SaapError
from saap_edge.model.spec import LayerShape
from saap_edge.prune.plan import check_plan, kv_unit, load_plan, make_plan, save_plan
from saap_edge.prune.score import Scores
from saap_edge.prune.search import METHODS, kept_structures, plan_from_scores


def random_scores(seed, layers=4, kv_heads=4, group=2, ffn=256, head_dim=16, hidden=64):
    rng = np.random.default_rng(seed)
    shape = LayerShape(kv_heads * group, kv_heads, ffn)
    values = [
        {
            kind: rng.lognormal(rng.normal(0, 1), 1, (2, 3, count)).astype(np.float32)
            for kind, count in (("attention", kv_heads), ("ffn", ffn))
        }
        for _ in range(layers)
    ]
    return Scores(values, [shape] * layers, hidden, head_dim, {})


shapes = st.fixed_dictionaries({
    "layers": st.integers(1, 6), "kv_heads": st.integers(1, 6), "group": st.integers(1, 4),
    "ffn": st.integers(64, 400), "head_dim": st.sampled_from([8, 16, 32, 64]),
})  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), shapes, st.sampled_from(METHODS), st.floats(0.02, 0.9))
def test_every_plan_is_valid_and_removes_enough(seed, shape, method, ratio):
    scores = random_scores(seed, **shape)
    try:
        plan = plan_from_scores(scores, method, ratio, 0.5)
    except SaapError as error:
        assert "at most" in str(error)
        return
    check_plan(plan, scores.shapes, scores.head_dim)
    assert plan.achieved_ratio >= ratio - 1e-9
    kept = kept_structures(scores, plan)
    for layer, widths in zip(kept, plan.shapes, strict=True):
        assert (len(layer["attention"]), len(layer["ffn"])) == (widths.kv_heads, widths.ffn)
        assert (np.diff(layer["ffn"]) > 0).all()
    if method == "uniform":
        assert plan.uniform


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_global_plans_stop_one_unit_after_the_goal(seed):
    scores = random_scores(seed, layers=6)
    plan = plan_from_scores(scores, "saap", 0.4, 0.0)
    largest = max(2 * 64 * 16 * 3 * kv_unit(2, 16), 3 * 64 * 32)
    assert plan.parameters[0] * (plan.achieved_ratio - 0.4) < largest


def test_taylor_removes_the_least_important_first():
    scores = random_scores(0)
    for layer, values in enumerate(scores.values):
        for kind in values.values():
            kind *= 100.0**layer
    widths = plan_from_scores(scores, "taylor", 0.3, 0.0).shapes
    assert widths[0].ffn < widths[-1].ffn == 256


def test_kept_are_the_best_of_the_layer():
    scores = random_scores(1)
    plan = plan_from_scores(scores, "taylor", 0.5, 0.0)
    kept = kept_structures(scores, plan)[0]["ffn"]
    mean = scores.values[0]["ffn"][1].mean(0)
    gone = np.setdiff1d(np.arange(256), kept)
    assert mean[kept].min() >= mean[gone].max()


def test_off_grid_width_goes_to_the_grid():
    scores = random_scores(0, ffn=172)
    assert all(layer.ffn == 172 or layer.ffn % 32 == 0 for layer in plan_from_scores(scores, "saap", 0.3, 0.0).shapes)


def test_impossible_ratio_says_how_much_is_possible():
    with pytest.raises(SaapError, match=r"at most 0\.\d+"):
        plan_from_scores(random_scores(0), "saap", 0.99, 0.0)


def edited(**change):
    dense = [LayerShape(8, 4, 256)] * 2
    after = [LayerShape(**{"heads": 4, "kv_heads": 2, "ffn": 128} | change), dense[1]]
    return dense, make_plan("taylor", 0.0, 0.3, dense, after, 64, 16)


@pytest.mark.parametrize(("change", "reason"), [
    ({"heads": 5}, "aborts"), ({"heads": 2}, "need 4 query heads"), ({"ffn": 100}, "use 96 or 128"),
    ({"ffn": 0}, "within 1..4"), ({"kv_heads": 8, "heads": 16}, "within 1..4"), ({"ffn": 512}, "32..256"),
])  # fmt: skip
def test_a_plan_that_breaks_a_rule_is_refused_with_the_reason(change, reason):
    dense, plan = edited(**change)
    with pytest.raises(SaapError, match=f"layer 0.*{reason}"):
        check_plan(plan, dense, 16)


def test_narrow_heads_must_fill_a_block():
    dense = [LayerShape(8, 4, 256)]
    plan = make_plan("taylor", 0.0, 0.3, dense, [LayerShape(6, 3, 256)], 64, 8)
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
