"""`saap-edge gate` on files: what it reads, refuses, prints and writes for CI. No model is needed for any of it."""

import copy
import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from saap_edge import cli
from tests.gating.support import artifact, bench, ratio, report, side_by_side

BUDGET = "limits:\n  - {metric: file_mib, max: 4}\n  - {metric: speedup_vs_dense, min: 1.5}\n"


@pytest.fixture
def gate(monkeypatch, capsys, tmp_path):
    """gate(document, budget, *options): (exit code, stdout, stderr). A document is written to a file first."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def run(document, budget=BUDGET, *options):
        path = tmp_path / "now.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        (tmp_path / "budget.yaml").write_text(budget)
        arguments = ["saap-edge", "gate", path, "--budget", tmp_path / "budget.yaml", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.parametrize(("budget", "code"), [
    ("limits: {file_mib: {max: 4}}", 0), ("limits: {file_mib: {max: 1}}", 1),
    ("limits: {speedup_vs_dense: {min: 1.3}}", 3), ("limits: {file_mib: {max: 1}, speedup_vs_dense: {min: 1.3}}", 1),
])  # fmt: skip
def test_exit_codes(gate, budget, code):
    for document in (bench(), report()):
        found, stdout, stderr = gate(document, budget, "--json")
        assert found == code, stderr
        assert json.loads(stdout)["exit_code"] == code


def test_the_target_is_the_reports_or_the_one_named(gate, tmp_path):
    budget = "limits: {decode_tok_s: {min: 90}}"
    assert gate(report(), budget)[0] == 0
    code, _, stderr = gate(bench(), budget)
    assert code == 3 and "no target" in stderr
    code, _, stderr = gate(report(), budget, "--target", "rpi5")
    assert code == 3 and "not the target" in stderr
    (tmp_path / "board.yaml").write_text(json.dumps(report()["target"]))
    assert gate(bench(), budget, "--target", tmp_path / "board.yaml")[0] == 0


def changed(document, **changes):
    return copy.deepcopy(document) | changes


REFUSED = {
    "older report": (changed(report(), schema_version=1), "schema version 1, this saap-edge reads 2"),
    "newer report": (changed(report(), schema_version=3), "schema version 3"),
    "older bench": (changed(bench(), schema=1), "schema version 1"),
    "older bench in a report": (report(changed(bench(), schema=1)), "schema version 1"),
    "another document": ({"verdicts": []}, "neither a report.json nor a bench.json"),
    "a list": ("[]", "neither a report.json nor a bench.json"), "half a file": ('{"schema": 2,', "not a JSON document"),
    "deep": ("[" * 100_000, "not a JSON document"), "no bench": (report() | {"bench": None}, "holds no measurements"),
    "no artifacts": (report(changed(bench(), artifacts=None)), "damaged: bench.artifacts"),
    "a comparison of nothing": (changed(bench(), artifacts=[]), "do not go together"),
    "a target that is none": (report(target={"name": 1}), "section target"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_read_is_refused_in_one_line(gate, what):
    document, expected = REFUSED[what]
    code, stdout, stderr = gate(document)
    assert code == 2 and not stdout and expected in stderr and stderr.count("\n") == 1, stderr


@pytest.mark.parametrize(("budget", "expected"), [
    ("limits: []\n", "has no limits"), ("", "has no limits"),
    ("limits:\n- {metric: decode_toks, min: 1}\n", "budget.yaml:2: limits.0.metric: unknown metric 'decode_toks', did"),
])  # fmt: skip
def test_a_budget_that_judges_nothing_is_no_pass(gate, budget, expected):
    code, _, stderr = gate(bench(), budget)
    assert code == 2 and expected in stderr and stderr.count("\n") == 1


def test_a_baseline_must_be_of_the_same_model_and_format(gate, tmp_path):
    main = tmp_path / "main.json"
    budget = "limits: {file_mib_change_pct: {max: 1}}"
    main.write_text(json.dumps(report(bench([artifact(file_bytes=3 * 2**20)]))))
    assert gate(report(), budget, "--baseline", main)[0] == 0
    assert gate(report(side_by_side()), budget, "--baseline", main)[0] == 0
    for document, expected in (
        (bench([artifact(model="b" * 64)]), "baseline of another model"),
        (bench([artifact(format="onnx-int4")]), "no format in common"),
        (changed(bench(), schema=1), "schema version 1"),
    ):  # fmt: skip
        main.write_text(json.dumps(document))
        code, _, stderr = gate(bench(), budget, "--baseline", main)
        assert code == 2 and expected in stderr and "main.json" in stderr, stderr
    unknown = bench([artifact(model=None)])
    main.write_text(json.dumps(report(unknown, model={"name": "another-model"})))
    assert gate(report(unknown), budget, "--baseline", main)[0] == 2
    main.write_text(json.dumps(report(unknown)))
    assert gate(report(), budget, "--baseline", main)[0] == 0, "by its name, where the identity is not known"


def test_folders_hold_what_is_judged(gate, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for document, name, code in ((None, None, 2), (bench(), "bench.json", 0), (report(), "report.json", 0)):
        if name:
            (out / name).write_text(json.dumps(document))
        (tmp_path / "b.yaml").write_text("limits: {file_mib: {max: 4}}")
        monkeypatch.setattr(sys, "argv", ["saap-edge", "gate", str(out), "--budget", str(tmp_path / "b.yaml")])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert (stop.value.code or 0) == code
        capsys.readouterr()


# Attributes that the schemas in use require (Ant's, as windyroad/JUnit-Schema has it, the strictest of them).
REQUIRED = {
    "testsuites": set(),
    "testsuite": {"name", "timestamp", "hostname", "tests", "failures", "errors", "time", "package", "id"},
    "testcase": {"name", "classname", "time"}, "failure": {"type"}, "error": {"type"}, "properties": set(),
    "system-out": set(), "system-err": set(),
}  # fmt: skip
OPTIONAL = {"testsuite": {"skipped"}, "failure": {"message"}, "error": {"message"}}


def test_junit(gate, tmp_path):
    """Inconclusive is an error: what a CI system shows red. Skipped would look like a pass."""
    budget = BUDGET + "  - {metric: decode_vs_baseline, min: 1}\n  - {metric: file_mib, max: 1}\n"
    hostile = bench([artifact() | {"name": 'a "<b>" & \x00\x1b c'}])
    for document in (bench(), hostile):
        code, _, stderr = gate(document, budget, "--junit", tmp_path / "gate.xml")
        assert code == 1, stderr
        root = ElementTree.parse(tmp_path / "gate.xml").getroot()
        for element in root.iter():
            assert REQUIRED[element.tag] <= set(element.attrib), element.tag
            assert set(element.attrib) <= REQUIRED[element.tag] | OPTIONAL.get(element.tag, set()), element.tag
        [suite] = root
        order = [child.tag for child in suite]
        assert order == ["properties", *["testcase"] * 4, "system-out", "system-err"]
        tags = [[child.tag for child in case] for case in suite.iter("testcase")]
        assert tags == ([[], ["failure"], ["error"], ["failure"]] if document is not hostile else
                        [[], ["error"], ["error"], ["failure"]])  # fmt: skip
        counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
        assert counts == {
            "tests": 4, "failures": tags.count(["failure"]), "errors": tags.count(["error"]), "skipped": 0,
        }  # fmt: skip


def test_github_gets_a_table_and_annotations(gate, tmp_path, monkeypatch):
    """As Actions sets them: the summary is appended to, annotations point at the budget's lines, stdout stays JSON."""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    document = bench([artifact() | {"name": "odd | name\n::error::x"}])
    budget = (
        "limits:\n  - {metric: file_mib, max: 4}\n\n  - {metric: file_mib, max: 1}\n  - {metric: ttft_ms, max: 1}\n"
    )
    code, stdout, stderr = gate(document, budget, "--json")
    assert code == 1 and json.loads(stdout)["verdict"] == "fail"
    commands = [line for line in stderr.splitlines() if line.startswith("::")]
    assert [command.split(" ")[0] for command in commands] == ["::error", "::warning"]
    assert f"file={tmp_path}/budget.yaml,line=4,title=saap-edge gate%3A fail::file_mib <= 1 on odd" in commands[0]
    assert "line=5" in commands[1] and "name%0A::error::x" in commands[0]
    text = summary.read_text()
    assert text.startswith("before\n## saap-edge gate: fail\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and all(row.count(" | ") == 4 for row in rows)
    assert "odd &#124; name ::error::x" in rows[1] and "pass" in rows[1] and "inconclusive" in rows[3]


def test_outside_github_nothing_is_annotated(gate):
    assert "::" not in gate(bench(), "limits: {file_mib: {max: 1}}")[2]
    assert "::error" in gate(bench(), "limits: {file_mib: {max: 1}}", "--annotations")[2]


def test_a_board_can_judge(tmp_path):
    """Without torch, transformers, matplotlib and jinja2."""
    (tmp_path / "r.json").write_text(json.dumps(side_by_side(ratio(0.99, 0.98, 1.0))))
    (tmp_path / "b.yaml").write_text("limits: {decode_vs_baseline: {min: 0.95}}")
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'transformers', 'gguf', 'onnx', 'matplotlib', 'jinja2'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        f"sys.argv = ['saap-edge', 'gate', '{tmp_path}/r.json', '--budget', '{tmp_path}/b.yaml', '--junit', "
        f"'{tmp_path}/g.xml', '--summary', '{tmp_path}/s.md']\nfrom saap_edge.cli import main\nmain()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "g.xml").is_file() and (tmp_path / "s.md").is_file()


def test_the_stage_is_judged_where_the_chain_cannot_run(tmp_path, monkeypatch, capsys):
    """A bench folder alone, of a model that is not here: verdicts are kept in a folder of their own, once."""
    stages = tmp_path / "stages"
    folder = stages / "bench-0123"
    folder.mkdir(parents=True)
    (folder / "bench.json").write_text(json.dumps(bench()))
    board = tmp_path / "board.yaml"
    board.write_text(json.dumps(report()["target"]))
    recipe = {"model": "gone/gone", "target": str(board)}

    def run(recipe, *options):
        record = {"stage": "bench", "hash": "0123", "inputs": {}, "recipe": recipe}
        (folder / "stage.json").write_text(json.dumps(record))
        monkeypatch.setattr(sys, "argv", ["saap-edge", "gate", str(folder), "--json", *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0, capsys.readouterr()

    code, captured = run(recipe)
    assert code == 2 and "neither --budget nor the run's recipe has limits" in captured.err
    assert [path.name for path in stages.iterdir()] == ["bench-0123"]
    limited = recipe | {"budget": {"limits": [{"metric": "decode_tok_s", "min": 90}]}}
    for _ in range(2):
        code, captured = run(limited)
        assert code == 0 and json.loads(captured.out)["verdict"] == "pass", captured.err
    [made] = stages.glob("gate-*")
    assert json.loads((made / "gate.json").read_text())["target"] == "A board"
    (tmp_path / "b.yaml").write_text("limits: {decode_tok_s: {min: 1000}}")
    assert run(limited, "--budget", tmp_path / "b.yaml")[0] == 1
    code, captured = run(limited, "--target", "rpi5")
    assert code == 3 and "not the target" in captured.out
    assert len(list(stages.glob("gate-*"))) == 3
    assert run(limited, "--baseline", folder / "bench.json")[0] == 2
