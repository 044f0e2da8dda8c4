"""The llama.cpp engine beyond parity (which tests/exporting/test_gguf.py holds): limits, memory, damaged files."""

from pathlib import Path

import numpy as np
import pytest

from saap_edge.engines.gguf_header import read_header
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from tests.conftest import WIDTHS


@pytest.fixture(scope="module")
def artifact(pruned_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(pruned_folder, path, "f16")
    return path


def test_kv_bytes_are_those_of_each_layer(artifact):
    assert LlamaCppEngine(artifact, 1, 32).kv_bytes_per_token() == sum(2 * layer.kv_heads * 16 * 2 for layer in WIDTHS)


def test_reset_forgets(artifact):
    engine = LlamaCppEngine(artifact, 1, 32)
    first = engine.forward([1, 2, 3]).copy()
    engine.reset()
    engine.forward([9, 8])
    engine.reset()
    assert (engine.forward([1, 2, 3]) == first).all()


@pytest.mark.parametrize("tokens", [[], [-1], [10_000], list(range(40))])
def test_what_llama_cpp_would_abort_on_is_an_error(artifact, tokens):
    engine = LlamaCppEngine(artifact, 1, 32)
    with pytest.raises(ValueError):
        engine.forward(tokens)
    assert engine.forward([1]).shape == (1, engine.vocab_size)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"PK" + data, lambda data: data[:200]])
def test_damaged_files_are_named(artifact, tmp_path, damage):
    (tmp_path / "bad.gguf").write_bytes(damage(artifact.read_bytes()))
    with pytest.raises(SaapError, match=r"bad\.gguf"):
        LlamaCppEngine(tmp_path / "bad.gguf", 1, 16)
    with pytest.raises(SaapError, match="cannot read"):
        LlamaCppEngine(tmp_path / "none.gguf", 1, 16)


def test_header_shows_arrays(artifact):
    metadata = read_header(artifact).metadata
    assert metadata["deci.feed_forward_length"] == [layer.ffn for layer in WIDTHS]
    assert "tokenizer.ggml.tokens" not in metadata


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
@pytest.mark.parametrize(("name", "mapped"), [("q4_0", False), ("q8_0", True)])
def test_a_file_that_llama_cpp_repacks_is_read_and_others_are_mapped(pruned_folder, tmp_path, name, mapped):
    path = tmp_path / f"{name}.gguf"
    write_gguf(pruned_folder, path, name)
    engine = LlamaCppEngine(path, 1, 32)
    assert (str(path) in Path("/proc/self/maps").read_text()) == mapped == engine.describe()["mapped"]
    other = type("Other", (LlamaCppEngine,), {"mapped": not mapped})(path, 1, 32)
    assert np.array_equal(engine.forward([5, 6, 7]), other.forward([5, 6, 7]))
