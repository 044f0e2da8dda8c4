"""The types that llama.cpp makes: weights against gguf-py, answers against torch, importance against its definition."""

import gguf
import numpy as np
import pytest
import torch

from saap_edge.chain.context import open_context
from saap_edge.chain.space import space_of
from saap_edge.errors import ParityError, SaapError
from saap_edge.evaluation.parity import require, shipped_model
from saap_edge.evaluation.verify import verify_folder
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.imatrix import save_importance
from saap_edge.exporting.kquants import held_projections, write_kquant
from saap_edge.exporting.weights import ExportWeights
from saap_edge.exporting.write import export_artifacts
from saap_edge.formats import FORMATS, of_kind
from saap_edge.model.folder import build_pruned, load_model, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.pruning.kept import ranked_widths
from saap_edge.pruning.space import block_grids
from saap_edge.recipe import Recipe
from saap_edge.recovery.imatrix import importance_matrix
from tests.conftest import TEXT, VOCABULARY, randomise_projections, tiny_model, write_folder

KQUANTS = [format.quantisation for format in FORMATS.values() if format.made_from]
LOW = [format.quantisation for format in FORMATS.values() if format.needs_importance]
BITS = {format.quantisation: format.bits for format in of_kind("gguf")}
SHAPE = {"hidden_size": 256, "head_dim": 32, "intermediate_size": 512}
# Rows of 256 and more, and rows that no block of 256 fits: 128 into o_proj, 96 into down_proj; no FFN in the last.
WIDTHS = [LayerShape(8, 4, 512), LayerShape(4, 2, 96), LayerShape(8, 4, 0)]
NARROW = {"blk.1.attn_output.weight", "blk.1.ffn_down.weight", "blk.2.ffn_down.weight"}


