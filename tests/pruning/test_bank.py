"""The bank and the search, against brute force on tiny random models."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from saap_edge.errors import SaapError
from saap_edge.model.folder import spec_of
from saap_edge.model.perplexity import perplexity
from saap_edge.pruning.assembly import Assembly
from saap_edge.pruning.bank import Bank, build_bank
from saap_edge.pruning.kept import kept_structures, ranked_widths
from saap_edge.pruning.planner import METHODS, Planner, load_values, save_values
from saap_edge.pruning.removal import RIDGE, removal_costs, removal_inverse
from saap_edge.pruning.repair import repair, restored
from saap_edge.pruning.score import score_model
from saap_edge.pruning.search import evolve, measured_values
from saap_edge.pruning.settings import EFFORTS
from saap_edge.pruning.space import Space
from saap_edge.pruning.surgery import cut
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def planner(exported_family, tmp_path_factory):
    return planner_of(exported_family, tmp_path_factory.mktemp(f"{exported_family}-bank"))


def effort(**changes):
    """A thorough planner's effort with some things changed."""
    return replace(EFFORTS["thorough"], **{"evaluations": 12} | changes)


def planner_of(family, folder):
    model = tiny_model(family)
    torch.manual_seed(0)
    windows = torch.randint(0, 320, (24, 24))
    scores = score_model(model, list(windows[:8].split(2)), {})
    spec = spec_of(model)
    space = Space(spec.layers, spec.hidden, spec.head_dim, slots=True, uniform_only=spec.family.uniform_only)
    bank = build_bank(model, scores, space, windows[:16], folder)
    return Planner(model, scores, bank, space, windows[:16], windows[16:20], windows[20:], effort=effort())


