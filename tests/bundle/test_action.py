"""action.yml and the examples for CI: well-formed, and their scripts run here as a runner would run them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typer.main import get_command

from saap_edge.cli import app
from saap_edge.gating import Budget
from saap_edge.yaml_lines import load_yaml_model

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}
GITLAB: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "gitlab-ci.yml").read_text())["gate"]


def test_the_action_is_whole():
    """Every input is described and used, every expression is one GitHub knows, no input is part of a script."""
    text = (ROOT / "action.yml").read_text()
    assert ACTION["runs"]["using"] == "composite"
    for name, entry in ACTION["inputs"].items():
        assert entry["description"] and ("default" in entry) != entry.get("required", False), name
        assert re.search(rf"inputs\.{name}\b(?!-)", text), f"{name} is not used"
    known = {f"inputs.{name}" for name in ACTION["inputs"]} | {"github.action_path", "github.sha", "runner.temp"}
    known |= {f"steps.{name}.outputs.{what}" for name, what in _outputs()}
    for expression in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", text):
        assert expression in known, expression
    for step in STEPS.values():
        assert step["shell"] == "bash" and "${{" not in step["run"]
        read = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", step["run"]))
        assert read - {"GITHUB_OUTPUT", "GITHUB_PATH", "CMAKE_ARGS"} == set(step["env"]), step["name"]


def _outputs() -> set[tuple[str, str]]:
    """What the steps write to GITHUB_OUTPUT."""
    return {
        (step["id"], name)
        for step in STEPS.values()
        if "id" in step
        for name in re.findall(r'echo "([a-z-]+)=', step["run"])
    }


@pytest.mark.parametrize("script", [step["run"] for step in STEPS.values()] + GITLAB["script"])
def test_scripts_are_bash_and_name_options_that_exist(script):
    assert subprocess.run(["bash", "-n", "-c", script], capture_output=True).returncode == 0
    commands = get_command(app).commands  # type: ignore[attr-defined]
    joined = script.replace("\\\n", " ").replace("\n", " ; ")
    for name, rest in re.findall(r"saap-edge (verify|bench|gate|history) ([^;>|]*)", joined):
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, (name, rest)


def test_the_examples_give_the_action_what_it_takes():
    for path in (ROOT / "examples").glob("github-*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        used = [step["with"] for job in jobs.values() for step in job["steps"] if "saap-edge@" in step.get("uses", "")]
        assert used
        for given in used:
            assert set(given) <= set(ACTION["inputs"])
            assert {name for name, entry in ACTION["inputs"].items() if entry.get("required")} <= set(given)
    for path in (ROOT / "examples").glob("budgets*.yaml"):
        assert load_yaml_model(path, Budget).limits
    assert GITLAB["artifacts"]["reports"]["junit"] == "gate.xml" and GITLAB["allow_failure"]["exit_codes"] == [3]


class Runner:
    """Runs steps of the action as GitHub's runner does: bash -eo pipefail, files for outputs and the summary."""

    def __init__(self, folder: Path, **inputs: str) -> None:
        self.folder = folder
        defaults = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()}
        self.values = {f"inputs.{name}": value for name, value in (defaults | inputs).items()}
        program = folder / "bin" / "saap-edge"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m saap_edge "$@"\n')
        program.chmod(0o755)
        self.environment = {
            "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
            "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
            "GITHUB_OUTPUT": str(folder / "output"), "HOME": str(folder),
        }  # fmt: skip

    def run(self, name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        values = self.values | {f"inputs.{key.replace('_', '-')}": value for key, value in inputs.items()}
        step, output = STEPS[name], Path(self.environment["GITHUB_OUTPUT"])
        output.write_text("")
        given = {
            key: re.sub(r"\$\{\{\s*(.*?)\s*\}\}", lambda found: values[found[1]], text)
            for key, text in step["env"].items()
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]], cwd=self.folder, text=True,
            capture_output=True, env=self.environment | given,
        )  # fmt: skip
        for line in output.read_text().splitlines():
            key, _, value = line.partition("=")
            self.values[f"steps.{step['id']}.outputs.{key}"] = value
        return done


def test_the_steps_run_on_a_bundle(made, tmp_path):
    """Verify, measure beside main's, gate: pass, fail, and inconclusive, which fails unless it is asked to warn."""
    for name in ("new bundle", "main"):
        shutil.copytree(made["gguf-q4_0"], tmp_path / name)
    budget = tmp_path / "budget.yaml"
    budget.write_text("limits:\n  - {metric: decode_vs_baseline, min: 0.001}\n  - {metric: parameters, min: 1}\n")
    runner = Runner(
        tmp_path, candidate="new bundle", baseline="main", budget="budget.yaml", rounds="3", **{"max-rounds": "5"}
    )
    assert runner.run("Verify").returncode == 0
    measured = runner.run("Measure")
    assert measured.returncode == 0, measured.stderr
    bench = json.loads((tmp_path / "saap-edge-gate" / "bench.json").read_text())
    assert bench["conditions"]["looks"] == [3, 5] and bench["conditions"]["rounds"] == 3, "decided at the first look"
    [comparison] = bench["comparisons"]
    assert comparison["ratios"]["decode_tok_s"]["confidence"] == pytest.approx(0.975)

    done = runner.run("Gate")
    assert done.returncode == 0, done.stderr
    assert runner.values["steps.gate.outputs.verdict"] == "pass"
    assert "## saap-edge gate: pass" in (tmp_path / "summary.md").read_text()
    junit = tmp_path / runner.values["steps.gate.outputs.junit"]
    assert len(list(ElementTree.parse(junit).iter("testcase"))) == 2

    budget.write_text("limits:\n  - {metric: kv_bytes_per_token, max: 1}\n")
    done = runner.run("Gate")
    assert done.returncode == 1 and runner.values["steps.gate.outputs.exit-code"] == "1"
    assert "::error file=budget.yaml,line=2" in done.stderr

    budget.write_text("limits:\n  - {metric: ttft_ms, max: 1}\n")
    done = runner.run("Gate", target="rpi5")
    assert done.returncode == 3 and runner.values["steps.gate.outputs.verdict"] == "inconclusive"
    done = runner.run("Gate", target="rpi5", inconclusive="warn")
    assert done.returncode == 0 and "::warning" in done.stdout
    assert runner.values["steps.gate.outputs.verdict"] == "inconclusive"

    budget.write_text("limits:\n  - {metric: nonsense, max: 1}\n")
    assert runner.run("Gate", inconclusive="warn").returncode == 2

    runner.values |= {"github.sha": "0123abc", "inputs.history": "all runs"}
    done = runner.run("History")
    assert done.returncode == 0, done.stderr
    kept = tmp_path / "all runs" / "0123abc"
    assert (kept / "bench.json").is_file() and not (kept / "gate.json").exists(), "the last gate said nothing"
    page = (tmp_path / runner.values["steps.history.outputs.history"]).read_text()
    assert '"label": "0123abc"' in page

    shutil.copyfile(tmp_path / "saap-edge-gate" / "bench.json", tmp_path / "bench.json")
    budget.write_text("limits:\n  - {metric: kv_bytes_per_token_change_pct, max: 0}\n")
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", GITLAB["script"][-1]], cwd=tmp_path, capture_output=True, text=True,
        env=runner.environment | {"BUDGET": "budget.yaml"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ElementTree.parse(tmp_path / "gate.xml").getroot().tag == "testsuites"
