"""The ONNX Runtime engine: same logits as transformers, honest errors, nothing heavy imported."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from saap_edge.engines.base import Engine
from saap_edge.engines.onnxruntime import OnnxRuntimeEngine
from saap_edge.errors import SaapError
from saap_edge.exporting.onnx import write_onnx
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model
from tests.conftest import VOCABULARY, tiny_model, write_folder
from tests.exporting.onnx_support import PlainSession, random_tokens, reference

TOKENS = random_tokens(VOCABULARY, 24, seed=5)
PAGES = Path("/proc/self/pagemap")


@pytest.fixture(scope="module")
def onnx_folder(pruned_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engine-onnx")
    write_onnx(pruned_folder, out, "fp32")
    return out


def test_prefill_steps_and_chunks_equal_transformers(pruned_folder: Path, onnx_folder: Path) -> None:
    expected = reference(load_model(pruned_folder), TOKENS)
    engine: Engine = OnnxRuntimeEngine(onnx_folder, 1, len(TOKENS))
    np.testing.assert_allclose(engine.forward(TOKENS, all_logits=True), expected, atol=1e-4)
    engine.reset()
    steps = np.concatenate([engine.forward([token]).copy() for token in TOKENS])
    np.testing.assert_allclose(steps, expected, atol=1e-4)
    engine.reset()
    # A chunk on top of a past must stay causal: its first tokens must not see its last.
    first = engine.forward(TOKENS[:9])
    assert first.shape == (1, VOCABULARY)
    np.testing.assert_allclose(first[0], expected[8], atol=1e-4)
    np.testing.assert_allclose(engine.forward(TOKENS[9:20], all_logits=True), expected[9:20], atol=1e-4)
    np.testing.assert_allclose(engine.forward(TOKENS[20:])[0], expected[-1], atol=1e-4)


@pytest.mark.parametrize("number", [1, 7, 8, 23, 24, 500])
def test_a_prompt_in_pieces_has_the_answers_of_a_whole_one(pruned_folder: Path, onnx_folder: Path, number: int) -> None:
    expected = reference(load_model(pruned_folder), TOKENS)
    engine = OnnxRuntimeEngine(onnx_folder, 1, len(TOKENS), number)
    assert engine.describe()["ubatch"] == min(number, len(TOKENS))
    ran = []
    run = engine._run
    engine._run = lambda ids, past, logits: (ran.append((past, ids.shape[1])), run(ids, past, logits))[1]  # type: ignore[method-assign]
    np.testing.assert_allclose(engine.forward(TOKENS, all_logits=True), expected, atol=1e-4)
    assert ran == [(start, min(number, 24 - start)) for start in range(0, 24, number)]
    engine.reset()
    engine.forward(TOKENS[:3])
    np.testing.assert_allclose(engine.forward(TOKENS[3:])[0], expected[-1], atol=1e-4)


def test_reset_forgets_and_two_threads_agree(onnx_folder: Path) -> None:
    engine = OnnxRuntimeEngine(onnx_folder / "model.onnx", 2, 64)
    engine.forward(TOKENS)
    engine.reset()
    got = engine.forward(TOKENS[:6], all_logits=True)
    np.testing.assert_allclose(got, PlainSession(onnx_folder).forward(TOKENS[:6]), atol=1e-4)


def test_cost_and_description(pruned_folder: Path, onnx_folder: Path) -> None:
    engine = OnnxRuntimeEngine(onnx_folder, 1, 40)
    assert engine.kv_bytes_per_token() == read_spec(pruned_folder).kv_bytes_per_token(4)
    assert engine.vocab_size == VOCABULARY
    description = engine.describe()
    assert description["provider"] == "CPUExecutionProvider"
    assert (description["threads"], description["context"], description["quantisation"]) == (1, 40, "fp32")


@pytest.mark.skipif(not PAGES.exists(), reason="only Linux tells which pages are in memory")
def test_the_cache_takes_memory_as_it_fills(onnx_folder: Path) -> None:
    """A loaded engine holds no page of it; a prompt fills those that it writes to."""
    engine = OnnxRuntimeEngine(onnx_folder, 1, 96)
    assert [in_memory(buffer) for buffer in engine._cache] == [0] * len(engine._cache)
    engine.forward(TOKENS[:8])
    assert all(in_memory(buffer) for buffer in engine._cache)


def in_memory(array: np.ndarray) -> int:
    """How many pages of an array are in memory: the highest bit of their entries of 8 bytes."""
    first = array.ctypes.data // mmap.PAGESIZE
    with PAGES.open("rb", buffering=0) as present:
        present.seek(8 * first)
        entries = present.read(8 * ((array.ctypes.data + array.nbytes - 1) // mmap.PAGESIZE - first + 1))
    return sum(byte >> 7 for byte in entries[7::8])


def test_bad_calls(onnx_folder: Path) -> None:
    engine = OnnxRuntimeEngine(onnx_folder, 1, 10)
    engine.forward(TOKENS[:8])
    with pytest.raises(ValueError, match="8 tokens and 3 more do not fit into a context of 10"):
        engine.forward(TOKENS[:3])
    engine.forward(TOKENS[:2])  # the refused call changed nothing
    with pytest.raises(ValueError, match="no tokens"):
        engine.forward([])
    engine.reset()
    with pytest.raises(ValueError, match="token ids must be in 0 to 319"):
        engine.forward([VOCABULARY])
    with pytest.raises(SaapError, match="context of 129 tokens is outside the model's 1 to 128"):
        OnnxRuntimeEngine(onnx_folder, 1, 129)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(SaapError, match="no ONNX model"):
        OnnxRuntimeEngine(tmp_path / "nothing", 1, 8)
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    write_onnx(folder, tmp_path, "int4")
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(SaapError, match="cannot load it") as cut:
        OnnxRuntimeEngine(tmp_path, 1, 8)
    assert "\n" not in str(cut.value)
    data.unlink()
    with pytest.raises(SaapError, match="cannot load it"):
        OnnxRuntimeEngine(tmp_path, 1, 8)
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(SaapError, match="cannot load it"):
        OnnxRuntimeEngine(tmp_path, 1, 8)


def test_needs_nothing_of_the_compiler() -> None:
    code = (
        "import sys, saap_edge.engines.onnxruntime\n"
        "assert not {'torch', 'transformers', 'safetensors', 'gguf', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
