"""One bundle in two builds of its runtime: another environment, or a llama-bench by its path; and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from saap_edge.bundle.schema import read_bundle
from saap_edge.engines.environment import NEEDS
from saap_edge.engines.llama_bench import FIXED, parse_rows
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.measuring.bundles import bench_bundles
from saap_edge.report.builds import render_builds
from saap_edge.targets import dump_yaml, this_machine
from tests.bundle.test_bench import SMALL, bar, one_load  # noqa: F401 (a fixture)
from tests.environments import ROOT, make_environment, write_llama_bench
from tests.test_cli import call

# What pip installs with NEEDS and onnxruntime, as far as it is imported.
NEEDED = ("numpy", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection", "annotated_types")
QUICK = ["--threads", 1, "--prompt", 8, "--decode", 4, "--rounds", 3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("env") / "whole", everything=True)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Nothing but NEEDS and ONNX Runtime."""
    return make_environment(tmp_path_factory.mktemp("env") / "sparse", *NEEDED, "onnxruntime")


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    return write_llama_bench(tmp_path_factory.mktemp("bin") / "llama-bench")


@pytest.fixture
def saap(monkeypatch, capsys):
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


@pytest.mark.parametrize("name", ["gguf-q4_0", "onnx-int4"])
def test_the_same_build_twice_passes(made, whole, saap, tmp_path, name):
    """The interval of a ratio is tested elsewhere: here a limit that only a broken measurement would miss."""
    out, budget = tmp_path / "bench.json", tmp_path / "budget.yaml"
    budget.write_text("limits: {decode_vs_baseline: {min: 0.1, max: 10}}")
    code, _, stderr = saap("bench", made[name], "--against", made[name], "--python", whole, *QUICK, "--out", out)
    assert code == 0 and "the same build" in stderr and "builds of the runtime" in stderr, stderr
    base, candidate = json.loads(out.read_text())["artifacts"]
    assert base["runtime"]["program"] == sys.executable
    assert candidate["runtime"]["program"] == str(whole / "bin" / "python")
    for field in ("versions", "build", "module", "python"):
        assert base["runtime"][field] == candidate["runtime"][field] != None, field  # noqa: E711
    code, stdout, stderr = saap("gate", out, "--budget", budget, "--json")
    assert code == 0 and json.loads(stdout)["verdicts"][0]["verdict"] == "pass", stderr


def test_an_environment_needs_what_the_message_says(made, sparse):
    """It has no psutil, scipy or saap-edge; its runtime comes from there, and both sides are recorded."""
    document = bench_bundles([made["onnx-int4"]] * 2, bar, builds=[{"python": str(sparse)}], **SMALL)
    base, candidate = (entry.runtime for entry in document.artifacts)
    assert Path(candidate.module).is_relative_to(sparse) and not Path(base.module).is_relative_to(sparse)
    assert candidate.versions["onnxruntime"] == base.versions["onnxruntime"] and "Build Info" in candidate.build
    assert {need.partition(">")[0] for need in NEEDS} == {"numpy", "pydantic"}


def test_where_the_runtime_lies_is_told_only_if_builds_were_named(made):
    [entry] = bench_bundles([made["gguf-q4_0"]], bar, **SMALL).artifacts
    assert entry.runtime.program is None and entry.runtime.module is None and entry.runtime.own_loop
    assert set(entry.runtime.versions) == {"llama-cpp-python", "numpy"} and entry.runtime.build.startswith("CPU")


def test_packages_beside_saap_edge_do_not_come_first(made, sparse, tmp_path):
    """saap-edge is installed beside its own onnxruntime: that one must not reach the other environment."""
    (tmp_path / "saap_edge").symlink_to(ROOT / "saap_edge")
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('the wrong one')\n")
    model = made["onnx-int4"] / read_bundle(made["onnx-int4"]).model
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path; from saap_edge.engines.worker import Worker\n"
        f"for python in (Path({str(sparse)!r}, 'bin', 'python'), None):\n"
        f"    print(Worker('onnxruntime', Path({str(model)!r}), 1, 16, python=python).loaded['version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert len(done.stdout.split()) == 1 and "the wrong one" in done.stderr


def test_every_round_has_processes_of_its_own(made, whole, monkeypatch):
    """Equal processes of one build may differ from beginning to end: a pair of them would be judged, not the builds."""
    timed = {}

    class Watched(Worker):
        def time(self, tokens, decode_tokens):
            timed.setdefault((self.python, self._process.pid), []).append((len(tokens), decode_tokens))
            return super().time(tokens, decode_tokens)

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.python = arguments[5]

    monkeypatch.setattr("saap_edge.measuring.builds.Worker", Watched)
    monkeypatch.setattr("saap_edge.measuring.measure.Worker", Watched)
    document = bench_bundles([made["gguf-q4_0"]] * 2, bar, builds=[{"python": str(whole)}], **SMALL)
    assert document.conditions.fresh_processes and document.conditions.warm_up.rounds == 3
    for python in (None, whole / "bin" / "python"):
        own = [calls for (other, _), calls in timed.items() if other == python]
        assert own == [[(8, 4)], *[[(8, 2), (8, 4)]] * 6], "a load, then three rounds of warm-up and three that count"
    assert not bench_bundles([made["gguf-q4_0"]], bar, **SMALL).conditions.fresh_processes