def test_plain_cost_is_the_error_after_the_best_repair():
    """Brute force: least squares without each structure, and the loss left under the curvature."""
    torch.manual_seed(0)
    mixing = torch.eye(12, dtype=torch.float64) + 0.3 * torch.randn(12, 12, dtype=torch.float64)
    inputs = torch.randn(400, 12, dtype=torch.float64) @ mixing
    weight, curvature = torch.randn(5, 12, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    columns = torch.arange(12).reshape(6, 2)
    found = removal_costs(weight, removal_inverse(inputs.T @ inputs / 400), curvature, columns, greedy=False)
    for structure in range(6):
        stay = [c for c in range(12) if c // 2 != structure]
        best = torch.linalg.lstsq(inputs[:, stay], inputs @ weight.T).solution
        error = (inputs @ weight.T - inputs[:, stay] @ best).square().mean(0)
        assert float(found[structure]) == pytest.approx(float(0.5 * (curvature * error).sum()), rel=0.06)  # the ridge


@pytest.mark.parametrize("curvature", [torch.inf, torch.nan])
def test_costs_that_are_no_numbers_are_refused(curvature):
    with pytest.raises(SaapError, match="no finite numbers"):
        removal_costs(torch.ones(3, 4), torch.eye(4).double(), torch.full((3,), curvature), torch.arange(4)[:, None])


def test_activations_too_large_to_be_squared_are_named(tmp_path):
    model = tiny_model("llama")
    windows = torch.randint(0, 320, (8, 24))
    scores = score_model(model, list(windows.split(4)), {})
    spec = spec_of(model)
    model.model.layers[1].mlp.up_proj.weight.data.mul_(1e20)
    kept = [{"attention": np.arange(4), "slots": np.arange(2), "ffn": np.arange(64)}] * 3
    for act in (
        lambda: build_bank(model, scores, Space(spec.layers, spec.hidden, spec.head_dim), windows, tmp_path),
        lambda: repair(model, kept, windows),
    ):
        with pytest.raises(SaapError, match=r"^layer 1: what mlp\.down_proj takes on .* is too large to be squared"):
            act()


def test_greedy_takes_redundancy_into_account():
    """Two equal inputs: either is free to remove, but not both."""
    torch.manual_seed(0)
    inputs = torch.randn(500, 4, dtype=torch.float64)
    inputs[:, 1] = inputs[:, 0] + 1e-3 * torch.randn(500)
    gram = inputs.T @ inputs / 500
    inverse = removal_inverse(gram)
    weight, ones = torch.ones(3, 4, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    columns = torch.arange(4)[:, None]
    plain = removal_costs(weight, inverse, ones, columns, greedy=False)
    greedy = removal_costs(weight, inverse, ones, columns)
    assert plain[:2].max() < 0.1 * plain[2:].min()
    assert sorted(torch.argsort(greedy)[:1].tolist()) in ([0], [1]) and (greedy[:2] > 1).sum() == 1
    # The twin that stays has taken over the other's weight: 3 outputs, half of 2^2 each, times the input's variance.
    assert float(greedy[:2].max()) == pytest.approx(6 * float(gram[0, 0]), rel=0.15)  # chance correlations


def test_banked_weights_are_least_squares(planner):
    model, bank, space = planner.model, planner.bank, planner.space
    dense = space.dense()
    widths = [dense[0] | {"ffn": 64}, *dense[1:]]
    with Assembly(model, bank, space, planner.search) as assembly:
        assert assembly.divergence(dense) == pytest.approx(0, abs=1e-5)
        assembly.divergence(widths)
        banked = model.model.layers[0].mlp.down_proj.weight.detach().clone()
    project, kept = model.model.layers[0].mlp.down_proj, bank.kept(0, widths[0])["ffn"]
    inputs = torch.cat(inputs_of(project, model, planner.calibration)).double()
    ridge = (RIDGE * inputs.square().sum(0).mean()).sqrt() * torch.eye(len(kept), dtype=torch.float64)
    start, wanted = project.weight.detach()[:, kept].double(), inputs @ project.weight.detach().double().T
    rows, targets = torch.cat([inputs[:, kept], ridge]), torch.cat([wanted, ridge @ start.T])
    best = torch.linalg.lstsq(rows, targets).solution.T
    torch.testing.assert_close(banked[:, kept].double(), best, atol=2e-4, rtol=1e-3)
    assert int((banked.abs().sum(0) == 0).sum()) == 64


def inputs_of(module, model, windows):
    """What a projection sees of these windows, [tokens, in] each."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=windows)
    handle.remove()
    return seen


def test_the_assembly_leaves_the_model_as_it_was(planner):
    before = {name: tensor.clone() for name, tensor in planner.model.state_dict().items()}
    with Assembly(planner.model, planner.bank, planner.space, planner.search) as assembly:
        measured_values(assembly.divergence, assembly.space, planner.values("kfac"))
    for name, tensor in planner.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], atol=0, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_search_never_ends_worse_than_it_began_and_keeps_the_budget(planner, seed):
    starts = [ranked_widths(planner.values(name), planner.space, 0.4) for name in ("kfac", "saap")]
    with Assembly(planner.model, planner.bank, planner.space, planner.search) as assembly:
        first = min(assembly.divergence(widths) for widths in starts)
        found = evolve(assembly, starts, 0.4, 15, seed)
        assert assembly.divergence(found[0].widths) == pytest.approx(found[0].divergence, rel=1e-5)
    assert found[0].divergence <= first + 1e-6
    assert [m.divergence for m in found] == sorted(m.divergence for m in found)
    for member in found:
        assert planner.space.met(member.widths, 0.4)
        assert all(planner.space.fits(i, layer) for i, layer in enumerate(member.widths))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_plan_that_cuts(planner, method):
    if method == "shortgpt":
        pytest.skip("removes whole layers: test_plans_with_whole_sublayers_gone")
    plan, values = planner.plan(method, 0.3)
    assert plan.method == method and planner.space.met(plan.widths, 0.3)
    assert {c.method for c in plan.candidates} == {method, "uniform"}
    pruned = cut(planner.model, kept_structures(values, plan.widths))
    assert spec_of(pruned).layers == tuple(plan.shapes)


def test_auto_keeps_the_best_and_its_figure_is_the_repaired_cut(planner):
    plan, values = planner.plan("auto", 0.4)
    best = min(plan.candidates, key=lambda c: c.heldout_perplexity)
    assert best.chosen and best.method == plan.method
    kept = kept_structures(values, plan.widths)
    with restored(planner.model):
        repair(planner.model, kept, planner.calibration, planner.mix)
        pruned = cut(planner.model, kept)
    assert perplexity(pruned, planner.heldout).value == pytest.approx(best.heldout_perplexity, rel=1e-4)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_families_of_uniform_plans_get_the_uniform_plan(family, tmp_path):
    planner = planner_of(family, tmp_path)
    plan, values = planner.plan("auto", 0.3)
    assert plan.method == "uniform" and plan.uniform and planner.space.met(plan.widths, 0.3)
    pruned = cut(planner.model, kept_structures(values, plan.widths))
    assert type(pruned) is type(planner.model) and spec_of(pruned).layers == tuple(plan.shapes)


@pytest.mark.parametrize("method", ["search", "shortgpt", "kfac"])
def test_plans_with_whole_sublayers_gone(planner, method, tmp_path):
    space = replace(planner.space, depth=True)
    bank = build_bank(planner.model, planner.scores, space, planner.calibration, tmp_path)
    plan, values = replace(planner, space=space, bank=bank).plan(method, 0.6)
    assert space.met(plan.widths, 0.6)
    assert method != "shortgpt" or any(shape.gone for shape in plan.shapes)
    pruned = cut(planner.model, kept_structures(values, plan.widths))
    assert spec_of(pruned).layers == tuple(shape for shape in plan.shapes if not shape.gone)


def test_bank_and_order_files(planner, tmp_path):
    again = Bank(planner.bank.folder)
    np.testing.assert_array_equal(again.costs[1]["ffn"], planner.bank.costs[1]["ffn"])
    save_values(planner.values("saap"), tmp_path)
    np.testing.assert_array_equal(load_values(tmp_path)[2]["ffn"], planner.values("saap")[2]["ffn"])
    with pytest.raises(SaapError, match="saap-edge bank"):
        Bank(tmp_path / "none")
    with pytest.raises(SaapError, match="saap-edge plan"):
        load_values(tmp_path / "none")


@pytest.mark.parametrize("content", ["null", "1", "[]", '{"layers": null}', '{"layers": 2}', '{"layers": 4}'])
def test_a_bank_that_was_edited_is_refused(planner, tmp_path, content):
    folder = shutil.copytree(planner.bank.folder, tmp_path / "bank")
    (folder / "bank.json").write_text(content)
    with pytest.raises(SaapError, match=r"holds no readable bank.*saap-edge bank"):
        Bank(folder)


@pytest.mark.parametrize("content", [None, b"", b"half a file"])
def test_weights_that_left_a_bank_are_named(planner, tmp_path, content):
    folder = shutil.copytree(planner.bank.folder, tmp_path / "bank")
    path = folder / "ffn-1.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SaapError, match=r"holds no readable bank.*saap-edge bank"):
        Bank(folder).widths(1, "ffn")


def test_the_progress_bar_gets_to_its_end(planner):
    steps = []
    planner.plan("auto", 0.4, steps.append)
    assert 0.8 * planner.work("auto") <= sum(steps) <= planner.work("auto") + 1e-6


@pytest.mark.parametrize("only", ["ffn", "attention"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "policy-gradient"])
def test_every_method_leaves_the_other_sublayers_dense(planner, method, only):
    """A model of which the FFN alone (or attention alone) is narrowed."""
    space = replace(planner.space, only=only, slots=False)
    if space.uniform_only and method not in ("uniform", "wanda-sp"):
        pytest.skip("all layers alike")
    ratio = 0.15 if only == "ffn" else 0.05
    widths, _ = replace(planner, space=space, effort=effort(evaluations=2, found=1)).widths(method, ratio)
    dense = space.dense()
    others = [kind for kind in dense[0] if (kind == "ffn") != (only == "ffn")]
    assert all(layer[kind] == full[kind] for layer, full in zip(widths, dense, strict=True) for kind in others)
    assert space.met(widths, ratio) and widths != dense


@pytest.mark.parametrize(("clear", "windows"), [(1e9, (20, 20)), (1.0, (16, 16))])
def test_a_plan_that_is_clearly_worse_is_judged_no_more(planner, monkeypatch, clear, windows):
    """Near ones are judged on all held-out text. A clear winner was judged by the first look, as the others were."""
    monkeypatch.setattr("saap_edge.pruning.planner.CLEAR", clear)
    torch.manual_seed(1)
    longer = replace(planner, heldout=torch.randint(0, 320, (20, 24)))
    steps = []
    names = ("uniform",) if planner.space.uniform_only else ("kfac", "uniform")
    plan, _ = longer.choose({name: longer.made(name, 0.3) for name in names}, "auto", 0.3, steps.append)
    found = [one.heldout_windows for one in plan.candidates]
    assert found == ([20] if len(names) == 1 else list(windows))
    chosen = [one for one in plan.candidates if one.chosen]
    assert len(chosen) == 1 and chosen[0].heldout_perplexity == min(one.heldout_perplexity for one in plan.candidates)
    assert sum(steps) <= longer.work("auto") + 1e-6


def test_a_search_that_glances_measures_on_the_first_windows(planner):
    """The corrected ranking is what the first two windows say, and no other window enters it."""
    if planner.space.uniform_only:
        pytest.skip("nothing to search")
    space, values = planner.space, planner.values("kfac")
    with Assembly(planner.model, planner.bank, space, planner.search) as assembly:
        glanced = measured_values(assembly.glance, space, values)
    with Assembly(planner.model, planner.bank, space, planner.search[:2]) as assembly:
        alone = measured_values(assembly.divergence, space, values)
    for one, other in zip(glanced, alone, strict=True):
        for kind in one:
            np.testing.assert_allclose(one[kind], other[kind], rtol=1e-5)


@pytest.mark.parametrize(("glance", "how"), [(True, "glance"), (False, "divergence")])
def test_a_search_measures_on_as_many_windows_as_it_is_told(planner, monkeypatch, glance, how):
    if planner.space.uniform_only:
        pytest.skip("nothing to search")
    asked = []

    def spied(divergence, *others):
        asked.append(divergence.__name__)
        return measured_values(divergence, *others)

    monkeypatch.setattr("saap_edge.pruning.planner.measured_values", spied)
    replace(planner, effort=effort(glance=glance, evaluations=0)).made("search", 0.3)
    assert asked == [how]
