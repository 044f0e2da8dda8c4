"""The Python interface: what the commands do, by functions."""

import doctest
import inspect
import json
import subprocess
import sys

import pytest
import typer

import saap_edge as se
from saap_edge import api, cli
from saap_edge.bundle.write import write_bundle
from saap_edge.prediction.predict import Prediction
from saap_edge.recipe import Recipe
from saap_edge.targets import dump_yaml, this_machine
from tests.conftest import TEXT, tiny_model, write_folder
from tests.test_adding import as_before  # noqa: F401 (what an example registers is gone afterwards)
from tests.test_cli import SMALL, call

CALLABLE = [name for name in api.__all__ if callable(getattr(api, name))]
FUNCTIONS = [name for name in CALLABLE if inspect.isfunction(getattr(api, name))]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def recipe(root):
    model = write_folder(tiny_model("llama"), root / "model")
    (root / "text.txt").write_text(TEXT)
    texts = dict.fromkeys(("calibration", "heldout", "test"), str(root / "text.txt"))
    document = {"model": str(model), "data": texts, **SMALL}
    return document | {"export": {"formats": ["gguf-q4_0"]}, "prune": {"method": "saap", "ratio": 0.3}}


@pytest.fixture(scope="module")
def heard():
    return {"steps": [], "stages": [], "lines": [], "notes": []}


@pytest.fixture(scope="module")
def run(recipe, heard, root):
    class Loud(se.Progress):
        def ahead(self, lines):
            heard["lines"] += lines

        def stage(self, result):
            heard["stages"].append(result.name)

        def note(self, text):
            heard["notes"].append(text)

    return se.compile(recipe=recipe, out=root / "out", progress=Loud())


@pytest.fixture(scope="module")
def folder(root, recipe, run):
    """Where the examples of docstrings work: the files that `saap_edge.api` names."""
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    (root / "sweep.yaml").write_text(json.dumps({"base": "recipe.yaml", "axes": {"prune.ratio": [0.2, 0.3]}}))
    (root / "budget.yaml").write_text("limits: {file_mib: {max: 1}}")
    # One thread: two of a runtime's spin while they wait for each other, which on a busy machine takes long.
    (root / "board.yaml").write_text(dump_yaml(this_machine().model_copy(update={"threads": 1})))
    write_bundle(run.out, root / "bundle", target=str(root / "board.yaml"))
    return root


def test_a_run_tells_where_everything_is(run, heard):
    assert heard["stages"][0] == "score" and heard["stages"][-1] == "report" and run.exit_code == 0
    assert heard["lines"][0] == "to do:"
    assert set(run.files) == set(run.dense_files) == {"gguf-q4_0"} and run.files["gguf-q4_0"].is_file()
    assert run.plan.achieved_ratio >= 0.3 and (run.model / "config.json").is_file()
    assert json.loads(json.dumps(run.as_dict()))["files"]["report.html"] == str(run.links["report.html"])


def test_the_command_finds_what_the_function_did(run, recipe, monkeypatch, capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code, out, err = call(monkeypatch, capsys, "compile", tmp_path / "recipe.yaml", "--out", run.out, "--json")
    assert code == 0 and "nothing to do" in err
    stages = {stage["stage"]: stage["folder"] for stage in json.loads(out)["stages"]}
    assert stages == {stage.name: str(stage.folder) for stage in run.stages}


def test_stage_by_stage_is_the_same(run, recipe):
    found = se.score(recipe=recipe, out=run.out)
    for step in (se.plan, se.prune, se.recover, se.export, se.verify):
        found = step(found)
    assert found.folder == run.folders["verify"] and all(stage.cached for stage in found.stages)
    other = se.plan(se.score(recipe=recipe, out=run.out), ratio=0.2)
    assert other.plan.ratio == 0.2 and other.folder != run.folders["plan"]
    with pytest.raises(se.SaapError, match="the stage export was not run: the last one is plan"):
        other.files  # noqa: B018


def test_gate_predict_and_evaluate(run, recipe):
    passed = se.gate(run.folders["bench"] / "bench.json", {"limits": {"file_mib": {"max": 100}}}, target="host")
    failed = se.gate(run.out, {"limits": {"file_mib": {"max": 1e-6}}})
    assert (passed["exit_code"], failed["exit_code"]) == (0, 1)
    prediction = se.predict(run.files["gguf-q4_0"], "rpi5")
    assert isinstance(prediction, Prediction) and prediction.decode_tok_s.value > 0
    found = se.evaluate(run.files["gguf-q4_0"], text=recipe["data"]["test"], window=32, threads=1)
    assert found["perplexity"][0]["value"] > 1


def test_progress_by_a_function(run, recipe, heard):
    se.plan(
        se.score(recipe=recipe, out=run.out), ratio=0.25, progress=lambda what, done, total: heard["steps"].append(
            (what, done, total)
        ),
    )  # fmt: skip
    plan = [(done, total) for what, done, total in heard["steps"] if what == "plan"]
    assert plan[0][0] == 0 and plan[-1][0] == pytest.approx(plan[-1][1])


def test_recipes_from_everything(recipe, tmp_path):
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    whole = se.recipe_of(recipe)
    assert isinstance(whole, Recipe) and se.recipe_of(tmp_path / "r.yaml") == se.recipe_of(whole) == whole
    assert se.recipe_of(whole, ratio=0.4, formats=["onnx-int4"]).export.formats == ("onnx-int4",)
    assert whole.prune.ratio == 0.3  # options leave what they came on top of as it was
    for options, reason in (({"ratio": 2}, "--ratio"), ({"budget": {"limits": {"speed": {}}}}, "budget"),
                            ({"method": "magic"}, "--method")):  # fmt: skip
        with pytest.raises(se.SaapError, match=reason):
            se.recipe_of(whole, **options)


@pytest.mark.parametrize("name", ["", *CALLABLE])
def test_examples_in_docstrings(name, folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    thing = getattr(api, name) if name else api
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(thing), {"se": se, "run": run}, name, None, None)
    assert example.examples or name not in FUNCTIONS, "every function has an example"
    found = doctest.DocTestRunner(verbose=False).run(example)
    assert found.attempted == len(example.examples) and not found.failed


def test_nothing_is_loaded_before_it_is_needed():
    heavy = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    code = f"import sys, saap_edge as se; se.predict; se.gate; se.Run; print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        se.nothing  # noqa: B018


def test_every_function_is_told_and_typed():
    for name in api.__all__:
        thing = getattr(se, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not p.empty for p in signature.parameters.values()), name


def test_every_command_of_the_chain_is_a_function():
    commands = set(typer.main.get_command(cli.app).commands)
    elsewhere = {"version", "target", "targets", "bundle", "prepare", "schema", "report"}  # write_report
    assert commands - elsewhere <= set(api.__all__)
