"""The OpenVINO engine: torch's logits in its exact form, a user's defaults in the other, honest errors, no events."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from saap_edge.bundle.launch import launch_files
from saap_edge.engines.registry import EXACT, engine_at, engine_named
from saap_edge.engines.worker import Worker
from saap_edge.errors import ParityError, SaapError
from saap_edge.evaluation.parity import relative_error, require, shipped_model
from saap_edge.evaluation.subjects import find_subjects
from saap_edge.evaluation.token_ids import by_openvino, probes
from saap_edge.evaluation.verify import verify_folder
from saap_edge.exporting.write import export_artifacts
from saap_edge.formats import format_of
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.prediction.cost import artifact_cost
from saap_edge.prediction.predict import predict
from saap_edge.targets import load_target
from tests.conftest import TEXT, VOCABULARY, WIDTHS, randomise_projections, tiny_model, write_folder
from tests.exporting.onnx_support import random_tokens, reference
from tests.network import Watched

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("openvino_tokenizers", reason="openvino-tokenizers is not installed")
from saap_edge.engines.openvino import ExactEngine, OpenvinoEngine

TOKENS = random_tokens(VOCABULARY, 24, seed=5)
FORMATS = ("openvino-int4", "openvino-int8")
SUMS = 2e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = randomise_projections(build_pruned(tiny_model("llama"), WIDTHS))
    return write_folder(model, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export")
    export_artifacts(folder, out, FORMATS, "pruned", {"model": "x"}, lambda name: None)
    return out


@pytest.fixture(scope="module")
def artifact(exported: Path) -> Path:
    return exported / "openvino" / "int4"


@pytest.fixture(scope="module")
def expected(folder: Path) -> np.ndarray:
    return reference(shipped_model(folder, "openvino-int4"), TOKENS)


def test_the_exact_form_equals_torch(artifact: Path, expected: np.ndarray) -> None:
    engine = ExactEngine(artifact, 1, len(TOKENS))
    assert relative_error(engine.forward(TOKENS, all_logits=True), expected) < SUMS
    engine.reset()
    steps = np.concatenate([engine.forward([token]).copy() for token in TOKENS])
    assert relative_error(steps, expected) < SUMS
    engine.truncate(9)
    assert relative_error(engine.forward(TOKENS[9:20], all_logits=True), expected[9:20]) < SUMS
    last = engine.forward(TOKENS[20:])
    assert last.shape == (1, VOCABULARY) and relative_error(last, expected[-1:]) < SUMS
    engine.truncate(0)
    assert relative_error(engine.forward(TOKENS[:3]), expected[2:3]) < SUMS


def test_defaults_round_and_are_stated(artifact: Path, expected: np.ndarray) -> None:
    """Nearer than a fault would be (0.025, formats.py), further than sums in another order."""
    engine = OpenvinoEngine(artifact, 2, 64)
    assert 1e-4 < relative_error(engine.forward(TOKENS, all_logits=True), expected) < 0.025
    told, exact = engine.describe(), ExactEngine(artifact, 1, 64).describe()
    assert (told["threads"], told["context"], told["quantisation"]) == (2, 64, "int4")
    assert (told["kv_type"], told["rounded_inputs"]) == ("u8", 32) and told["arithmetic"] in ("f32", "bf16")
    assert (exact["kv_type"], exact["rounded_inputs"], exact["arithmetic"]) == ("f32", 0, "f32")
    assert exact["kv_bytes_per_token"] == told["kv_bytes_per_token"] == (4 + 2 + 1) * 2 * (16 + 8)


def test_more_threads_only_where_they_are_asked_for(artifact: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from saap_edge.engines.openvino import OpenvinoEngine\n"
        "engine = OpenvinoEngine(Path(sys.argv[1]), int(sys.argv[2]), 64); engine.forward(list(range(40)))\n"
        "import time; cpu, wall = time.process_time(), time.perf_counter()\n"
        "for _ in range(20): engine.reset(); engine.forward(list(range(40)))\n"
        "print((time.process_time() - cpu) / (time.perf_counter() - wall))"
    )
    told = subprocess.run([sys.executable, "-c", code, artifact, "1"], capture_output=True, text=True, check=True)
    assert float(told.stdout) < 1.2


def test_bad_calls(artifact: Path) -> None:
    engine = OpenvinoEngine(artifact, 1, 10)
    engine.forward(TOKENS[:8])
    with pytest.raises(ValueError, match="8 tokens and 3 more do not fit into a context of 10"):
        engine.forward(TOKENS[:3])
    engine.forward(TOKENS[:2])  # the refused call changed nothing
    for tokens in ([], [VOCABULARY], [-1]):
        with pytest.raises(ValueError, match="token ids must be in 0 to 319, at least one"):
            engine.forward(tokens)
    with pytest.raises(ValueError, match="cannot keep 11 of 10 tokens"):
        engine.truncate(11)
    with pytest.raises(SaapError, match="context of 129 tokens is outside the model's 1 to 128"):
        OpenvinoEngine(artifact, 1, 129)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda xml: xml[: len(xml) // 2], "cannot be read"), (lambda xml: "<net/>", "no decoder with its KV cache"),
        (lambda xml: xml.replace('context value="128"', 'context value="-1"'), "cannot be read"),
        (lambda xml: xml.replace('variable_shape="?,4,?,16"', 'variable_shape="?,4"'), "cannot be read"),
        (lambda xml: xml.replace('type="Swish"', 'type="Swash"'), "OpenVINO cannot load it"),
        (lambda xml: xml.replace('names="position_ids"', 'names="places"'), "not a decoder"),
        (lambda xml: None, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_files(damage, message: str, artifact: Path, tmp_path: Path) -> None:
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (tmp_path / name).write_bytes((artifact / name).read_bytes())
    path = tmp_path / "openvino_model.xml"
    text = damage(path.read_text())
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(SaapError, match=message) as refused:
        OpenvinoEngine(tmp_path, 1, 8)
    assert "\n" not in str(refused.value)


def test_weights_cut_short(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "openvino_model.xml").write_bytes((artifact / "openvino_model.xml").read_bytes())
    with pytest.raises(SaapError, match="OpenVINO cannot load it"):
        OpenvinoEngine(tmp_path, 1, 8)
    data = (artifact / "openvino_model.bin").read_bytes()
    (tmp_path / "openvino_model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(SaapError, match="OpenVINO cannot load it"):
        OpenvinoEngine(tmp_path, 1, 8)


def test_verify_passes_and_finds_a_fault(exported: Path, folder: Path, tmp_path: Path) -> None:
    parities = verify_folder(exported, folder, TEXT, 1, lambda: None)
    require(parities)
    assert [parity.format for parity in parities] == list(FORMATS)
    assert all(
        parity.max_error < SUMS and parity.tolerance == format_of(parity.format).tolerance for parity in parities
    )
    other = write_folder(randomise_projections(build_pruned(tiny_model("llama"), WIDTHS), seed=2), tmp_path / "other")
    with pytest.raises(ParityError, match=r"pruned openvino-int4 .*, pruned openvino-int8 "):
        require(verify_folder(exported, other, TEXT, 1, lambda: None))


def test_the_engine_is_found_and_what_it_costs(artifact: Path, exported: Path) -> None:
    assert engine_at(artifact).name == "openvino" and engine_named("openvino").verifying == f"openvino{EXACT}"
    assert [subject.engine for subject in find_subjects(artifact, (), 1)] == ["openvino"]
    cost = artifact_cost(artifact)
    assert cost == artifact_cost(exported, "openvino-int4") and cost.format == "openvino-int4"
    found = predict(cost, load_target("n150"), prompt_tokens=16, context=64)
    assert found.decode_tok_s and "OpenVINO (all published rows are of llama.cpp)" in found.basis


def test_a_process_of_its_own_runs_it(artifact: Path, expected: np.ndarray) -> None:
    with Worker(f"openvino{EXACT}", artifact, 1, 64) as worker:
        assert relative_error(worker.logits(TOKENS, "mixed"), expected) < SUMS
        worker.fill(TOKENS)
        assert len(worker.time_steps(3, 4)["decode_s"]) == 4
        # A question with two choices: what they share is run once, after the cache was cut.
        (first, _), (again, _) = worker.score([[[*TOKENS[:9], 7], 9], [TOKENS[:10], 9]])
        chosen = expected[8] - np.log(np.exp(expected[8]).sum())
        np.testing.assert_allclose([first[0], again[0]], [chosen[7], chosen[TOKENS[9]]], atol=1e-4)


def test_its_tokenizer_is_compared(folder: Path) -> None:
    pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    tokenizer = load_tokenizer(folder)
    spec = read_spec(folder)
    texts = probes(tokenizer, TEXT, spec.vocab_size)
    assert by_openvino(folder, spec, texts, tokenizer) == []
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert "OpenVINO GenAI's own tokenizer gives other token ids" in by_openvino(folder, spec, texts, tokenizer)[0]


def test_a_chat_in_its_own_entry_point(tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    path = folder / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    export_artifacts(folder, tmp_path, ("openvino-int8",), "dense", {}, lambda name: None)
    with Worker("openvino chat", tmp_path / "openvino/int8", 1, 64) as worker:
        answer = worker.chat([{"role": "user", "content": "The quick brown"}], [], 6)
        assert 0 < answer["tokens"] <= 6 and (answer["ended"] or answer["tokens"] == 6)
        with pytest.raises(SaapError, match="do not fit into a context of 64 tokens"):
            worker.chat([{"role": "user", "content": "The quick brown"}], [], 63)


def test_run_py_of_a_bundle(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai", reason="openvino-genai is not installed")
    files = launch_files("openvino-int4", "model-int4", 1, 128, "The quick")
    assert "openvino-genai==" in files["requirements.txt"] and "openvino-tokenizers==" in files["requirements.txt"]
    (tmp_path / "run.py").write_text(files["run.py"])
    (tmp_path / "model-int4").symlink_to(artifact)
    command = [sys.executable, tmp_path / "run.py", "The quick brown fox", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("The quick brown fox") and len(done.stdout.strip()) > len("The quick brown fox")


def test_nothing_is_sent(artifact: Path, tmp_path: Path) -> None:
    """The package sends an event as it is imported, and leaves an identity at home, unless it is kept out."""
    watched = Watched(tmp_path)
    code = (
        "import sys; from pathlib import Path; from saap_edge.engines.worker import Worker\n"
        "with Worker('openvino', Path(sys.argv[1]), 1, 32) as worker: worker.time([1, 2, 3], 4)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, artifact], check=True, env=watched.environment, cwd=root)
    assert watched.network() == [] and "openvino_ga_cid" not in watched.in_home()


def test_needs_nothing_of_the_compiler() -> None:
    code = (
        "import sys, saap_edge.engines.openvino\n"
        "assert not {'torch', 'transformers', 'safetensors', 'onnx', 'openvino'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
