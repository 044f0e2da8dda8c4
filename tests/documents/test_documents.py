"""The documents of a real run against their schemas; old ones are read, those of other versions and damaged ones are
refused in one line."""

import json
import math
from pathlib import Path

import pytest

import saap_edge as se
from saap_edge.artifacts import Manifest, read_manifest
from saap_edge.documents.bench import Bench, Metrics
from saap_edge.documents.draft import Draft
from saap_edge.documents.gate import Gate
from saap_edge.documents.history import History
from saap_edge.documents.plan import Plan, load_plan
from saap_edge.documents.report import Report
from saap_edge.documents.sweep import Sweep
from saap_edge.documents.verify import Verify
from saap_edge.errors import SaapError
from saap_edge.prediction.predict import predict_benched
from saap_edge.targets import load_target
from tests.conftest import tiny_model, write_folder
from tests.documents.schema_check import faults, fields
from tests.gating.support import artifact, bench, beside
from tests.test_cli import call, write_recipe

CLASSES = {
    "bench": Bench, "draft": Draft, "gate": Gate, "history": History, "manifest": Manifest, "plan": Plan,
    "report": Report, "sweep": Sweep, "verify": Verify,
}  # fmt: skip
DEMO = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "demo.json").read_text())
QUICK = {
    "prune": {"ratio": 0.3, "method": "saap"}, "recover": {"tokens": 0}, "target": "rpi5",
    "bench": {"threads": 1, "prompt_tokens": 8, "decode_tokens": 4, "rounds": 3, "perplexity_windows": 1,
              "contexts": [16]},
    "export": {"formats": ["gguf-q8_0"]}, "budget": {"limits": [{"metric": "file_mib", "max": 100}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run for another board, so that the report has predictions."""
    folder = tmp_path_factory.mktemp("documents")
    recipe = write_recipe(folder, write_folder(tiny_model("llama"), folder / "dense"), **QUICK)
    return se.compile(recipe=recipe, out=folder / "out")


@pytest.fixture(scope="module")
def written(run):
    """Files of every document."""
    names = {name: run.folders[name] / f"{name}.json" for name in ("bench", "gate", "plan", "report", "verify")}
    drafted = se.draft(run.out, "rpi5", prompts=2, tokens=8, threads_here=1)
    drafted.write(run.out / "draft.json")
    se.history(run.out).write(run.out / "history.json")
    (run.out / "sweep.yaml").write_text("base: ../recipe.yaml")  # whose stages are all there
    se.sweep(run.out / "sweep.yaml", out=run.out)
    made = {name: run.out / f"{name}.json" for name in ("draft", "history", "sweep")}
    return names | made | {"manifest": run.folders["export"] / "manifest.json"}


@pytest.mark.parametrize("name", CLASSES)
def test_a_real_document_is_what_the_schema_says(written, name):
    document = json.loads(written[name].read_text(), parse_constant=lambda word: pytest.fail(word))
    schema = se.schema(name)
    assert faults(document, schema, schema) == []
    broken = {key: value for key, value in document.items() if key != schema["required"][-1]}
    assert faults(broken, schema, schema), "the check finds what is missing"


@pytest.mark.parametrize("name", CLASSES)
def test_a_round_trip_keeps_all(written, name, tmp_path):
    """Of fields that this version does not know, too, where people may not edit the file."""
    document = json.loads(written[name].read_text())
    open_ended = name not in ("manifest", "plan")
    (tmp_path / "new.json").write_text(json.dumps(document | ({"from the future": [1]} if open_ended else {})))
    CLASSES[name].read(tmp_path / "new.json").write(tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert (again.pop("from the future", None) == [1]) is open_ended
    assert again == document and list(again) == list(document)


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_says_what_it_is(name):
    told = fields(se.schema(name))
    assert len(told) > 5 and [place for place, field in told if not field.get("description")] == []


@pytest.mark.parametrize("name", CLASSES)
def test_one_version_field(name):
    schema = se.schema(name)
    field = {"bench": "schema", "report": "schema_version"}.get(name, "version")
    assert schema["properties"][field]["const"] == CLASSES[name].VERSION
    assert CLASSES[name].model_fields["version"].annotation.__args__ == (CLASSES[name].VERSION,)


def test_the_api_gives_models(run, tmp_path):
    assert isinstance(run.bench, Bench) and isinstance(run.report, Report) and isinstance(run.plan, Plan)
    assert run.gate.verdict == "pass" == run.report.verdict == run.report.gate.verdicts[0].verdict
    assert run.report.predicted and run.bench.machine.cpu == run.bench["machine"]["cpu"]
    assert se.gate(run, {"limits": [{"metric": "file_mib", "max": 1e-6}]}).verdict == "fail"
    (tmp_path / "b.yaml").write_text("limits: {file_mib: {max: 100}}")
    assert se.gate(run.folders["bench"] / "bench.json", tmp_path / "b.yaml").exit_code == 0


def test_the_command_prints_what_the_file_holds(run, monkeypatch, capsys):
    code, stdout, _ = call(monkeypatch, capsys, "gate", run.folders["bench"], "--json")
    assert code == 0 and json.loads(stdout) == json.loads((run.folders["gate"] / "gate.json").read_text())


def test_the_command_prints_schemas(monkeypatch, capsys):
    """No NAME: the documents. An unknown one: one line that lists them, exit code 2."""
    for name in CLASSES:
        code, stdout, _ = call(monkeypatch, capsys, "schema", name)
        assert code == 0 and json.loads(stdout) == se.schema(name)
    code, stdout, _ = call(monkeypatch, capsys, "schema")
    assert code == 0 and [line.split()[0] for line in stdout.splitlines()] == list(CLASSES)
    code, stdout, stderr = call(monkeypatch, capsys, "schema", "benches")
    assert code == 2 and not stdout and stderr.count("\n") == 1 and ", ".join(CLASSES) in stderr


def test_committed_documents_are_read():
    """A report from before gate.json had a version, and before the weights' bytes were stored."""
    report = Report.parse(DEMO, "demo.json")
    assert report.as_dict() == DEMO | {"gate": {"version": 1} | DEMO["gate"]}
    assert Bench.parse(DEMO["bench"], "x").as_dict() == DEMO["bench"]
    assert Gate.parse(DEMO["gate"], "x").verdict == DEMO["gate"]["verdict"]
    assert Plan.parse(DEMO["plan"], "x").as_dict() == DEMO["plan"]
    assert [entry.as_dict() for entry in Verify.parse(DEMO["verify"], "x").artifacts] == DEMO["verify"], "a bare list"


def test_the_weights_bytes_are_stored_and_were_recovered_before(run):
    """Both give the same prediction."""
    board, now = load_target("rpi5"), run.bench
    for entry in now.artifacts:
        assert entry.metrics.projection_bytes == next(
            each.projection_bytes
            for stage in ("dense", "export")
            for each in read_manifest(run.folders[stage]).artifacts
            if entry.role == ("dense" if stage == "dense" else "pruned")
        )
        old = entry.model_copy(update={"metrics": entry.metrics.model_copy(update={"projection_bytes": None})})
        assert predict_benched(old, now.conditions, board) == predict_benched(entry, now.conditions, board)
    nothing = now.artifacts[0].model_copy(update={"metrics": Metrics()})
    with pytest.raises(SaapError, match="no kv_bytes_per_token"):
        predict_benched(nothing, now.conditions, board)


@pytest.mark.parametrize(("name", "field", "remedy"), [
    ("bench", "schema", "measure again"), ("draft", "version", "saap-edge draft again"),
    ("gate", "version", "judge again"), ("manifest", "version", "export again"),
    ("plan", "version", "plan again"), ("report", "schema_version", "compile again"),
    ("sweep", "version", "sweep again"),
    ("verify", "version", "verify again"),
])  # fmt: skip
@pytest.mark.parametrize("version", [0, 99, "new", None])
def test_other_versions_are_refused(written, tmp_path, name, field, remedy, version):
    """In one line: what it has, what is read, what to do."""
    document = json.loads(written[name].read_text()) | {field: version}
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(document))
    read = {"manifest": lambda path: read_manifest(path.parent), "plan": load_plan}.get(name, CLASSES[name].read)
    with pytest.raises(SaapError) as refused:
        read(path)
    text = str(refused.value)
    assert f"version {version!r}" in text and f"reads {CLASSES[name].VERSION}" in text and remedy in text
    assert str(path) in text and "\n" not in text


@pytest.mark.parametrize(("section", "field", "remedy"), [
    ("bench", "schema", "measure again"), ("gate", "version", "judge again"), ("plan", "version", "plan again"),
])  # fmt: skip
def test_a_document_inside_a_report_has_its_own_version(written, tmp_path, section, field, remedy):
    """A current report with an older section says which, and what to do."""
    document = json.loads(written["report"].read_text())
    document[section][field] = 0
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SaapError, match=f"section {section}, has .*version 0, .* reads .*: {remedy}"):
        Report.read(path)
    if section == "bench":
        with pytest.raises(SaapError, match=r"section bench, has schema version 0, .* reads 2: measure again"):
            se.gate(path, {"limits": {"file_mib": {"max": 1}}})


DAMAGED = {
    "bench": ("conditions", "prompt_tokens"), "draft": ("drafts", 0, "kinds", 0, "acceptance", "value"),
    "gate": ("verdicts", 0, "verdict"), "manifest": ("artifacts", 0, "bytes"),
    "plan": ("layers", 0, "ffn"), "report": ("bench", "artifacts", 0, "metrics", "decode_tok_s", "median"),
    "sweep": ("recipes", 0, "stages"), "verify": ("artifacts", 0, "max_error"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_field_is_named(written, tmp_path, name):
    document, path = json.loads(written[name].read_text()), tmp_path / f"{name}.json"
    part = document
    for key in DAMAGED[name][:-1]:
        part = part[key]
    part[DAMAGED[name][-1]] = "wide"
    path.write_text(json.dumps(document))
    read = {"manifest": lambda path: read_manifest(path.parent), "plan": load_plan}.get(name, CLASSES[name].read)
    with pytest.raises(SaapError) as refused:
        read(path)
    assert ".".join(map(str, DAMAGED[name])) in str(refused.value) and "\n" not in str(refused.value)
    for text in ("[" * 100_000, "{", "[]", "1"):
        path.write_text(text)
        with pytest.raises(SaapError) as refused:
            CLASSES[name].read(path) if (name, text) != ("verify", "[]") else read_manifest(tmp_path)
        assert "\n" not in str(refused.value)


def test_what_is_not_finite_is_null():
    base, candidate = artifact("dense"), artifact(perplexity=math.inf, noise=math.nan)
    candidate["metrics"]["decode_tok_s"]["spread"] = math.nan
    document = Bench.parse(bench([base, candidate], [beside(base, candidate)]), "x").as_dict()
    metrics = document["artifacts"][1]["metrics"]
    assert metrics["perplexity"] is None and metrics["noise"] is None and metrics["decode_tok_s"]["spread"] is None
    again = Bench.parse(json.loads(json.dumps(document, allow_nan=False)), "x")
    assert math.isnan(again.artifacts[1].metrics.timed("decode_tok_s").spread) and again.as_dict() == document


def test_a_wrong_document_is_not_written(tmp_path):
    whole = Bench.parse(bench(), "x")
    wrong = whole.model_copy(update={"comparisons": [whole.comparisons[0].model_copy(update={"base": "gone"})]})
    with pytest.raises(SaapError, match="do not go together"):
        wrong.write(tmp_path / "bench.json")
    assert not list(tmp_path.iterdir())
