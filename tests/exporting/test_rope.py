"""Rope scaling in both runtimes against transformers, whose own frequencies and answers are the truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.rope import rope_frequencies
from saap_edge.families.rope import attention_factor
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned, load_model, spec_of
from saap_edge.model.spec import LayerShape
from tests.conftest import WIDTHS, randomise_projections, raw_model, tiny_model, write_folder
from tests.exporting.llama_support import ExactEngine, exact_logits
from tests.exporting.onnx_support import PlainSession, reference

TOKENS = list(range(1, 61))
THETA = {"rope_theta": 500.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **THETA}
LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 4.0], "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 64, **THETA,
}  # fmt: skip
# Kinds that need a table of frequencies in GGUF, and those that llama.cpp computes by itself.
TABLED: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, **THETA,
    },
    "longrope": LONG,
    "longrope-factor": LONG | {"factor": 8.0},
    "longrope-attention": LONG | {"attention_factor": 1.3},
    "yarn-betas": YARN | {"beta_fast": 4.0, "beta_slow": 0.5},
    "yarn-not-truncated": YARN | {"truncate": False},
}  # fmt: skip
COMPUTED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0, **THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, **THETA},
    "yarn": YARN,
    "yarn-attention": YARN | {"attention_factor": 0.8},
    "yarn-mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn-of-the-context": {name: value for name, value in YARN.items() if name != "factor"} | {"factor": None},
}  # fmt: skip
ALL = TABLED | COMPUTED
# Architecture of llama.cpp -> family and widths.
CARRIERS = {
    "llama": ("llama", [LayerShape(4, 2, 64)] * 3), "deci": ("llama", WIDTHS),
    "qwen3": ("qwen3", [LayerShape(4, 2, 64)] * 3), "openelm": ("qwen3", WIDTHS),
}  # fmt: skip


def model(family: str, rope: dict[str, Any], widths: list[LayerShape]) -> PreTrainedModel:
    return randomise_projections(build_pruned(tiny_model(family, rope_parameters=dict(rope)), widths))


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "dynamic"])
def test_frequencies_and_attention_factor_are_transformers(kind: str) -> None:
    config = tiny_model("llama", rope_parameters=dict(ALL[kind])).config
    frequencies, factor = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](config, "cpu")
    spec = spec_of(tiny_model("llama", rope_parameters=dict(ALL[kind])))
    np.testing.assert_allclose(rope_frequencies(spec), frequencies.numpy(), rtol=1e-6)
    assert attention_factor(spec.rope_scaling) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [(name, kind) for name in CARRIERS for kind in (ALL if name in ("llama", "deci") else COMPUTED)],
)
def test_llama_cpp_answers_as_transformers_do(architecture: str, kind: str, tmp_path: Path) -> None:
    family, widths = CARRIERS[architecture]
    folder = write_folder(model(family, ALL[kind], widths), tmp_path / "model")
    assert write_gguf(folder, tmp_path / "m.gguf", "f32")["architecture"] == architecture
    expected = reference(load_model(folder), TOKENS)
    np.testing.assert_allclose(exact_logits(tmp_path / "m.gguf", TOKENS), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_onnx_answers_as_transformers_do(kind: str, tmp_path: Path) -> None:
    folder = write_folder(model("llama", ALL[kind], WIDTHS), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    session = PlainSession(tmp_path / "out")
    logits = np.concatenate([session.forward(TOKENS[:30]), session.forward(TOKENS[30:])])
    np.testing.assert_allclose(logits, reference(load_model(folder), TOKENS), atol=1e-4)


def test_the_scaling_matters() -> None:
    """At these positions every kind but dynamic changes the answers, by far more than the tests above let pass."""
    plain = reference(tiny_model("llama", rope_parameters={"rope_type": "default", **THETA}), TOKENS)
    for kind, rope in ALL.items():
        scaled = reference(tiny_model("llama", rope_parameters=dict(rope)), TOKENS)
        assert (np.abs(scaled - plain).max() > 0.05) == (kind != "dynamic"), kind


def test_longrope_has_the_context_of_pretraining(tmp_path: Path) -> None:
    """Beyond it transformers turns to the long factors, for the whole text."""
    folder = write_folder(tiny_model("llama", rope_parameters=dict(LONG)), tmp_path / "model")
    assert read_spec(folder).context == 64
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["llama.context_length"].contents() == 64


PHI = {
    "hidden_size": 128,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": 64,
    "sliding_window": 256,
}
PARTIAL = {
    "half": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "three-quarters-longrope": {
        "rope_type": "longrope", "partial_rotary_factor": 0.75, "short_factor": [1.0, 1.0, 1.2, 1.5, 2.0, 3.0],
        "long_factor": [4.0] * 6,
    },
    "longrope": {name: value for name, value in LONG.items() if name != "original_max_position_embeddings"},
}  # fmt: skip


@pytest.mark.parametrize("widths", [None, WIDTHS], ids=["dense", "pruned"])
@pytest.mark.parametrize("kind", PARTIAL)
def test_phi_with_long_contexts_and_partial_rotation(kind: str, widths: list | None, tmp_path: Path) -> None:
    """As Phi-4-mini; the dense model against transformers' own class."""
    raw = raw_model("phi3", **PHI, rope_parameters=dict(PARTIAL[kind], **THETA))
    folder = write_folder(raw, tmp_path / "model")
    expected = reference(raw, TOKENS)
    np.testing.assert_allclose(reference(load_model(folder), TOKENS), expected, atol=1e-4)
    if widths:
        pruned = randomise_projections(build_pruned(load_model(folder), widths))
        folder = write_folder(pruned, tmp_path / "pruned")
        expected = reference(load_model(folder), TOKENS)
    assert read_spec(folder).context == (64 if "longrope" in kind else 128)
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    np.testing.assert_allclose(exact_logits(tmp_path / "m.gguf", TOKENS), expected, atol=1e-4)
    write_onnx(folder, tmp_path / "out", "fp32")
    np.testing.assert_allclose(PlainSession(tmp_path / "out").forward(TOKENS), expected, atol=1e-4)


