"""Our ONNX folders in optimum, and optimum's exporter. What needs optimum runs in `make test-optimum`."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from saap_edge.artifacts import context_of
from saap_edge.engines.onnxruntime import OnnxRuntimeEngine
from saap_edge.engines.optimum import OptimumEngine
from saap_edge.errors import SaapError
from saap_edge.evaluation.likelihood import window_perplexity
from saap_edge.evaluation.subjects import find_subjects
from saap_edge.evaluation.verify import verify_folder
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.optimum import write_optimum
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.write import export_artifacts
from saap_edge.families import FAMILIES
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.recipe import bundled_model
from tests.conftest import (
    STATEFUL,
    TEXT,
    VOCABULARY,
    WIDTHS,
    randomise_projections,
    raw_model,
    tiny_model,
    write_folder,
)
from tests.exporting.onnx_support import random_tokens, reference

with_optimum = pytest.mark.skipif(find_spec("optimum") is None, reason="make test-optimum")
TOKENS = random_tokens(VOCABULARY, 24, seed=7)
IDS = torch.tensor([TOKENS])
# One KV cache fits all layers, though not all widths are alike.
ONE_CACHE = [LayerShape(4, 2, 96), LayerShape(2, 2, 64), LayerShape(4, 2, 32)]


def pruned(family: str, widths: list[LayerShape], folder: Path) -> Path:
    return write_folder(randomise_projections(build_pruned(tiny_model(family), widths)), folder)


def stock(out: Path) -> Any:
    from optimum.onnxruntime import ORTModelForCausalLM

    return ORTModelForCausalLM.from_pretrained(out)


def ours(out: Path) -> Any:
    from saap_edge.model.optimum import SaapEdgeORTModel

    return SaapEdgeORTModel.from_pretrained(out)


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> list[list[int]]:
    """Ids of 12 more tokens, whatever ends a text."""
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=True,
        pad_token_id=0, **options,
    ).tolist()  # fmt: skip


def check(model: Any, folder: Path) -> None:
    """Prefill, steps on the cache it returns, and generation, all against transformers."""
    torch_model = load_model(folder)
    expected = reference(torch_model, TOKENS)
    whole = model(IDS, attention_mask=torch.ones_like(IDS)).logits
    np.testing.assert_allclose(whole[0].numpy(), expected, atol=1e-4)
    past, steps = None, []
    for start, end in ((0, 9), (9, 10), (10, 20), (20, 24)):
        mask = torch.ones(1, end, dtype=torch.int64)
        answer = model(IDS[:, start:end], attention_mask=mask, past_key_values=past, use_cache=True)
        past = answer.past_key_values
        steps.append(answer.logits[0].numpy())
    np.testing.assert_allclose(np.concatenate(steps), expected, atol=1e-4)
    assert greedy(model, IDS[:, :7]) == greedy(torch_model, IDS[:, :7])


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name not in (*STATEFUL, "gemma4_text")]
)  # it knows no states of convolutions
@with_optimum
def test_dense_models(family: str, tmp_path: Path) -> None:
    folder = write_folder(raw_model(family), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    check(ours(tmp_path / "out"), folder)
    if family != "gemma2":  # of which optimum takes the number of kv heads from the query heads
        check(stock(tmp_path / "out"), folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("widths", [[LayerShape(4, 2, 64)] * 3, [LayerShape(6, 3, 64)] * 3, ONE_CACHE])
@with_optimum
def test_stock_optimum_takes_plans_of_one_cache(family: str, widths: list[LayerShape], tmp_path: Path) -> None:
    folder = pruned(family, widths, tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    check(stock(tmp_path / "out"), folder)
    check(ours(tmp_path / "out"), folder)


@pytest.mark.parametrize("quantisation", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("widths", [[LayerShape(4, 2, 64)] * 3, WIDTHS], ids=["uniform", "widths"])
@with_optimum
def test_smaller_folders(quantisation: str, widths: list[LayerShape], tmp_path: Path) -> None:
    """The same graph, whose answers are checked elsewhere, gives the same through optimum."""
    write_onnx(pruned("llama", widths, tmp_path / "model"), tmp_path / "out", quantisation)
    model = (ours if widths is WIDTHS else stock)(tmp_path / "out")
    engine = OnnxRuntimeEngine(tmp_path / "out", 1, 64)
    expected = engine.forward(TOKENS, all_logits=True)
    np.testing.assert_allclose(model(IDS, attention_mask=torch.ones_like(IDS)).logits[0].numpy(), expected, atol=1e-5)
    ids = greedy(model, IDS[:, :7])[0]
    engine.reset()
    assert ids[7:] == engine.forward(ids[:-1], all_logits=True)[6:].argmax(-1).tolist()


@with_optimum
def test_a_folder_that_transformers_5_wrote(tmp_path: Path) -> None:
    write_onnx(bundled_model(), tmp_path, "fp32")
    check(stock(tmp_path), bundled_model())
    plain = Tokenizer.from_file(str(bundled_model() / "tokenizer.json"))
    assert load_tokenizer(tmp_path)(TEXT)["input_ids"] == plain.encode(TEXT).ids


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("first", [WIDTHS[0], LayerShape(0, 0, 96)], ids=["attention", "no-attention"])
@with_optimum
def test_per_layer_widths(family: str, first: LayerShape, tmp_path: Path) -> None:
    folder = pruned(family, [first, *WIDTHS[1:]], tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    check(ours(tmp_path / "out"), folder)
    with pytest.raises(Exception, match=r"saap_edge|past_key_values"):
        stock(tmp_path / "out")(IDS, attention_mask=torch.ones_like(IDS))


@with_optimum
def test_batches_and_beams(tmp_path: Path) -> None:
    folder = pruned("llama", WIDTHS, tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    model, torch_model, ids = ours(tmp_path / "out"), load_model(folder), torch.tensor([TOKENS[:8], TOKENS[8:16]])
    np.testing.assert_allclose(model(ids).logits.numpy(), torch_model(ids).logits.detach().numpy(), atol=1e-4)
    for options in ({}, {"num_beams": 3}):
        assert greedy(model, ids, **options) == greedy(torch_model, ids, **options)
    with pytest.raises(SaapError, match="pad on the right"):
        model(ids, attention_mask=torch.tensor([[1] * 8, [0] * 2 + [1] * 6]))


@pytest.mark.parametrize(
    ("family", "widths", "expected"),
    [
        ("llama", None, {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}),
        ("phi3", None, {"model_type": "llama", "num_key_value_heads": 4}),
        ("qwen2", ONE_CACHE, {"model_type": "qwen2", "num_attention_heads": 4, "num_key_value_heads": 2}),
        ("qwen3", WIDTHS, {"model_type": "saap_edge", "layer_widths": [[8, 4, 96], [4, 2, 64], [2, 1, 32]]}),
    ],
)
def test_config_json(family: str, widths: list[LayerShape] | None, expected: dict, tmp_path: Path) -> None:
    """optimum allocates num_key_value_heads of hidden_size // num_attention_heads, whatever head_dim says."""
    model = pruned(family, widths, tmp_path) if widths else write_folder(raw_model(family), tmp_path)
    write_onnx(model, tmp_path / "out", "int4")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: config[name] for name in expected} == expected
    assert "auto_map" not in config and config["vocab_size"] == VOCABULARY


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if name not in ("hunyuan_v1_dense", "gemma4_text", *STATEFUL)]
)
@with_optimum
def test_optimums_exporter(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Gemma's window of 8 binds here."""
    rope = {} if family.startswith("gemma") else {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    folder = write_folder(raw_model(family, **rope), tmp_path)
    capfd.readouterr()
    summary, spec = write_optimum(folder, tmp_path / "out"), read_spec(folder)
    assert capfd.readouterr() == ("", "")
    if family == "llama":
        assert summary["projection_bytes"] == 4 * (spec.layer_parameters() + (VOCABULARY + 7) * spec.hidden)
    check(ours(tmp_path / "out"), folder)
    if family != "gemma2":
        check(stock(tmp_path / "out"), folder)
    expected = reference(load_model(folder), TOKENS)
    engine = OptimumEngine(tmp_path / "out", 1, context_of(tmp_path / "out"))
    np.testing.assert_allclose(engine.forward(TOKENS, all_logits=True), expected, atol=1e-4)
    with pytest.raises(ValueError, match="cannot keep"):
        engine.truncate(len(TOKENS) + 1)
    engine.truncate(9)
    np.testing.assert_allclose(engine.forward(TOKENS[9:20], all_logits=True), expected[9:20], atol=1e-4)
    np.testing.assert_allclose(engine.forward(TOKENS[20:21]), expected[20:21], atol=1e-4)
    assert (engine.context, engine.kv_bytes_per_token()) == (spec.context, spec.kv_bytes_per_token(4))


@with_optimum
def test_optimums_exporter_is_a_format(tmp_path: Path) -> None:
    folder = pruned("llama", [LayerShape(4, 2, 64)] * 3, tmp_path / "model")
    (tmp_path / "out").mkdir()
    export_artifacts(folder, tmp_path / "out", ("onnx-optimum", "onnx-fp32"), "pruned", {}, lambda _: None)
    results = verify_folder(tmp_path / "out", folder, TEXT, 1, lambda: None)
    assert {(result.format, result.passed) for result in results} == {("onnx-optimum", True), ("onnx-fp32", True)}
    assert all(result.max_error < 1e-5 for result in results)


@with_optimum
def test_evaluating_what_optimum_wrote(tmp_path: Path) -> None:
    folder = write_folder(raw_model("gemma3_text"), tmp_path / "model")
    write_optimum(folder, tmp_path / "out")
    windows = IDS.view(2, 12)
    values = [
        window_perplexity(subject.open(), windows, lambda _: None).nll
        for path in (folder, tmp_path / "out")
        for subject in find_subjects(path, (), 1)
    ]
    assert len(values) == 2 and values[1] == pytest.approx(values[0], abs=1e-5)


@with_optimum
def test_optimums_exporter_refuses_per_layer_widths(tmp_path: Path) -> None:
    folder = pruned("llama", WIDTHS, tmp_path / "model")
    with pytest.raises(SaapError, match=r"different widths cannot go to onnx-optimum.*all alike; leave onnx-optimum"):
        write_optimum(folder, tmp_path / "out")
    with pytest.raises(SaapError, match=r"saved as saap_edge.*use onnx-fp32"):
        write_optimum(pruned("llama", [LayerShape(6, 3, 64)] * 3, tmp_path / "6"), tmp_path / "out")
    assert "use --method uniform" in str(export_refusal(read_spec(bundled_model()), "onnx-optimum", per_layer=True))
    with pytest.raises(SaapError, match="optimum's exporter does not know Hunyuan; leave onnx-optimum out"):
        write_optimum(write_folder(tiny_model("hunyuan_v1_dense"), tmp_path / "hunyuan"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("optimum") is not None, reason="make test")
def test_where_optimum_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(SaapError, match=r"optimum is not installed \(pip install 'saap-edge\[compile,optimum\]'\); "):
        write_optimum(bundled_model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_engine_refuses_what_optimum_did_not_write(tmp_path: Path) -> None:
    write_onnx(write_folder(tiny_model("llama"), tmp_path), tmp_path / "out", "fp32")
    with pytest.raises(SaapError, match="not a decoder that optimum exported"):
        OptimumEngine(tmp_path / "out", 1, 32)
    with pytest.raises(SaapError, match="no ONNX model"):
        OptimumEngine(tmp_path / "nothing", 1, 32)
    uneven = replace(read_spec(tmp_path), layers=tuple(WIDTHS))
    assert export_refusal(uneven, "onnx-optimum")