def test_in_llama_bench(made, binary):
    document = bench_bundles([made["gguf-q4_0"]] * 2, bar, builds=[{"program": str(binary)}], **SMALL)
    base, candidate = document.artifacts
    assert base.runtime.own_loop and not candidate.runtime.own_loop
    assert candidate.runtime.program == str(binary) and candidate.runtime.versions == {"llama-bench": "10222 (abc1234)"}
    metrics = candidate.metrics
    assert len(metrics.decode_tok_s.samples) == 3 and metrics.kv_bytes_per_token == base.metrics.kv_bytes_per_token
    unknown = ("itl_ms", "itl_p95_ms", "load_ms", "peak_rss_mib", "cpu_share", "energy_j_per_token")
    assert not [name for name in unknown if metrics[name] is not None], "what it does not tell is not made up"
    assert base.metrics.itl_ms and base.metrics.load_ms and base.metrics.cpu_share
    [pair] = document.comparisons
    assert pair.ratios.decode_tok_s.rounds == 3


def test_the_stand_in_prints_what_llama_bench_prints(binary, made):
    """The file is of a llama-bench of 2026-11, run with our options (prompt 8, 4 decoded)."""
    real = parse_rows((ROOT / "tests/measuring/llama-bench.json").read_text(), "llama-bench")
    model = made["gguf-q4_0"] / read_bundle(made["gguf-q4_0"]).model
    command = [binary, "-m", model, "-t", "1", *FIXED, "-p", "8", "-n", "4", "-d", "0,8"]
    ours = parse_rows(subprocess.run(command, capture_output=True, text=True, check=True).stdout, "ours")
    tests = [[(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] for rows in (real, ours)]
    assert tests[0] == tests[1] and {len(row["samples_ns"]) for row in real} == {1}
    for row, other in zip(ours, real, strict=True):
        assert {name: type(value) for name, value in row.items()}.items() <= {
            n: type(v) for n, v in other.items()
        }.items()


@pytest.mark.skipif(not shutil.which("llama-bench"), reason="no llama-bench on the PATH (docs/measuring.md builds one)")
def test_in_the_real_llama_bench(made):
    builds = [{"program": shutil.which("llama-bench")}]
    _, candidate = bench_bundles([made["gguf-q4_0"]] * 2, bar, builds=builds, **SMALL).artifacts
    assert candidate.metrics.decode_tok_s.median > 0 and candidate.runtime.versions["llama-bench"]


def test_two_files_in_one_build_are_no_noise(made):
    document = bench_bundles([made["gguf-q4_0"], made["gguf-q4_0"]], bar, builds=[{"python": sys.prefix}], **SMALL)
    assert any("the same build" in str(part) for part in render_builds(document))
    larger = document.artifacts[0].metrics.model_copy(update={"file_bytes": 10**9})
    other = [document.artifacts[0].model_copy(update={"metrics": larger}), document.artifacts[1]]
    assert not any("the same" in str(part) for part in render_builds(document.model_copy(update={"artifacts": other})))


def test_two_llama_benches_by_the_command_line(made, binary, saap, tmp_path):
    other, bundle = write_llama_bench(tmp_path / "old-bench"), made["gguf-q4_0"]
    sides = ["--llama-bench", binary, "--against-llama-bench", other]
    code, stdout, stderr = saap("bench", bundle, "--against", bundle, *sides, *QUICK, "--json")
    assert code == 0 and "two loops" not in stderr and "the same build" not in stderr, stderr
    document = json.loads(stdout)
    assert [entry["runtime"]["program"] for entry in document["artifacts"]] == [str(other), str(binary)]
    code, stdout, stderr = saap("bench", bundle, "--against", bundle, "--llama-bench", binary, *QUICK)
    assert code == 0 and "two loops" in stderr


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_what_is_no_environment(made, tmp_path, saap):
    empty = make_environment(tmp_path / "empty")
    old = script(tmp_path / "old", 'echo \'{"version": [3, 9], "python": "3.9.2", "missing": []}\'')
    for place, message in (
        (tmp_path / "none", "no Python at"), (tmp_path, "no Python at"), ("/bin/true", "does not answer as Python"),
        (script(tmp_path / "json", "echo '[1]'"), "does not answer as Python"), (old, "is Python 3.9.2"),
        (empty, f"lacks numpy and pydantic and onnxruntime: onnxruntime needs these packages there: {empty}/bin/python "
                "-m pip install 'numpy' 'pydantic>=2.8' 'onnxruntime'"),
    ):  # fmt: skip
        code, stdout, stderr = saap("bench", made["onnx-int4"], "--python", place, *QUICK)
        assert code == 2 and message in stderr and stderr.count("\n") == 1 and not stdout, stderr


def test_a_runtime_that_lacks_what_is_called(made, tmp_path):
    folder = make_environment(tmp_path / "env", *NEEDED)
    [site] = folder.glob("lib/*/site-packages")
    (site / "llama_cpp.py").write_text("__version__ = '0.1'\n")
    with pytest.raises(SaapError, match=r"in '.*python': .*this version of llama-cpp-python lacks what"):
        bench_bundles([made["gguf-q4_0"]], bar, builds=[{"python": str(folder)}], **SMALL)
    with pytest.raises(SaapError, match="lacks what saap-edge calls"):
        Worker("llama.cpp", next(made["gguf-q4_0"].rglob("*.gguf")), 1, 16, python=folder / "bin" / "python")


BROKEN = {
    "no file": (None, "no program at"), "no llama-bench": ("echo usage", "does not answer as llama-bench"),
    "too old": ("echo --n-prompt --n-gen --output", "has no --n-depth"),
    "no JSON": ("echo --n-prompt --n-gen --n-depth --output", "no rows of llama-bench's JSON"),
    "other tests": (
        'case $1 in --help) echo --n-prompt --n-gen --n-depth --output;; *) echo \'[{"n_prompt": 1}]\';; esac',
        "printed no time of n_prompt 8",
    ),
    "it fails": (
        "case $1 in --help) echo --n-prompt --n-gen --n-depth --output;; *) echo 'error: no such model' >&2; "
        "echo usage >&2; exit 1;; esac", "ended with exit code 1: error: no such model",
    ),
    "it dies": (
        "case $1 in --help) echo --n-prompt --n-gen --n-depth --output;; *) kill -ILL $$;; esac", "ended with SIGILL",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_llama_bench(made, tmp_path, saap, what):
    text, message = BROKEN[what]
    path = tmp_path / "program" if text is None else script(tmp_path / "program", text)
    code, stdout, stderr = saap("bench", made["gguf-q4_0"], "--llama-bench", path, *QUICK)
    assert code == 2 and message in stderr and stderr.count("\n") == 1 and not stdout, stderr


@pytest.mark.parametrize(("name", "options", "message"), [
    ("gguf-q4_0", ["--against-python", "x"], "go with --against"),
    ("gguf-q4_0", ["--against-llama-bench", "x"], "go with --against"),
    ("gguf-q4_0", ["--python", "x", "--llama-bench", "y"], "give --python or --llama-bench"),
    ("gguf-q4_0", ["--llama-bench", "x", "--contexts", "16"], "does not go with --llama-bench"),
    ("onnx-int4", ["--llama-bench", "x"], "onnxruntime has no benchmark program"),
])  # fmt: skip
def test_options_that_do_not_go_together(made, saap, name, options, message):
    code, stdout, stderr = saap("bench", made[name], *options)
    assert code == 2 and message in stderr and stderr.count("\n") == 1 and not stdout, stderr


def test_minutes_by_the_command_line(made, whole, saap, tmp_path):
    """In another environment, too; the gate then judges what the document says."""
    out, budget = tmp_path / "bench.json", tmp_path / "budget.yaml"
    options = ["--minutes", 0.03, "--threads", 1, "--prompt", 8, "--decode", 4]
    code, stdout, stderr = saap("bench", made["onnx-int4"], *options, "--python", whole, "--json", "--out", out)
    assert code == 0 and "0.03 minutes of decoding" in stderr and "of the first" in stderr, stderr
    document = json.loads(stdout)
    assert document == json.loads(out.read_text()) and document["conditions"]["minutes"] == 0.03
    assert document["artifacts"][0]["runtime"]["program"] == str(whole / "bin" / "python")
    (tmp_path / "board.yaml").write_text(dump_yaml(this_machine()))
    budget.write_text("limits: {sustained_pct: {min: 0.1}, sustained_tok_s: {min: 0.1}}")
    code, stdout, stderr = saap("gate", out, "--budget", budget, "--target", tmp_path / "board.yaml", "--json")
    assert code == 0 and [entry["verdict"] for entry in json.loads(stdout)["verdicts"]] == ["pass"] * 2, stderr


@pytest.mark.parametrize(("options", "message"), [
    (["--minutes", 0], "give a time up to 1440 minutes"), (["--minutes", "nan"], "give a time up to"),
    (["--minutes", 1, "--rounds", 7], "--rounds does not go with --minutes"),
    (["--minutes", 1, "--against", "x"], "--against does not go with --minutes"),
    (["--minutes", 0.0001, *QUICK[:-2]], "are too few to compare the first with the last"),
])  # fmt: skip
def test_minutes_that_cannot_be(made, saap, options, message):
    code, stdout, stderr = saap("bench", made["gguf-q4_0"], *options)
    assert code == 2 and message in stderr and stderr.count("\n") == 1 and not stdout, stderr