def build(folder, family="llama", widths=WIDTHS, seed=1, shape=SHAPE):
    dense = tiny_model(family, **shape | ({"query_pre_attn_scalar": 32} if "gemma" in family else {}))
    model = randomise_projections(build_pruned(dense, widths), seed)
    windows = torch.randint(VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(0))
    write_folder(model, folder)
    return folder, save_importance(importance_matrix(load_model(folder), windows), folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "f16.gguf"
    write_gguf(model[0], path, "f16")
    return path


def test_the_recipe_takes_every_type():
    assert {f"gguf-{name}" for name in KQUANTS} < FORMATS.keys()


def check(folder, imatrix, out, quantisations):
    out.mkdir()
    (out / "gguf").mkdir()
    (out / "gguf" / "model-f16.gguf").write_bytes(b"of an earlier export")
    formats = tuple(f"gguf-{name}" for name in quantisations)
    manifest = export_artifacts(folder, out, formats, "pruned", {}, lambda name: None, imatrix=imatrix)
    require(verify_folder(out, folder, TEXT, 1, lambda: None))
    return {artifact.format.removeprefix("gguf-"): artifact.details for artifact in manifest.artifacts}


def test_answers_as_torch_does_and_names_what_fell_back(model, tmp_path):
    details = check(*model, tmp_path / "out", ("q4_k_m", "iq2_xs", "iq4_nl"))
    assert sorted(path.name for path in (tmp_path / "out/gguf").iterdir()) == [
        "model-f16.gguf", "model-iq2_xs.gguf", "model-iq4_nl.gguf", "model-q4_k_m.gguf",
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gguf", "manifest.json"}
    assert set(details["q4_k_m"]["fallbacks"]) == set(details["iq2_xs"]["fallbacks"]) == NARROW
    assert details["iq4_nl"]["fallbacks"] == {}
    found = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out/gguf/model-q4_k_m.gguf").tensors}
    assert details["q4_k_m"]["fallbacks"] == {name: found[name] for name in NARROW}
    assert found["token_embd.weight"] == "Q8_0" and found["blk.0.ffn_up.weight"] == "Q4_K"
    assert sum(details["q4_k_m"]["bytes_by_type"].values()) == details["q4_k_m"]["projection_bytes"]


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma2"])
def test_other_layouts(family, tmp_path):
    """Biases; q, k and v in one matrix; an architecture of its own, without per-layer widths."""
    widths = [LayerShape(8, 4, 512)] * 3 if family == "gemma2" else [*WIDTHS[:2], LayerShape(8, 4, 256)]
    check(*build(tmp_path / "model", family, widths), tmp_path / "out", ("q3_k_m", "iq2_xxs"))


def test_a_file_of_other_weights_is_no_parity(model, tmp_path):
    other, _ = build(tmp_path / "model", seed=2)
    write_gguf(other, tmp_path / "f16.gguf", "f16")
    write_kquant(other, tmp_path / "f16.gguf", tmp_path / "m.gguf", "q4_k_m")
    with pytest.raises(ParityError, match="is not the model's weight"):
        shipped_model(model[0], "gguf-q4_k_m", artifact=tmp_path / "m.gguf")


@pytest.mark.parametrize("quantisation", ["q4_0", "q2_k", "iq4_nl"])
def test_importance_changes_the_codes_and_lowers_the_weighted_error(quantisation, model, source, tmp_path):
    folder, _ = model
    weights = ExportWeights(folder)
    dice = np.random.default_rng(0)
    matrix = {
        name: np.exp(3 * dice.standard_normal(parameter.shape[1])).astype(np.float32)
        for name, parameter in load_model(folder).named_parameters() if "_proj" in name
    }  # fmt: skip
    held = []
    for imatrix in (None, save_importance(matrix, tmp_path)):
        write_kquant(folder, source, tmp_path / "m.gguf", quantisation, imatrix)
        held.append({name: value.copy() for name, value in held_projections(tmp_path / "m.gguf", weights)})
    plain, weighted = held
    for name, importance in matrix.items():
        if "down_proj" in name:  # with importance the mixtures give some of them other types
            continue
        own = weights.tensor(name).numpy()
        before, after = (float((importance * (own - value[name]) ** 2).sum()) for value in (plain, weighted))
        assert after < 0.95 * before, name


@pytest.mark.parametrize("quantisation", ["q4_0", "iq4_nl"])
@pytest.mark.parametrize("unused", [slice(0, 64), slice(None)], ids=["some", "all"])
def test_columns_that_calibration_never_used_keep_their_weights(quantisation, unused, model, source, tmp_path):
    folder, _ = model
    weights, name = ExportWeights(folder), "model.layers.0.self_attn.q_proj.weight"
    matrix = importance_matrix(load_model(folder), torch.arange(32)[None])
    matrix[name][unused] = 0
    write_kquant(folder, source, tmp_path / "m.gguf", quantisation, save_importance(matrix, tmp_path))
    held = {key: value[:, unused] for key, value in held_projections(tmp_path / "m.gguf", weights) if key == name}[name]
    own = weights.tensor(name).numpy()[:, unused]
    assert np.abs(held - own).mean() < 0.2 * np.abs(own).mean()


def test_a_low_type_without_importance_is_refused_before_anything_is_written(model, source, tmp_path):
    with pytest.raises(SaapError, match="'iq2_m' needs an importance matrix"):
        export_artifacts(model[0], tmp_path, ("gguf-f16", "gguf-iq2_m"), "pruned", {}, lambda name: None)
    for name in LOW:
        with pytest.raises(SaapError, match="needs an importance matrix"):
            write_kquant(model[0], source, tmp_path / "m.gguf", name)
    assert not list(tmp_path.iterdir())


def test_unknown_type(model, source, tmp_path):
    with pytest.raises(SaapError, match="'q9_k' is unknown"):
        write_kquant(model[0], source, tmp_path / "m.gguf", "q9_k")


@pytest.mark.parametrize("damage", ["missing", "width"])
def test_importance_of_another_model_is_refused(damage, model, source, tmp_path):
    matrix = importance_matrix(load_model(model[0]), torch.arange(32)[None])
    name = "model.layers.1.mlp.down_proj.weight"
    matrix[name] = matrix[name][:64]
    if damage == "missing":
        del matrix[name]
    with pytest.raises(SaapError, match=f"{name} (is missing|has 64 channels, not 96)"):
        write_kquant(model[0], source, tmp_path / "m.gguf", "q4_k_m", save_importance(matrix, tmp_path))


def test_a_failing_child_gives_one_line_and_no_file(model, source, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(source.read_bytes()[:-5000])
    with pytest.raises(SaapError, match=r"could not make 'm\.gguf': exit code 1: .*failed to quantize") as error:
        write_kquant(model[0], broken, tmp_path / "m.gguf", "q4_k_m")
    assert "\n" not in str(error.value) and not (tmp_path / "m.gguf").exists()


# The planner's grid

WIDE = {"hidden_size": 256, "head_dim": 32, "num_attention_heads": 16, "num_key_value_heads": 8}


def planned(folder, ffn, **recipe):
    """The space of plans for a dense model of that FFN width, where Q4_K_M is asked for."""
    write_folder(tiny_model("llama", **WIDE, intermediate_size=ffn), folder)
    formats = {"formats": recipe.pop("formats", ("gguf-q4_0", "gguf-q4_k_m"))}
    settings = Recipe(model=str(folder), export=formats, prune=recipe, score={"window": 64})
    context = open_context(settings, None, bar=None)
    return space_of(context.spec, settings, context.target)


@pytest.mark.parametrize(
    ("ffn", "recipe", "grids"),
    [
        (1024, {}, (256, 256)),
        (1024, {"formats": ("gguf-q4_0", "gguf-iq4_nl", "onnx-int4")}, (32, 32)),
        (1024, {"grid": 32}, (32, 32)),  # the recipe's word is the last
        (1152, {}, (256, 32)),  # no FFN of this model fills blocks of 256, the dense one neither
    ],
)
def test_grid_of_the_types_that_are_asked_for(ffn, recipe, grids, tmp_path):
    space = planned(tmp_path, ffn, **recipe)
    assert (space.attention_grid, space.grid) == grids
    assert all(width * 2 * 32 % grids[0] == 0 for width in space.options(0, "attention"))
    assert all(width % grids[1] == 0 for width in space.options(0, "ffn"))


def test_grids_of_other_blocks():
    spec = spec_of(tiny_model("llama", **WIDE, intermediate_size=768))
    assert block_grids(spec, 32, 256) == (256, 256)
    assert block_grids(spec, 96, 256) == (768, 768)


@pytest.mark.parametrize(("grid", "fallen"), [(None, False), (32, True)])
def test_a_plan_on_that_grid_has_no_fallbacks(grid, fallen, tmp_path):
    """Random values, so that layers differ; on the grid of 32 the same order leaves tensors that fall back."""
    space = planned(tmp_path / "dense", 1024, grid=grid)
    dice = np.random.default_rng(0)
    values = [{kind: dice.random(count) for kind, count in layer.items()} for layer in space.dense()]
    shapes = [space.shape(widths) for widths in ranked_widths(values, space, 0.4)]
    assert len(set(shapes)) > 1
    folder, imatrix = build(tmp_path / "model", widths=shapes, shape=WIDE | {"intermediate_size": 1024})
    write_gguf(folder, tmp_path / "f16.gguf", "f16")
    summary = write_kquant(folder, tmp_path / "f16.gguf", tmp_path / "m.gguf", "q4_k_m", imatrix)
    assert bool(summary["fallbacks"]) == fallen


def test_bits_that_the_budget_counts(tmp_path):
    """The budget's figures are of a large model's proportions: on three layers within a tenth."""
    assert set(KQUANTS) < set(BITS)
    widths = [LayerShape(16, 8, 1024)] * 3
    folder, imatrix = build(tmp_path / "model", widths=widths, shape=WIDE | {"intermediate_size": 1024})
    write_gguf(folder, tmp_path / "f16.gguf", "f16")
    for name in ("q6_k", "q4_k_m", "q3_k_m", "iq4_xs", "iq2_xxs"):
        write_kquant(folder, tmp_path / "f16.gguf", tmp_path / "m.gguf", name, imatrix)
        tensors = [t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if "blk." in t.name and "norm" not in t.name]
        bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
        assert bits == pytest.approx(BITS[name], rel=0.1)


def test_a_grid_that_the_budget_does_not_fit_is_named(tmp_path):
    with pytest.raises(SaapError, match=r"cannot be reached.*grid of 256 \(prune\.grid\)"):
        planned(tmp_path, 1024, ratio=0.9)
