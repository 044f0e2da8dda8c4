"""A whole bundle passes, and every way of not being whole is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saap_edge.artifacts import engine_of
from saap_edge.bundle import check as checking
from saap_edge.bundle.archive import pack
from saap_edge.bundle.check import TIE, check_bundle, columns
from saap_edge.bundle.schema import LOGITS_FILE, read_bundle
from saap_edge.engines.worker import Worker
from saap_edge.exporting.write import export_artifacts
from saap_edge.model.folder import load_model
from tests.bundle.conftest import amend
from tests.conftest import TEXT, write_folder


def model_file(folder: Path) -> Path:
    """The file with the weights."""
    path = folder / read_bundle(folder).model
    return path if path.is_file() else path / "model.onnx.data"


def only_problem(folder: Path) -> str:
    check = check_bundle(folder)
    assert check.exit_code == 2 and len(check.problems) == 1, check
    assert "\n" not in check.problems[0]
    return check.problems[0]


def test_a_whole_bundle_answers_as_recorded(copy):
    check = check_bundle(copy)
    assert (check.exit_code, check.problems, check.differences, check.notes) == (0, [], [], [])
    answers = check.bundle.answers
    assert check.error < 0.2 * check.tolerance and check.tolerance == answers.error + answers.tolerance


def test_recorded_answers_are_the_runtimes(copy):
    """Against the runtime asked directly, over the whole vocabulary."""
    bundle = read_bundle(copy)
    answers = bundle.answers
    with Worker(engine_of(bundle.format), copy / bundle.model, 1, 64) as worker:
        prompt, rest = answers.tokens[: answers.prompt_tokens], answers.tokens[answers.prompt_tokens :]
        assert worker.generate(prompt, len(rest)) == rest
        logits = worker.logits(answers.tokens, "steps")
    np.testing.assert_allclose(np.load(copy / LOGITS_FILE), logits[:, columns(bundle.vocab_size)], atol=0.05)
    ordered = np.sort(logits, axis=1)
    margins = (ordered[:, -1] - ordered[:, -2]) / logits.std(axis=1)
    np.testing.assert_allclose(answers.margins, margins, atol=0.05)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "said"), [(cut, "cut short"), (flip, "sha256 differs"), (Path.unlink, "missing")])
def test_damaged_files_are_named_and_never_loaded(copy, monkeypatch, damage, said):
    monkeypatch.setattr(checking, "Worker", None)
    for path in (model_file(copy), copy / LOGITS_FILE, copy / read_bundle(copy).tokenizer.file, copy / "LICENSE"):
        kept = path.read_bytes()
        damage(path)
        message = only_problem(copy)
        assert said in message and path.name in message
        path.write_bytes(kept)


def test_what_does_not_belong(copy):
    (copy / "more").mkdir()
    (copy / "more" / "notes.txt").write_text("x")
    assert "'more/notes.txt' does not belong" in only_problem(copy)
    shutil.rmtree(copy / "more")
    (copy / "more").symlink_to("/etc")
    assert "'more' does not belong" in only_problem(copy)
    (copy / "more").unlink()
    path = model_file(copy)
    shutil.move(path, copy.parent / "elsewhere")
    path.symlink_to(copy.parent / "elsewhere")
    assert "not a plain file" in only_problem(copy)


@pytest.mark.parametrize(("text", "said"), [
    ("{", "not a bundle's manifest"), ("[]", "damaged"), ("{}", "damaged"), ('{"version": 2}', "version 2"),
    ("[" * 100_000, "not a bundle's manifest"), ("\xff", "not a bundle's manifest"),
])  # fmt: skip
def test_malformed_manifest(copy, text, said):
    (copy / "bundle.json").write_bytes(text.encode("latin-1"))
    assert said in only_problem(copy)


@pytest.mark.parametrize(("changes", "said"), [
    ({"model": "../model"}, "model"), ({"model": "other.gguf"}, "not listed"), ({"more": 1}, "more"),
    ({"version": 0}, "version"), ({"vocab_size": 321}, "vocab_size"), ({"kv_bytes_per_token": 7}, "kv_bytes"),
])  # fmt: skip
def test_manifest_that_does_not_match(copy, changes, said):
    amend(copy, **changes)
    assert said in only_problem(copy)


def retrain(path: Path) -> None:
    """Another tokenizer of the same size."""
    from tokenizers import Tokenizer, trainers

    tokenizer = Tokenizer.from_file(str(path))
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(["zebras quarrel over jazz vouchers, exactly 42 of them " * 40], trainer)
    tokenizer.save(str(path))


def grow(path: Path) -> None:
    document = json.loads(path.read_text())
    document["model"]["vocab"]["more"] = 5000
    path.write_text(json.dumps(document))


def respell(path: Path) -> None:
    """The same vocabulary, put together otherwise."""
    document = json.loads(path.read_text())
    document["model"]["merges"] = document["model"]["merges"][:5]
    path.write_text(json.dumps(document))


def empty(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize("change", [retrain, grow, respell, empty])
def test_a_tokenizer_that_does_not_belong(copy, change):
    path = copy / read_bundle(copy).tokenizer.file
    change(path)
    amend(copy)
    assert path.name in only_problem(copy)


def test_a_gguf_with_another_tokenizer(made, tmp_path, run):
    folder = Path(shutil.copytree(made["gguf-q4_0"], tmp_path / "bundle"))
    other = Path(shutil.copytree(run / "model" if (run / "model").exists() else run.parent / "pruned", tmp_path / "m"))
    retrain(other / "tokenizer.json")
    replace_model(folder, other, tmp_path)
    assert "llama.cpp splits" in only_problem(folder)


def replace_model(folder: Path, source: Path, scratch: Path) -> None:
    bundle = read_bundle(folder)
    out = scratch / "again"
    out.mkdir()
    [artifact] = export_artifacts(source, out, (bundle.format,), "pruned", {}, lambda _: None).artifacts
    target = folder / bundle.model
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    shutil.move(out / artifact.path, target)
    amend(folder)


def test_an_artifact_that_answers_otherwise(copy, tmp_path, run):
    """Two heads of one layer swapped: the same shapes, another model."""
    import torch

    model = load_model(run.parent / "pruned")
    with torch.no_grad():
        weight = model.model.layers[1].self_attn.q_proj.weight
        weight.copy_(torch.cat((weight[16:32], weight[:16], weight[32:])))
    replace_model(copy, write_folder(model, tmp_path / "faulty"), tmp_path)
    check = check_bundle(copy)
    assert check.exit_code == 1 and not check.problems
    assert "relative error" in check.differences[0] and check.error > check.tolerance
    assert not any("\n" in line for line in check.differences)


def test_another_likeliest_token_counts_only_where_it_was_ahead(copy):
    bundle = read_bundle(copy)
    answers = bundle.answers.model_dump(mode="json")
    limit = TIE * (answers["error"] + answers["tolerance"])
    answers["likeliest"][5] = (answers["likeliest"][5] + 1) % bundle.vocab_size
    for margin, code in ((0.9 * limit, 0), (1.1 * limit, 1)):
        answers["margins"][5] = margin
        amend(copy, answers=answers)
        check = check_bundle(copy)
        assert check.exit_code == code, check
        assert code == 0 or "after 6 tokens" in check.differences[0]


@pytest.mark.parametrize("logits", [np.zeros((3, 3), np.float32), np.full((48, 320), np.nan, np.float32), None])
def test_recorded_logits_of_another_shape(copy, logits):
    if logits is None:
        (copy / LOGITS_FILE).write_bytes(b"no array")
    else:
        np.save(copy / LOGITS_FILE, logits)
    amend(copy)
    assert LOGITS_FILE in only_problem(copy)


def test_an_artifact_that_does_not_load(copy):
    path = model_file(copy)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    amend(copy)
    assert only_problem(copy)


BOARD = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import os
os.cpu_count = lambda: 1
from saap_edge import cli
for path in sys.argv[1:]:
    sys.argv = ["saap-edge", "verify", path, "--json"]
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code, stop.code
"""
COMPILER = [
    "torch",
    "transformers",
    "safetensors",
    "accelerate",
    "gguf",
    "onnx",
    "onnx_ir",
    "huggingface_hub",
    "jinja2",
]


@pytest.mark.parametrize("more", [[], ["tokenizers"]])
def test_verify_needs_nothing_of_the_compiler(copy, more):
    pack(copy, copy.parent / "b.tar.zst")
    code = BOARD.format(blocked=set(COMPILER + more))
    paths = [str(copy), str(copy.parent / "b.tar.zst")]
    result = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(documents) == len(paths)
    for document in documents:
        assert document["exit_code"] == 0 and document["board"] == "rpi5"
        assert len(document["notes"]) == len(more)


def test_columns():
    assert columns(320).tolist() == list(range(320))
    wide = columns(151_936)
    assert len(set(wide.tolist())) == 1024 and wide[0] == 0 and wide[-1] == 151_935


def test_text_is_long_enough(made):
    for folder in made.values():
        answers = read_bundle(folder).answers
        assert len(answers.tokens) == 48 and answers.prompt_tokens == 24 and answers.prompt not in TEXT
