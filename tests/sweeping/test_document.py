"""sweep.yaml: what it means, and that all of its faults are told at once with file and line."""

import itertools

import pytest
import yaml

from saap_edge.errors import SaapError
from saap_edge.recipe import Recipe
from saap_edge.sweeping.combinations import names_of, product
from saap_edge.sweeping.document import load_sweep
from tests.sweeping.support import write_sweep


def loaded(folder, document):
    entries, notes = load_sweep(write_sweep(folder, document))
    return {entry.name: entry.recipe for entry in entries}, notes


def test_a_product_of_axes_over_a_base(tmp_path):
    ratios, targets = [0.2, 0.4], ["rpi5", "host"]
    found, notes = loaded(
        tmp_path,
        {"base": {"seed": 7, "prune": {"effort": "quick"}}, "axes": {"prune.ratio": ratios, "target": targets}},
    )
    wanted = [
        Recipe.model_validate({"seed": 7, "prune": {"effort": "quick", "ratio": ratio}, "target": target})
        for ratio, target in itertools.product(ratios, targets)
    ]
    assert list(found.values()) == wanted and notes == []
    assert list(found)[:2] == ["ratio=0.2,target=rpi5", "ratio=0.2,target=host"]


def test_a_base_in_a_file_of_its_own(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 3\n")
    found, _ = loaded(tmp_path, {"base": "base.yaml", "axes": {"prune.ratio": [0.2]}})
    assert [(name, recipe.seed) for name, recipe in found.items()] == [("base", 3)]
    (tmp_path / "base.yaml").write_text("# nothing\nprune:\n  ratio: 5\n")
    with pytest.raises(SaapError, match=r"base\.yaml:3: prune\.ratio: Input should be less than 1$"):
        loaded(tmp_path, {"base": "base.yaml", "axes": {"seed": [1, 2]}})
    with pytest.raises(SaapError, match="cannot read '"):
        loaded(tmp_path, {"base": "nowhere.yaml"})


def test_recipes_and_excluded_combinations(tmp_path):
    found, notes = loaded(tmp_path, {
        "axes": {"seed": [1, 2, 3], "target": ["rpi5", "host"]},
        "exclude": [{"seed": [1, 2], "target": "host"}, {"seed": 3}],
        "recipes": [{"seed": 9, "name": "mine"}, {"prune": {"ratio": 0.1}, "seed": 1, "target": "rpi5"}],
    })  # fmt: skip
    assert [(name, recipe.seed) for name, recipe in found.items()] == [
        ("seed=1,target=rpi5", 1), ("seed=2,target=rpi5", 2), ("mine", 9), ("prune=ratio-0.1,seed=1,target=rpi5", 1),
    ]  # fmt: skip
    assert notes == []


def test_only_recipes_without_axes(tmp_path):
    found, _ = loaded(tmp_path, {"base": {"seed": 4}, "recipes": [{"target": "rpi5"}]})
    assert list(found) == ["base"] and found["base"].target == "rpi5"


def test_the_same_recipe_is_run_once_with_a_word(tmp_path):
    found, notes = loaded(tmp_path, {"axes": {"seed": [1, 2]}, "recipes": [{"seed": 2, "name": "again"}]})
    assert list(found) == ["seed=1", "seed=2"]
    assert notes == ["recipe again is the same as seed=2: it is run once, under that name"]


FAULTY = """base:
  seed: x
  score: {samples: 16}
axes:
  prune.ratio: [0.3, 7]
  prune.ratoi:
    - 1
  score.batches: [2,
    8]
  target: []
recipes:
  - {export.formats: [gguf-q4_0, gguf-q5], name: a/b}
exclude:
  - {seed: 1}
"""


def test_all_faults_at_once(tmp_path):
    (tmp_path / "s.yaml").write_text(FAULTY.replace("  target: []\n", ""))
    with pytest.raises(SaapError) as error:
        load_sweep(tmp_path / "s.yaml")
    faults = str(error.value).replace(f"{tmp_path}/", "").split("; ")
    assert "\n" not in str(error.value) and len(set(faults)) == len(faults)
    starts = sorted(fault.split(": ")[0] + ": " + fault.split(": ")[1] for fault in faults)
    assert starts == [
        "s.yaml:11: export.formats.1", "s.yaml:11: recipes.0.name", "s.yaml:13: exclude.0", "s.yaml:2: seed",
        "s.yaml:5: prune.ratio", "s.yaml:7: prune.ratoi",
    ]  # fmt: skip
    assert any("did you mean 'ratio'?" in fault for fault in faults)


def test_values_that_do_not_go_together(tmp_path):
    """Each is right by itself: the recipe in which they meet is named."""
    with pytest.raises(SaapError, match=r"s.*\.yaml:3: score: batches must not exceed samples \(recipe batches=8\)"):
        loaded(tmp_path, {"base": {"seed": 1, "score": {"samples": 4}}, "axes": {"score.batches": [2, 8]}})


@pytest.mark.parametrize(("text", "expected"), [
    ("axes: {seed: []}", "an axis needs values"), ("axes: {seed: 1}", r"s\.yaml:1: axes\.seed: "),
    ("bases: {}", "unknown field, did you mean 'base'"),
    ("axes: {seed: [1]}\nexclude: [{seed: 1}]", r"s\.yaml:2: exclude: no recipe is left"),
    ("recipes: [{name: a}, {name: a, seed: 2}]", "'a' is the name of another recipe"),
])  # fmt: skip
def test_what_is_refused(tmp_path, text, expected):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SaapError, match=expected) as error:
        load_sweep(tmp_path / "s.yaml")
    assert "\n" not in str(error.value)


def test_names_can_be_folders():
    choices = product({
        "model": ["/a/Tiny Llama", "b/Qwen2.5"], "export.formats": [["gguf-q4_0", "onnx-int4"], ["gguf-q4_0"]],
        "recover.teacher": [None, "x" * 200], "prune.group": [1, 2], "export.group": [32, 64],
    })  # fmt: skip
    names = names_of(choices)
    assert len(set(names)) == 32 and all(len(name) <= 90 and "/" not in name and " " not in name for name in names)
    assert names[0].startswith("model=Tiny-Llama,formats=gguf-q4_0+onnx-int4,teacher=None,prune.group=1")
    assert names_of(product({"target": ["x/a.yaml", "y/a.yaml"]})) == ["target=a.yaml", "target=a.yaml-2"]
    assert yaml.safe_load(f"name: {names[0]}")["name"] == names[0]
