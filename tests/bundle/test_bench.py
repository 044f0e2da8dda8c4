"""Measuring bundles: alone, one against another, by the command line; and what is refused."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager, nullcontext

import pytest

from saap_edge.bundle.archive import pack
from saap_edge.bundle.check import check_bundle
from saap_edge.errors import SaapError
from saap_edge.measuring.bundles import bench_bundles
from tests.bundle.conftest import amend
from tests.test_cli import call

SMALL = {"threads": 1, "prompt_tokens": 8, "decode_tokens": 4, "rounds": 3}


@contextmanager
def bar(what, total):
    done = []
    yield done.append
    assert sum(done) == total, "the bar ends where it should"


@pytest.fixture(autouse=True, scope="module")
def one_load():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saap_edge.measuring.measure.LOADS", 1)
        yield


def test_a_bundle_alone(made):
    document = bench_bundles([made["onnx-int4"]], bar, contexts=(32,), **SMALL)
    assert isinstance(document["conditions"]["spinning"], bool)
    [entry] = document["artifacts"]
    assert (entry["name"], entry["role"]) == ("candidate onnx-int4", "candidate") and not document["comparisons"]
    recorded = json.loads((made["onnx-int4"] / "bundle.json").read_text())
    assert entry["metrics"]["kv_bytes_per_token"] == recorded["kv_bytes_per_token"]
    assert entry["metrics"]["parameters"] > 10_000 and entry["metrics"]["contexts"][0]["context"] == 32


def test_against_another_format_of_the_same_model_from_an_archive(made, tmp_path):
    pack(made["gguf-q4_0"], tmp_path / "main.tar.zst")
    document = bench_bundles([made["onnx-int4"], tmp_path / "main.tar.zst"], bar, **SMALL)
    assert [entry["role"] for entry in document["artifacts"]] == ["baseline", "candidate"]
    [pair] = document["comparisons"]
    assert (pair["base"], pair["candidate"]) == ("baseline gguf-q4_0", "candidate onnx-int4")
    assert pair["ratios"]["decode_tok_s"]["rounds"] == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "main.tar.zst"], "what was unpacked is gone"


@pytest.mark.parametrize("name", ["gguf-q4_0", "onnx-int4"])
def test_a_model_that_was_cut_before_it_was_packed(made, tmp_path, name):
    """Every checksum is right: the file's own header says that something is missing, before anything runs."""
    folder = shutil.copytree(made[name], tmp_path / "bundle")
    model = next(path for path in folder.rglob("model*") if path.suffix in (".gguf", ".data"))
    model.write_bytes(model.read_bytes()[:-200])
    amend(folder)
    with pytest.raises(SaapError, match="is cut short"):
        bench_bundles([folder], bar, **SMALL)
    check = check_bundle(folder)
    assert check.exit_code == 2 and len(check.problems) == 1 and "\n" not in check.problems[0]


def other_model(folder):
    amend(folder, lineage={"model": "b" * 64})


def other_vocabulary(folder):
    tokenizer = json.loads((folder / "bundle.json").read_text())["tokenizer"]
    amend(folder, tokenizer=tokenizer | {"ids": tokenizer["ids"][::-1], "pieces": tokenizer["pieces"][::-1]})


@pytest.mark.parametrize("change", [other_model, other_vocabulary])
def test_another_model_is_no_baseline(made, tmp_path, change):
    folders = [shutil.copytree(made["gguf-q4_0"], tmp_path / name) for name in ("new", "old")]
    if change is other_model:
        amend(folders[0], lineage={"model": "a" * 64})
    change(folders[1])
    with pytest.raises(SaapError, match="made from different models"):
        bench_bundles(folders, bar, **SMALL)


def test_a_changed_byte_is_found_before_anything_runs(copy, monkeypatch):
    monkeypatch.setattr("saap_edge.measuring.bundles.measure", None)
    model = next(path for path in copy.rglob("*") if path.suffix in (".gguf", ".data"))
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(SaapError, match=r"damaged.*sha256"):
        bench_bundles([copy], bar, **SMALL)


def test_more_tokens_than_the_model_holds(copy):
    with pytest.raises(SaapError, match="holds sequences of 128 tokens, 132 are asked for"):
        bench_bundles([copy], bar, contexts=(128,), **SMALL)


@pytest.mark.parametrize(("name", "message"), [
    ("onnx-int4", "KV cache q8_0: onnxruntime cannot"), ("gguf-q4_0", "the heads of this model have 16: take f16"),
])  # fmt: skip
def test_a_cache_that_cannot_be(made, name, message):
    with pytest.raises(SaapError, match=message):
        bench_bundles([made[name]], lambda *_: nullcontext(lambda _: None), kv="q8_0", **SMALL)


def test_bundles_for_two_types_of_cache_are_not_compared_by_chance(made, tmp_path):
    folder = shutil.copytree(made["gguf-q4_0"], tmp_path / "other")
    amend(folder, kv="q8_0")
    with pytest.raises(SaapError, match=r"for a KV cache in q8_0, .* for the runtime's own: say --kv"):
        bench_bundles([folder, made["gguf-q4_0"]], bar, **SMALL)
    assert bench_bundles([folder, made["gguf-q4_0"]], bar, kv="f16", **SMALL).conditions.kv == "f16"


@pytest.fixture
def saap(monkeypatch, capsys):
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def test_by_the_command_line(made, saap, tmp_path):
    options = ["--threads", 1, "--prompt", 8, "--decode", 4, "--rounds", 3, "--contexts", "16"]
    out = tmp_path / "bench.json"
    code, stdout, stderr = saap("bench", made["gguf-q4_0"], *options, "--out", out, "--json")
    assert code == 0, stderr
    assert json.loads(stdout) == json.loads(out.read_text()) and list(tmp_path.iterdir()) == [out]
    assert "candidate gguf-q4_0" in stderr and "decoding when the context holds" in stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (["--contexts", "a,b"], "give numbers of tokens"), (["--contexts", "0"], "give numbers of tokens"),
    (["--against", "none.tar.zst"], "no bundle 'none.tar.zst'"), (["--out", "none/bench.json"], "folder that exists"),
])  # fmt: skip
def test_bad_options_are_named(made, saap, arguments, message):
    code, stdout, stderr = saap("bench", made["gguf-q4_0"], *arguments)
    assert code == 2 and message in stderr and stderr.count("\n") == 1 and not stdout


def test_what_is_no_bundle(run, saap, tmp_path):
    code, _, stderr = saap("bench", tmp_path)
    assert code == 2 and "neither a bundle nor a stage folder" in stderr
    code, _, stderr = saap("bench", run / "stages" / "verify-03", "--rounds", 3)
    assert code == 2 and "its recipe says how to measure" in stderr


def test_no_torch_is_needed(made):
    code = (
        "import sys; from contextlib import nullcontext; from pathlib import Path\n"
        "import saap_edge.measuring.measure as measure; measure.LOADS = 1\n"
        "from saap_edge.measuring.bundles import bench_bundles\nfrom saap_edge.report.bench import render_bench\n"
        f"document = bench_bundles([Path({str(made['gguf-q4_0'])!r})], lambda *_: nullcontext(lambda n: None),"
        f" **{SMALL})\nrender_bench(document)\n"
        "print([name for name in ('torch', 'transformers', 'gguf', 'onnx', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
