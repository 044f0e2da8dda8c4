"""Calibration text that the model writes itself: the recipe, the option, the keys of stages, the windows."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import saap_edge as se
from saap_edge.chain.amounts import SELF_TOKENS, written_tokens
from saap_edge.chain.chains import COMPILE, TUNE, WRITING
from saap_edge.chain.context import open_context
from saap_edge.chain.texts import calibration
from saap_edge.errors import SaapError
from saap_edge.files import read_json
from saap_edge.progress import no_bar
from saap_edge.recipe import DataSettings, Recipe, bundled_text
from saap_edge.writing.saved import load_tokens
from saap_edge.yaml_lines import load_yaml_model
from tests.conftest import TEXT, tiny_model, write_folder
from tests.test_cli import SMALL, call

WINDOW = SMALL["score"]["window"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("self")
    write_folder(tiny_model("llama"), root / "model")
    (root / "text.txt").write_text(TEXT)
    return root


@pytest.fixture(scope="module")
def document(root):
    text = str(root / "text.txt")
    data = {"calibration": "self", "self_tokens": 1200, "heldout": text, "test": text}
    return {"model": str(root / "model"), "data": data, **SMALL, "export": {"formats": ["gguf-q4_0"]}}


@pytest.fixture(scope="module")
def run(root, document):
    """Everything up to recovery, on text that the model wrote."""
    recipe = document | {"prune": {"method": "saap", "ratio": 0.3}}
    scored = se.score(recipe=recipe, out=root / "out")
    return scored, se.recover(se.prune(se.plan(scored)))


@pytest.mark.parametrize(
    ("said", "file", "written"),
    [("self", None, 1.0), (["self", "a.txt"], "a.txt", 0.5), ("a.txt", "a.txt", 0.0), ("./self", "self", 0.0)],
)
def test_the_recipe_says_who_writes(said, file, written, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": {"calibration": said}}))
    data = load_yaml_model(tmp_path / "recipe.yaml", Recipe).data
    assert (data.file, data.written) == (file and Path(file).absolute(), written)
    assert ("calibration" in data.files) == (file is not None)
    again = Recipe.model_validate(json.loads(Recipe(data=data).model_dump_json())).data
    assert again == data  # a stage's record is read again


@pytest.mark.parametrize("said", [["self"], ["a.txt", "b.txt"], ["self", "a.txt", "b.txt"], [], {"self": 1}, 3, None])
def test_another_spelling_is_refused(said, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": {"calibration": said}}))
    with pytest.raises(SaapError, match=r"recipe\.yaml:\d+: data\.calibration"):
        load_yaml_model(tmp_path / "recipe.yaml", Recipe)


@pytest.mark.parametrize("tokens", [0, -1, "many"])
def test_an_amount_that_is_none_is_refused(tokens):
    with pytest.raises(SaapError, match=r"data\.self_tokens"):
        se.recipe_of({"data": {"calibration": "self", "self_tokens": tokens}})


def test_data_self_and_half_keep_what_the_recipe_says_of_other_texts(document, root):
    text, bundled = root / "text.txt", bundled_text("calibration")
    given = {**document, "data": {**document["data"], "calibration": str(text)}}
    assert se.recipe_of(given, data="self").data.calibration == "self"
    half = se.recipe_of(given, data="half").data
    assert half.calibration == ("self", text) and half.heldout == text and half.self_tokens == 1200
    assert se.recipe_of(document, data="half").data.file == se.recipe_of(data="half").data.file == bundled
    assert se.recipe_of(data="half").data == se.recipe_of(se.recipe_of(data="half"), data="half").data
    assert se.recipe_of(given, data=Path("self")).data.file == Path("self/calibration.txt").absolute()
    assert se.recipe_of(document, data=root).data.self_tokens == 1200


@pytest.mark.parametrize("written", [1.0, 0.5])
@pytest.mark.parametrize(
    ("recover", "samples", "expected"),
    [(100_000, 64, 100_000), (0, 96, 104 * 256), (5_000_000, 64, SELF_TOKENS), (0, 4, 96 * 256)],
)
def test_as_much_is_written_as_is_learnt_from(written, recover, samples, expected):
    data = DataSettings(calibration="self" if written == 1 else ("self", "a.txt"))
    recipe = Recipe(data=data, recover={"tokens": recover}, score={"samples": samples, "batches": 4})
    assert written_tokens(recipe) == expected * written
    assert written_tokens(recipe.model_copy(update={"data": data.model_copy(update={"self_tokens": 7})})) == 7


def test_the_stage_comes_first_and_the_others_learn_from_it(run, root):
    scored, recovered = run
    assert [stage.name for stage in scored.stages] == ["write", "score"]
    folders = recovered.folders
    assert read_json(folders["write"] / "write.json")["tokens"] >= 1200
    for name in ("score", "bank", "plan", "prune", "recover"):
        assert read_json(folders[name] / "stage.json")["inputs"]["write"] == folders["write"].name
    assert not list((root / "out" / "stages").glob(".*"))  # neither the model's file nor the rounds are left


def test_what_was_written_is_found_again(run, document, root):
    recipe = document | {"prune": {"method": "saap", "ratio": 0.3}}
    again = se.score(recipe=recipe, out=root / "out")
    assert [stage.cached for stage in again.stages] == [True, True] and again.folder == run[0].folder
    alone = se.write(recipe=recipe, out=root / "out")
    assert [(stage.name, stage.cached) for stage in alone.stages] == [("write", True)]


def keys(recipe, tune=False):
    """The names of a run's stages and what decides them, as if nothing were there."""
    context = open_context(se.recipe_of(recipe), None, no_bar, tune)
    rules = (*WRITING, *(TUNE if tune else COMPILE))
    stages = {rule.name: rule.stage(context) for rule in rules}
    return {name: (stage.inputs, context.outside(stage.reads), stage.settings) for name, stage in stages.items()}


