"""What a release rests on: versions agree, locks are within the ranges, CI runs what .ci/run runs."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import saap_edge
from tests.fast import FAST, FOLDER

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# Which extras a lock has the versions of.
LOCKS = {
    "requirements.lock": ("device", "models", "compile", "openvino", "eval", "search", "dev"),
    "requirements-optimum.lock": ("models", "optimum"),
    "requirements-executorch.lock": ("models", "executorch"),
    "requirements-cluster.lock": ("device", "models", "compile", "cluster"),
    "requirements-docs.lock": ("docs",),
}


def pins(lock):
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_a_version_in_range_of_all_that_is_asked_for(lock):
    pinned = {canonicalize_name(name): version for name, version in pins(lock).items()}
    asked = PROJECT["dependencies"] + [
        line for extra in LOCKS[lock] for line in PROJECT["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name != "saap-edge":
            assert requirement.specifier.contains(pinned[name], prereleases=True), requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_nothing_but_versions(lock):
    for name, version in pins(lock).items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name) and re.fullmatch(r"[\w.]+", version), (name, version)


def test_the_makefile_installs_what_the_locks_say():
    pinned = pins("requirements.lock")
    assert f"LLAMA := llama-cpp-python=={pinned['llama-cpp-python']}\n" in MAKEFILE
    asked = set(re.findall(r"\btorch==([\d.]+)", MAKEFILE))
    others = {pins(f"requirements-{name}.lock")["torch"] for name in ("optimum", "executorch", "cluster")}
    assert asked == {pinned["torch"]} | others


def test_pre_commit_has_the_versions_of_the_lock():
    pinned = pins("requirements.lock")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    revisions = {repo["repo"].rsplit("/", 1)[1]: repo["rev"] for repo in hooks}
    assert revisions == {"ruff-pre-commit": f"v{pinned['ruff']}", "mirrors-mypy": f"v{pinned['mypy']}"}
    needed = [line for repo in hooks for hook in repo["hooks"] for line in hook.get("additional_dependencies", ())]
    assert needed and all(pinned[name] == version for name, version in (line.split("==") for line in needed))


def test_versions_agree():
    assert PROJECT["version"] == saap_edge.__version__
    entries = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert entries[0] == "Unreleased"


def test_workflows_run_what_ci_runs():
    """On every Python that pyproject.toml names, and on aarch64; every target of .ci/run is one of the Makefile."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["all"]["steps"]]
    matrix = jobs["all"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["python"] == named and named[0] == PROJECT["requires-python"].removeprefix(">=")
    assert "ubuntu-24.04-arm" in [each["runner"] for each in matrix["include"]]
    called = re.findall(r"^make ([\w-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert called and all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in called)


def test_fast_files_are_there():
    assert [name for name in FAST if not (FOLDER / name).is_file()] == []
