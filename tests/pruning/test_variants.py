"""Cuts that are mended side by side, and plans that share layers, against the same done one by one."""

import numpy as np
import pytest
import torch

from saap_edge.model.arithmetic import uses_bfloat16
from saap_edge.model.folder import spec_of
from saap_edge.model.perplexity import perplexity
from saap_edge.pruning.assembly import Assembly
from saap_edge.pruning.bank import build_bank
from saap_edge.pruning.repair import Variant, judge_variants, repair, restored
from saap_edge.pruning.score import score_model
from saap_edge.pruning.search import banked_options
from saap_edge.pruning.space import Space, shape_widths
from saap_edge.pruning.surgery import cut
from tests.conftest import tiny_model


def random_kept(spec, rng):
    """Structures of a random cut: some layers stay whole."""
    kept = []
    for shape in spec.layers:
        dense = shape_widths(shape)
        wanted = {"attention": int(rng.integers(1, dense["attention"] + 1)), "slots": dense["slots"]}
        wanted["ffn"] = int(rng.choice([32, 64, 96, dense["ffn"]]))
        kept.append({kind: np.sort(rng.permutation(dense[kind])[:width]) for kind, width in wanted.items()})
    return kept


@pytest.fixture(scope="module")
def model(exported_family):
    return tiny_model(exported_family)


@pytest.mark.parametrize("seed", range(3))
def test_side_by_side_is_one_by_one(model, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    windows, heldout = torch.randint(0, 320, (12, 24)), torch.randint(0, 320, (9, 24))
    spec = spec_of(model)
    variants = [Variant(random_kept(spec, rng), mix, bias) for mix, bias in ((0.6, False), (None, False), (0.0, True))]
    found = judge_variants(model, variants, windows, heldout)
    assert found[0].value == pytest.approx(perplexity(model, heldout).value, rel=1e-5)
    assert {one.tokens for one in found} == {9 * 23}
    for variant, together in zip(variants, found[1:], strict=True):
        with restored(model):
            if variant.mix is not None:
                repair(model, variant.kept, windows, variant.mix, variant.bias)
            alone = perplexity(cut(model, variant.kept), heldout)
        assert together.value == pytest.approx(alone.value, rel=1e-4)


def test_one_variant_is_stored_and_no_other_trace_is_left(model):
    rng = np.random.default_rng(0)
    windows, heldout = torch.randint(0, 320, (12, 24)), torch.randint(0, 320, (4, 24))
    variants = [Variant(random_kept(spec_of(model), rng)) for _ in range(3)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    judge_variants(model, variants, windows, heldout)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    with restored(model):
        found = judge_variants(model, variants, windows, heldout, store=1)
        assert perplexity(cut(model, variants[1].kept), heldout).value == pytest.approx(found[2].value, rel=1e-4)


def test_bfloat16_mends_as_well(model):
    windows, heldout = torch.randint(0, 320, (12, 24)), torch.randint(0, 320, (4, 24))
    variants = [Variant(random_kept(spec_of(model), np.random.default_rng(1)))]
    precise, rough = (judge_variants(model, variants, windows, heldout, precision=p) for p in ("float32", "bfloat16"))
    for one, other in zip(precise, rough, strict=True):
        assert other.value != one.value and other.value == pytest.approx(one.value, rel=0.02)
    assert uses_bfloat16("auto") in (True, False)


@pytest.mark.parametrize("room", [1 << 28, 1])
def test_a_plan_costs_the_same_whatever_was_run_before(model, room, tmp_path, monkeypatch):
    monkeypatch.setattr("saap_edge.pruning.assembly.STATES", room)
    windows, rng = torch.randint(0, 320, (6, 24)), np.random.default_rng(0)
    spec = spec_of(model)
    space = Space(spec.layers, spec.hidden, spec.head_dim)
    scores = score_model(model, list(windows.split(2)), {})
    bank = build_bank(model, scores, space, windows, tmp_path)
    dense = space.dense()
    plans = [
        [
            layer | {kind: int(rng.choice(banked_options(space, index, kind))) for kind in ("attention", "ffn")}
            if rng.random() < 0.5
            else layer
            for index, layer in enumerate(dense)
        ]
        for _ in range(8)
    ]
    with Assembly(model, bank, space, windows) as assembly:
        together = [assembly.divergence(plan) for plan in (*plans, *plans[::-1])]
        assert assembly.divergence(dense) == pytest.approx(0, abs=1e-5)
        glance = assembly.glance(plans[0])
        assert assembly.rest(plans[0], glance) == pytest.approx(together[0], rel=1e-6)
    assert together[:8] == pytest.approx(together[:7:-1], rel=1e-5, abs=1e-7)
    for plan, value in zip(plans, together, strict=False):
        with Assembly(model, bank, space, windows) as alone:
            assert alone.divergence(plan) == pytest.approx(value, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("mix", [0.4, 1.0])
def test_both_targets_are_one_until_the_first_cut(model, mix):
    """Before it the residual stream is the dense model's: what brings it back is the projection's own output."""
    dense = {kind: np.arange(width) for kind, width in shape_widths(spec_of(model).layers[0]).items()}
    windows = torch.randint(0, 320, (12, 24))
    kept = [dense | {"ffn": np.arange(64)}, *[dense] * (len(spec_of(model).layers) - 1)]
    found = []
    for share in (0.0, mix):
        with restored(model):
            repair(model, kept, windows, share)
            found.append(model.model.layers[0].mlp.down_proj.weight.detach().clone())
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