def test_another_model_seed_or_amount_writes_anew(document, tmp_path):
    first = keys(document)["write"]
    other = write_folder(tiny_model("llama", seed=1), tmp_path / "other")
    changes = (
        {"model": str(other)}, {"seed": 1}, {"data": {**document["data"], "self_tokens": 1300}},
        {"recover": {**SMALL["recover"], "teacher": str(other)}},
    )  # fmt: skip
    for change in changes:
        assert keys(document | change)["write"] != first, change
    assert keys(document | {"prune": {"ratio": 0.4}})["write"] == first


def test_only_what_learns_needs_the_text(document, root):
    found = keys(document)
    learning = {"score", "bank", "plan", "prune", "recover"}
    assert {name for name, (inputs, _, _) in found.items() if "write" in inputs} == learning
    assert not any("calibration" in outside for _, outside, _ in found.values())
    important = keys(document | {"export": {"formats": ["gguf-q4_k_m"]}})  # by an importance matrix
    assert {name for name, (inputs, _, _) in important.items() if "write" in inputs} == learning | {"dense", "export"}
    half = keys({**document, "data": {**document["data"], "calibration": ["self", str(root / "text.txt")]}})
    both = {name for name, (inputs, outside, _) in half.items() if "write" in inputs and "calibration" in outside}
    assert both == learning
    plain = keys({**document, "data": {**document["data"], "calibration": str(root / "text.txt")}})
    assert not any("write" in inputs for inputs, _, _ in plain.values())


def test_windows_are_the_written_tokens_and_by_turns_with_a_file(document, run, root):
    written = {"write": run[0].folders["write"]}
    context = open_context(se.recipe_of(document), None, no_bar)
    own, tokens = calibration(context, written), load_tokens(written["write"])
    assert torch.equal(own.flatten(), tokens[: own.numel()]) and 0 <= len(tokens) - own.numel() < WINDOW
    text = str(root / "text.txt")
    half = {**document, "data": {**document["data"], "calibration": ["self", text]}}
    mixed = calibration(open_context(se.recipe_of(half), None, no_bar), written)
    plain = {**document, "data": {**document["data"], "calibration": text}}
    given = calibration(open_context(se.recipe_of(plain), None, no_bar), {})
    assert torch.equal(mixed[::2], own[: len(mixed[::2])]) and torch.equal(mixed[1::2], given[: len(mixed[1::2])])
    assert len(mixed) == 2 * min(len(own), len(given))


def test_too_little_text_is_refused_before_it_is_written(document):
    least = 2 * WINDOW
    with pytest.raises(SaapError, match=rf"data\.self_tokens: .* give {least} or more"):
        open_context(se.recipe_of({**document, "data": {**document["data"], "self_tokens": least - 1}}), None, no_bar)
    open_context(se.recipe_of({**document, "data": {**document["data"], "self_tokens": least}}), None, no_bar)


def test_a_model_that_llama_cpp_cannot_run_is_refused_before_anything_is_written(document, root, tmp_path):
    teacher = write_folder(tiny_model("llama", hidden_size=48), tmp_path / "teacher")  # no multiple of 32
    recipe = {**document, "recover": {**SMALL["recover"], "teacher": str(teacher)}}
    with pytest.raises(
        SaapError, match=r"data\.calibration: .*teacher' cannot write text.* 48 is not a multiple of 32"
    ):
        se.score(recipe=recipe, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_is_tuned_on_text_of_its_teacher(document, root, monkeypatch, capsys):
    recipe = {**document, "data": {**document["data"], "calibration": str(root / "text.txt")}}
    (root / "recipe.yaml").write_text(yaml.safe_dump({name: recipe[name] for name in recipe if name != "model"}))
    code, out, err = call(
        monkeypatch, capsys, "recover", root / "model", "--recipe", root / "recipe.yaml", "--data", "self", "--tokens",
        0, "--out", root / "tuned", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert [stage["stage"] for stage in json.loads(out)["stages"]] == ["write", "recover"]
    assert "documents of" in err


def test_several_processes_do_not_write(document, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SaapError, match="run `saap-edge write` first"):
        se.recover(document["model"], recipe=document, out=tmp_path / "out")
