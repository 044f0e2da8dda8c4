"""What is in a bundle, what cannot be bundled, and that what fails leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from saap_edge import cli
from saap_edge.artifacts import engine_of, read_manifest
from saap_edge.bundle import write as writing
from saap_edge.bundle.check import check_bundle
from saap_edge.bundle.find import base_licence
from saap_edge.bundle.launch import launch_files
from saap_edge.bundle.schema import read_bundle
from saap_edge.bundle.write import write_bundle
from saap_edge.engines.options import EngineOptions
from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError, SaapError
from saap_edge.exporting.write import export_artifacts
from saap_edge.measuring.bundles import bench_bundles
from saap_edge.recipe import bundled_model
from tests.bundle.conftest import FORMATS, FRONT_MATTER, write_stage
from tests.conftest import WIDTHS
from tests.network import Watched


def test_contents(made, run):
    folder = made["gguf-q4_0"]
    bundle = read_bundle(folder)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {file.path for file in bundle.files} | {"bundle.json"}
    assert {"model-q4_0.gguf", "LICENSE", "tokenizer/tokenizer.json", "run.sh", "requirements.txt"} <= names
    assert "tokenizer/tokenizer.json" not in {file.path for file in read_bundle(made["onnx-int4"]).files}
    artifact = next(a for a in read_manifest(run / "stages" / "export-02").artifacts if a.format == "gguf-q4_0")
    assert artifact.sha256 in {file.sha256 for file in bundle.files}
    assert (bundle.role, bundle.board.name, bundle.board.threads) == ("pruned", "rpi5", 4)
    assert bundle.layers == [(layer.heads, layer.kv_heads, layer.ffn) for layer in WIDTHS]
    assert bundle.lineage == {"recover": "recover-01", "export": "export-02"}
    assert (bundle.base_licence.name, bundle.base_licence.files) == ("apache-2.0", ["LICENSE"])
    parity = json.loads((run / "stages" / "verify-03" / "verify.json").read_text())[0]
    assert (bundle.answers.error, bundle.answers.tolerance) == (parity["max_error"], parity["tolerance"])
    assert "n_threads=4, n_threads_batch=4" in (folder / "run.py").read_text()
    assert '"intra_op_num_threads": 4' in (made["onnx-int4"] / "run.py").read_text()
    assert '"chunk_size": 64' in (made["onnx-int4"] / "run.py").read_text()
    assert "saap-edge[device]" in (folder / "requirements.txt").read_text()
    assert str(run.parent) not in (folder / "bundle.json").read_text(), "no path of the machine that made it"


def test_the_same_twice(made, run, tmp_path):
    write_bundle(run, tmp_path / "gguf-q4_0")  # the format is the board's own
    for path in made["gguf-q4_0"].rglob("*"):
        if path.is_file():
            assert (tmp_path / "gguf-q4_0" / path.relative_to(made["gguf-q4_0"])).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("stage", ["export-02", "verify-03"])
def test_stage_folders_do_too(run, tmp_path, stage):
    bundle = write_bundle(run / "stages" / stage, tmp_path / "b", "onnx-int4", "host")
    assert (bundle.format, bundle.board.name) == ("onnx-int4", "host")
    assert check_bundle(tmp_path / "b").exit_code == 0


def test_refusals_leave_nothing(run, tmp_path):
    def refusal(path: Path, out: str, *options: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SaapError) as error:
            write_bundle(path, tmp_path / out, *options)
        assert sorted(tmp_path.rglob("*")) == before
        return str(error.value)

    (tmp_path / "there").mkdir()
    assert "in the way" in refusal(run, "there")
    assert "gguf-q4_0, onnx-int4" in refusal(run, "new/b", "gguf-q8_0")
    assert "take onnx-fp32" in refusal(run, "b", "onnx-optimum")
    assert "rpi5" in refusal(run, "b", "gguf-q4_0", "toaster")
    assert "not a stage folder" in refusal(tmp_path, "b")
    assert "has no export" in refusal(run / "stages" / "recover-01", "b")
    shutil.copytree(run / "stages", tmp_path / "stages")
    shutil.move(tmp_path / "stages" / "verify-03", tmp_path / "away")
    assert "never verified" in refusal(tmp_path / "stages" / "export-02", "b")
    shutil.move(tmp_path / "away", tmp_path / "stages" / "verify-03")
    path = tmp_path / "stages" / "export-02" / "gguf" / "model-q4_0.gguf"
    path.write_bytes(path.read_bytes()[:-1])
    assert "changed since export" in refusal(tmp_path / "stages" / "export-02", "b")


@pytest.mark.parametrize(("at", "name"), [("_record", "b"), ("pack", "b.tar.zst")])
def test_what_fails_half_way_leaves_nothing(run, tmp_path, monkeypatch, at, name):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "file")

    monkeypatch.setattr(writing, at, full)
    with pytest.raises(OSError, match="No space"):
        write_bundle(run, tmp_path / "new" / name)
    assert not any(tmp_path.iterdir())


def test_a_tokenizer_that_does_not_belong_is_not_bundled(run, tmp_path):
    stages = Path(shutil.copytree(run / "stages", tmp_path / "stages"))
    path = stages / "recover-01" / "model" / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["merges"] = document["model"]["merges"][:5]
    path.write_text(json.dumps(document))
    with pytest.raises(ParityError, match="splits the recorded text into other tokens"):
        write_bundle(stages / "export-02", tmp_path / "b", "gguf-q4_0")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(("readme", "name"), [
    (FRONT_MATTER, "apache-2.0"), ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
    ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"), ("# No front matter\nlicense: mit\n", None),
    ("---\nlicense: [\n---\n", None), ("---\n- a\n---\n", None), ("---\nlicense: mit\n", None), (None, None),
])  # fmt: skip
def test_licence_of_the_base_model(tmp_path, readme, name):
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    (tmp_path / "NOTICE").write_text("x")
    assert base_licence(tmp_path).model_dump() == {"name": name, "files": ["NOTICE"]}


def bundles_of(model: Path, root: Path, formats: tuple[str, ...] = FORMATS) -> Path:
    """Bundles of a dense model, by format."""
    dense, verify = root / "stages" / "dense-01", root / "stages" / "verify-02"
    dense.mkdir(parents=True)
    verify.mkdir()
    export_artifacts(model, dense, formats, "dense", {"model": "aa"}, lambda _: None)
    parities = [
        {"format": name, "role": "dense", "max_error": 0.007, "tolerance": 0.014, "passed": True} for name in formats
    ]
    (verify / "verify.json").write_text(json.dumps(parities))
    write_stage(dense, [], model)
    write_stage(verify, [dense.name], model)
    for name in formats:
        write_bundle(dense, root / name, name)
    return root


@pytest.fixture(scope="module")
def readable(tmp_path_factory):
    """Those of the model that ships with the package: it continues a text with words."""
    return bundles_of(bundled_model(), tmp_path_factory.mktemp("readable"))


def run_sh(folder: Path, *arguments: str, **environment: str) -> str:
    environment = (environment if "HOME" in environment else os.environ | environment) | {"PYTHON": sys.executable}
    result = subprocess.run(
        [folder / "run.sh", *arguments], capture_output=True, text=True, cwd="/", env=environment
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", FORMATS)
def test_run_continues_a_text(readable, name):
    """The stock runtimes' own Python packages say what our engine says."""
    folder, text = readable / name, 'The "first" $HOME of the'
    bundle = read_bundle(folder)
    tokenizer = Tokenizer.from_file(str(folder / bundle.tokenizer.file))
    ids = tokenizer.encode(text).ids
    with Worker(engine_of(name), folder / bundle.model, 1, 64) as worker:
        if engine_of(name) == "llama.cpp":
            ids = worker.tokenize(text, True, False)
        expected = tokenizer.decode(worker.generate(ids, 12))
    assert run_sh(folder, text, "12").rstrip("\n") == text + expected
    assert bundle.answers.prompt in run_sh(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_run_asks_for_no_network(readable, name, tmp_path):
    """The same by someone who opted in shows that it would be seen."""
    watched = Watched(tmp_path)
    run_sh(readable / name, "The", "2", **watched.environment)
    assert watched.network() == [] and "deviceid" not in watched.in_home()
    if name.startswith("onnx"):
        run_sh(readable / name, "The", "2", **watched.environment, SAAP_EDGE_TELEMETRY="1")
        assert {"deviceid", "onnxruntime-genai.db"} <= set(watched.in_home())


def test_run_prefers_llama_cpps_own_program(readable, tmp_path):
    program = tmp_path / "llama-completion"
    program.write_text('#!/bin/sh\npwd\nfor a in "$@"; do echo "[$a]"; done\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    folder, text = readable / "gguf-q4_0", 'it\'s  a "test" `x` $y'
    where, *arguments = run_sh(folder, text, "7", PATH=f"{tmp_path}:{os.environ['PATH']}").splitlines()
    assert Path(where) == folder and f"[{text}]" in arguments
    pairs = dict(pairwise(arguments))
    assert (pairs["[-m]"], pairs["[-t]"], pairs["[-n]"], pairs["[-c]"]) == ("[model-q4_0.gguf]", "[4]", "[7]", "[512]")
    assert arguments[0] == "[--no-mmap]"  # llama.cpp repacks Q4_0; this program's help does not name --load-mode
    program.write_text('#!/bin/sh\necho "--load-mode MODE"\nfor a in "$@"; do echo "[$a]"; done\n')
    arguments = run_sh(folder, text, "7", PATH=f"{tmp_path}:{os.environ['PATH']}").splitlines()
    assert arguments[1:3] == ["[--load-mode]", "[none]"]


def test_a_type_of_cache_goes_to_run_sh_and_bench(readable, tmp_path):
    """run.py, llama.cpp's own program and a measurement ask for it; the answers are those of the file alone."""
    folder, asked = tmp_path / "small", EngineOptions(kv="q4_0", ubatch=64)
    bundle, plain = (
        write_bundle(readable / "stages" / "dense-01", folder, "gguf-q4_0", options=asked),
        read_bundle(readable / "gguf-q4_0"),
    )
    assert (bundle.kv, plain.kv) == ("q4_0", None) and bundle.answers == plain.answers
    tokenizer = Tokenizer.from_file(str(folder / bundle.tokenizer.file))
    with Worker("llama.cpp", folder / bundle.model, 1, 64, asked) as worker:
        expected = tokenizer.decode(worker.generate(worker.tokenize("The river", True, False), 24))
    assert run_sh(folder, "The river", "24").rstrip("\n") == "The river" + expected
    script, other = ((place / "run.sh").read_text() for place in (folder, readable / "gguf-q4_0"))
    assert script.count("-fa on -ctk q4_0 -ctv q4_0 -ub 64") == 2 and "-ctk" not in other and "-ub" not in other
    small = {"threads": 1, "prompt_tokens": 8, "decode_tokens": 4, "rounds": 3}
    document = bench_bundles([folder], lambda *_: nullcontext(lambda _: None), **small)
    assert (document.conditions.kv, document.conditions.ubatch) == ("q4_0", 64)
    assert document.artifacts[0].metrics.kv_bytes_per_token * 64 == 18 * bundle.kv_bytes_per_token


def test_a_prompt_in_pieces_goes_to_run_py_of_an_onnx_folder(readable, tmp_path):
    folder = tmp_path / "pieces"
    write_bundle(readable / "stages" / "dense-01", folder, "onnx-int4", options=EngineOptions(ubatch=2))
    assert '"chunk_size": 2}' in (folder / "run.py").read_text()
    text = "The river was wide"
    assert run_sh(folder, text, "12") == run_sh(readable / "onnx-int4", text, "12")


@pytest.mark.parametrize("step", [
    {"type": "Digits", "individual_digits": True},  # which genai leaves out
    {"type": "Split", "pattern": {"Regex": "\\p{N}+"}, "behavior": "Isolated", "invert": False},  # which it cannot read
], ids=["other ids", "not read"])  # fmt: skip
def test_ids_are_those_of_tokenizer_json_where_genai_reads_it_otherwise(readable, tmp_path, step):
    model = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    document = json.loads((model / "tokenizer.json").read_text())
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, document["pre_tokenizer"]]}
    (model / "tokenizer.json").write_text(json.dumps(document))
    folder = bundles_of(model, tmp_path / "out", ("onnx-int4",)) / "onnx-int4"
    text, tokenizer = "In  1 7 of  23 the", Tokenizer.from_file(str(model / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert ids != Tokenizer.from_file(str(bundled_model() / "tokenizer.json")).encode(text).ids
    with Worker("onnxruntime", folder / "model-int4", 1, 64) as worker:
        expected = tokenizer.decode(worker.generate(ids, 12))
    assert run_sh(folder, text, "12").rstrip("\n") == text + expected
    needed = [(place / "requirements.txt").read_text() for place in (folder, readable / "onnx-int4")]
    assert ["tokenizers==" in each for each in needed] == [True, False]


def test_only_files_that_llama_cpp_repacks_are_read_without_a_mapping():
    scripts = {name: launch_files(f"gguf-{name}", "m.gguf", 4, 512, "Once") for name in ("q4_0", "q8_0")}
    assert ["use_mmap=False" in files["run.py"] for files in scripts.values()] == [True, False]
    for words in ("load-mode", "export GLIBC_TUNABLES"):
        assert [words in files["run.sh"] for files in scripts.values()] == [True, False]


def test_command_line(run, tmp_path, monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["saap-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    out = tmp_path / "b.tar.zst"
    code, stdout, stderr = call("bundle", run, "--format", "gguf-q4_0", "--out", out, "--json")
    assert code == 0 and json.loads(stdout)["format"] == "gguf-q4_0"
    assert "Raspberry Pi 5" in stderr and "apache-2.0" in stderr
    code, stdout, stderr = call("verify", out, "--json")
    assert code == 0 and json.loads(stdout)["exit_code"] == 0 and "ok" in stderr
    out.write_bytes(out.read_bytes()[:-9])
    code, stdout, stderr = call("verify", out)
    assert code == 2 and stdout == "" and stderr.startswith("error:") and "Traceback" not in stderr
    code, _, stderr = call("verify", tmp_path)
    assert code == 2 and "neither a bundle" in stderr