@pytest.mark.parametrize("kind", TABLED)
def test_what_no_table_can_say_is_refused(kind: str, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("qwen3", rope_parameters=dict(TABLED[kind])), tmp_path / "model")
    reason = "between whole pairs of 32 and 1 turns only" if "yarn" in kind else f"no {kind.split('-')[0]} rope scaling"
    with pytest.raises(SaapError, match=f"'qwen3' has .*{reason}.*leave gguf-q4_0 out"):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    assert not (tmp_path / "m.gguf").exists()


def test_attention_factor_of_yarn_is_not_applied_twice(tmp_path: Path) -> None:
    """llama.cpp multiplies yarn's by itself where it computes the scaling, and not where it reads a table."""
    metadata = {}
    for family in ("llama", "qwen3"):
        folder = write_folder(tiny_model(family, rope_parameters=dict(YARN)), tmp_path / family)
        write_gguf(folder, tmp_path / f"{family}.gguf", "f16")
        fields = gguf.GGUFReader(tmp_path / f"{family}.gguf").fields
        metadata[family] = {name.partition("rope.")[2]: field.contents() for name, field in fields.items()}
    assert metadata["llama"]["scaling.attn_factor"] == pytest.approx(1 + 0.1 * math.log(4))
    assert metadata["qwen3"]["scaling.attn_factor"] == pytest.approx(1 / (1 + 0.1 * math.log(4)))  # it is in q's norm
    assert "scaling.type" not in metadata["llama"]
    assert metadata["qwen3"]["scaling.type"] == "yarn" and metadata["qwen3"]["scaling.factor"] == 4.0


def test_a_model_saved_and_read_again_keeps_its_scaling(tmp_path: Path) -> None:
    for kind, rope in ALL.items():
        pruned = model("llama", rope, WIDTHS)
        folder = write_folder(pruned, tmp_path / kind)
        with torch.no_grad():
            torch.testing.assert_close(
                load_model(folder)(torch.tensor([TOKENS])).logits, pruned(torch.tensor([TOKENS])).logits
            )


def shift_error(path: Path) -> float:
    """What a shift of the context by 10 tokens does to the next logits of a model of one layer: nothing if it is right.

    Keys and values of the only layer do not depend on the tokens that left.
    """
    engine = ExactEngine(path, 1, 128)
    engine.forward(TOKENS[:40])
    memory = llama_cpp.llama_get_memory(engine._context)
    llama_cpp.llama_memory_seq_rm(memory, 0, 0, 10)
    llama_cpp.llama_memory_seq_add(memory, 0, 10, 40, -10)
    engine._length = 30
    shifted = engine.forward([TOKENS[40]]).copy()
    engine.reset()
    engine.forward(TOKENS[10:40])
    return float(np.abs(shifted - engine.forward([TOKENS[40]])).max())


@pytest.mark.parametrize(
    ("family", "kind", "right"),
    [
        ("llama", "linear", True), ("llama", "yarn", False), ("llama", "longrope", False), ("qwen3", "linear", True),
        ("qwen3", "yarn", True), ("hunyuan_v1_dense", "linear", False),
        ("phi3", "longrope", True), ("phi3", "three-quarters-longrope", True),
    ],
)  # fmt: skip
def test_a_shifted_context(family: str, kind: str, right: bool, tmp_path: Path) -> None:
    """llama.cpp multiplies keys by the attention factor at every shift. Where q can take all of it, none is left.

    It also turns Hunyuan's keys again, which already have the factors of their norm.
    """
    rope = dict((PARTIAL if family == "phi3" else ALL)[kind], **THETA)
    raw = raw_model(family, num_hidden_layers=1, rope_parameters=rope, **(PHI if family == "phi3" else {}))
    folder = write_folder(raw, tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    assert (shift_error(tmp_path / "m.gguf") < 1e-4) == right
