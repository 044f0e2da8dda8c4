"""Uniform models against llama.cpp's own converter: the same tensors, bit for bit, and the same metadata.

converter.json holds what it made (make_converter_json.py). What we do otherwise, on purpose:

- qwen2 goes to `deci`: llama.cpp's `qwen2` demands heads * head_dim == hidden, which pruning breaks. `deci` turns
  neighbouring rows of q and k where `qwen2` turns halves, so that rows and biases are permuted, and it takes widths as
  arrays. All other tensors are equal, q and k after the permutation is undone.
- In every architecture key_length, value_length, rope.dimension_count and vocab_size are written: llama.cpp's default
  of hidden / heads is wrong once heads are gone.
- The table of llama3's rope is computed in float64 here: equal to float32's rounding.
- general.* names the model; the converter also writes sizes and tags for a hub's page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from saap_edge.exporting.gguf import unpermute, write_gguf
from tests.exporting.converter_models import BY_VALUE, CASES, SHAPE, TYPES, digest, metadata, tensors, write_case

THEIRS: dict[str, Any] = json.loads(Path(__file__).with_name("converter.json").read_text(encoding="utf-8"))
HEADS = {"attn_q": SHAPE["num_attention_heads"], "attn_k": SHAPE["num_key_value_heads"]}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write_case(request.param, tmp_path_factory.mktemp(request.param))


def halves(path: Path) -> dict[str, list[Any]]:
    """The tensors of a `deci` file with the rows of q and k as an architecture of halves has them."""
    found = tensors(path)
    for tensor in gguf.GGUFReader(path).tensors:
        heads = next((count for part, count in HEADS.items() if f".{part}." in tensor.name), None)
        found[tensor.name][2] = digest(unpermute(tensor.data, heads)) if heads else found[tensor.name][2]
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_tensors_are_the_converters(case: tuple[str, Path], kind: str, tmp_path: Path) -> None:
    name, folder = case
    architecture = write_gguf(folder, tmp_path / "m.gguf", kind)["architecture"]
    theirs = THEIRS[name]["tensors"][kind]
    ours = (tensors if architecture == THEIRS[name]["metadata"]["general.architecture"] else halves)(
        tmp_path / "m.gguf"
    )
    assert ours.keys() == theirs.keys()
    if BY_VALUE in ours:
        np.testing.assert_allclose(ours.pop(BY_VALUE)[2], theirs[BY_VALUE][2], rtol=1e-6)
    assert ours == {key: value for key, value in theirs.items() if key in ours}


def test_the_rows_of_qwen2_are_permuted(tmp_path: Path) -> None:
    """The permutation is what differs: without undoing it, q and k and their biases are other bytes."""
    write_gguf(write_case("qwen2", tmp_path / "model"), tmp_path / "m.gguf", "f32")
    theirs = THEIRS["qwen2"]["tensors"]["f32"]
    other = {key for key, value in tensors(tmp_path / "m.gguf").items() if value != theirs[key]}
    assert other == {f"blk.{i}.{part}.{leaf}" for i in (0, 1) for part in HEADS for leaf in ("weight", "bias")}


def test_metadata_is_the_converters(case: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = case
    write_gguf(folder, tmp_path / "m.gguf", TYPES[-1])
    ours, theirs = metadata(tmp_path / "m.gguf"), THEIRS[name]["metadata"]
    if name.startswith("qwen2"):
        assert (ours.pop("general.architecture"), theirs.pop("general.architecture")) == ("deci", "qwen2")
        for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
            ours[key] = ours[key][0]
    described = [key for key in theirs if key.startswith("general.") and key not in REQUIRED]
    assert {key: ours.get(key) for key in theirs if key not in described} == {
        key: value for key, value in theirs.items() if key not in described
    }
    assert {"attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size"} <= ours.keys()


REQUIRED = ("general.architecture", "general.file_type", "general.quantization_version")
