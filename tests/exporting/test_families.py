"""Qwen3 and Gemma in the runtimes: answers as torch's, codes untouched, and what llama.cpp cannot hold refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from saap_edge.artifacts import engine_of
from saap_edge.engines.answers import HARD_TEXT
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import check_parity, logits, relative_error, shipped_model
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.onnx import write_onnx
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.settings import FORMATS
from saap_edge.exporting.weights import ExportWeights
from saap_edge.model.blocks import dequantise
from saap_edge.model.folder import build_pruned, load_model, spec_of
from saap_edge.model.spec import LayerShape
from saap_edge.model.tokenizer import load_tokenizer
from tests.conftest import TEXT, WIDTHS, randomise_projections, raw_model, tiny_model, write_folder
from tests.exporting.codes_support import tune
from tests.exporting.llama_support import exact_logits, with_gelu_table
from tests.exporting.test_onnx import genai_tokens

IDS = list(range(1, 30))  # more than Gemma's window of 8
# Attention gone in the first layer, FFN gone in the last, query heads gone in the middle.
DEPTH = [LayerShape(0, 0, 64), LayerShape(2, 2, 96), LayerShape(8, 4, 0)]
# What llama.cpp has fixed; Gemma 3 with one layer without a window.
GEMMA: dict[str, dict] = {
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6, "num_hidden_layers": 6},
}


def tiny_gemma(family: str, **overrides: object) -> PreTrainedModel:
    """Norms around 1, as trained ones: the weight has 1 added to it, and scores that are too sharp amplify rounding."""
    model = tiny_model(family, **GEMMA[family] | overrides)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.sub_(1)
    return model


def pruned(model: PreTrainedModel, widths: list[LayerShape]) -> PreTrainedModel:
    return randomise_projections(build_pruned(model, widths))


def assert_parity(folder: Path, out: Path, artifact_format: str) -> str:
    """Prefill, steps and mixed, in a process of its own; llama.cpp's architecture (nothing for ONNX)."""
    kind, _, quantisation = artifact_format.partition("-")
    path = out / f"{artifact_format}.gguf" if kind == "gguf" else out / quantisation
    summary = (write_gguf if kind == "gguf" else write_onnx)(folder, path, quantisation)
    with Worker(engine_of(artifact_format), path, 1, 64) as worker:
        artifact = (ExportWeights(folder), artifact_format, 32)
        parity = check_parity(shipped_model(folder, artifact_format), worker, artifact, "pruned", IDS, str)
    assert parity.passed, parity
    return str(summary.get("architecture", ""))


QWEN3 = {
    "dense": (True, None, "qwen3"), "untied": (False, None, "qwen3"),
    "uniform": (True, [LayerShape(4, 2, 64)] * 3, "qwen3"),
    "per-layer": (True, WIDTHS, "openelm"), "depth": (True, DEPTH, "openelm"),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(QWEN3))
def qwen3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A Qwen3 folder and the architecture that carries it."""
    tied, widths, architecture = QWEN3[request.param]
    model = tiny_model("qwen3", tied=tied)
    folder = tmp_path_factory.mktemp(f"qwen3-{request.param}")
    return write_folder(pruned(model, widths) if widths else model, folder), architecture


@pytest.mark.parametrize("artifact_format", [*FORMATS, "gguf-q4_1", "onnx-int4-full", "onnx-int8"])
def test_qwen3_answers_as_torch_does(qwen3: tuple[Path, str], artifact_format: str, tmp_path: Path) -> None:
    folder, architecture = qwen3
    written = assert_parity(folder, tmp_path, artifact_format)
    assert written == (architecture if artifact_format.startswith("gguf") else "")


def test_qwen3_widths_are_arrays(tmp_path: Path) -> None:
    """Mended as in every export: two heads of 16, all zero, fill a block of 32; the FFN is as wide as a block."""
    write_gguf(write_folder(pruned(tiny_model("qwen3"), DEPTH), tmp_path / "model"), tmp_path / "m.gguf", "f16")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    names = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    assert [fields[f"openelm.{name}"].contents() for name in names] == [[2, 2, 8], [1, 2, 4], [64, 96, 32]]


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
def test_fused_blocks_are_the_tuned_ones_row_on_row(name: str, tmp_path: Path) -> None:
    folder = write_folder(pruned(tiny_model("qwen3"), WIDTHS), tmp_path / "model")
    tuned = tune(folder, name, 64)
    expected = [dequantise(tuned[f"model.layers.1.self_attn.{part}_proj.weight"]).numpy() for part in "qkv"]
    write_gguf(folder, tmp_path / "m.gguf", name)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    qkv = stored["blk.1.attn_qkv.weight"]
    np.testing.assert_array_equal(gguf.quants.dequantize(qkv.data, qkv.tensor_type), np.concatenate(expected))


@pytest.mark.parametrize("overrides", [{"attention_bias": True}, {"head_dim": 8}], ids=["all-biases", "head-dim-8"])
def test_qwen3_variants_in_onnx(overrides: dict, tmp_path: Path) -> None:
    folder = write_folder(tiny_model("qwen3", **overrides), tmp_path / "model")
    assert_parity(folder, tmp_path, "onnx-fp32")


def test_genai_runs_qwen3(tmp_path: Path) -> None:
    folder = write_folder(pruned(tiny_model("qwen3"), WIDTHS), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    assert_genai_answers_as_torch_does(folder, tmp_path / "out")


def assert_genai_answers_as_torch_does(folder: Path, out: Path) -> None:
    prompt = IDS[:7]
    expected = load_model(folder).generate(
        torch.tensor([prompt]), max_new_tokens=16, do_sample=False, pad_token_id=0
    )[0].tolist()  # fmt: skip
    assert genai_tokens(out, prompt, len(prompt) + 16, True)[: len(expected)] == expected


HUNYUAN = {
    "dense": (None, ["gguf-f16", "gguf-q4_0", "onnx-fp32"]),
    "uniform": ([LayerShape(4, 2, 64)] * 3, ["gguf-f16", "gguf-q4_1", "onnx-int4"]),
    "per-layer": (WIDTHS, ["onnx-fp32", "onnx-int4"]), "depth": (DEPTH, ["onnx-fp32"]),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "artifact_format"), [(kind, each) for kind in HUNYUAN for each in HUNYUAN[kind][1]])
def test_hunyuan_answers_as_torch_does(kind: str, artifact_format: str, tmp_path: Path) -> None:
    model, widths = tiny_model("hunyuan_v1_dense", tied=kind != "dense"), HUNYUAN[kind][0]
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    written = assert_parity(folder, tmp_path, artifact_format)
    assert written == ("hunyuan-dense" if artifact_format.startswith("gguf") else "")


def test_genai_runs_hunyuan(tmp_path: Path) -> None:
    folder = write_folder(pruned(tiny_model("hunyuan_v1_dense"), WIDTHS), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    assert_genai_answers_as_torch_does(folder, tmp_path / "out")


@pytest.fixture(scope="module", params=[(family, kind) for family in GEMMA for kind in ("dense", "uniform")], ids=str)
def gemma(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    family, kind = request.param
    model = tiny_gemma(family)
    if kind == "uniform":
        model = pruned(model, [LayerShape(4, 2, 64)] * model.config.num_hidden_layers)
    return write_folder(model, tmp_path_factory.mktemp(f"{family}-{kind}")), family.removesuffix("_text")


@pytest.mark.parametrize("artifact_format", [*FORMATS, "gguf-q4_1", "onnx-int4-full", "onnx-int8"])
def test_gemma_answers_as_torch_does(gemma: tuple[Path, str], artifact_format: str, tmp_path: Path) -> None:
    folder, architecture = gemma
    assert assert_parity(folder, tmp_path, artifact_format) == (
        architecture if artifact_format.startswith("gguf") else ""
    )


@pytest.mark.parametrize("artifact_format", ["gguf-f16", "onnx-fp32", "onnx-int4"])
def test_gemma3_untied_and_with_capped_logits(artifact_format: str, tmp_path: Path) -> None:
    """transformers caps its logits, but never its scores."""
    model = tiny_gemma("gemma3_text", tied=False, final_logit_softcapping=2.0, attn_logit_softcapping=5.0)
    folder = write_folder(model, tmp_path / "model")
    assert_parity(folder, tmp_path, artifact_format)


@pytest.mark.parametrize("family", list(GEMMA))
def test_gelu_in_llama_cpp_is_a_table_of_fp16(family: str, tmp_path: Path) -> None:
    """All that parts a layer of a Gemma file in float32 from torch: GELU's argument and value are rounded. Most tokens
    are then equal to float32's rounding; where a rounding falls the other way, a token is not."""
    folder = write_folder(tiny_gemma(family, num_hidden_layers=1), tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    actual, model = exact_logits(tmp_path / "m.gguf", IDS), load_model(folder)
    exact = logits(model, IDS)
    emulated = logits(with_gelu_table(model), IDS)
    assert relative_error(actual, exact) > 1e-4
    assert np.median([relative_error(actual[[at]], emulated[[at]]) for at in range(len(IDS))]) < 1e-6


@pytest.mark.parametrize("family", list(GEMMA))
def test_genai_runs_gemma(family: str, tmp_path: Path) -> None:
    folder = write_folder(tiny_gemma(family), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    assert_genai_answers_as_torch_does(folder, tmp_path / "out")


# llama.cpp's `smollm3` leaves every fourth layer unrotated; in ONNX it may be any layer.
FOURTH = {"num_hidden_layers": 5, "no_rope_layer_interval": 4}
SMOLLM3: dict[str, tuple[dict, list[LayerShape] | None, tuple[str, ...]]] = {
    "dense": (FOURTH, None, ("gguf-f16", "gguf-q4_0", "onnx-fp32", "onnx-int4")),
    "yarn": (FOURTH | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
             "original_max_position_embeddings": 32, "attention_factor": 1.5}}, None, ("gguf-f16", "onnx-fp32")),
    "uniform": (FOURTH, [LayerShape(4, 2, 64)] * 5, ("gguf-q8_0", "onnx-int8")),
    "last blocks gone": (FOURTH, [LayerShape(6, 3, 64)] * 4 + [LayerShape(0, 0, 0)], ("gguf-f16", "onnx-fp32")),
    "per-layer": ({}, WIDTHS, ("onnx-fp32", "onnx-int4")), "depth": ({}, DEPTH, ("onnx-fp32",)),
    "head-dim-8": ({"head_dim": 8}, None, ("onnx-fp32",)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "artifact_format"), [(name, one) for name in SMOLLM3 for one in SMOLLM3[name][2]])
def test_smollm3_answers_as_torch_does(name: str, artifact_format: str, tmp_path: Path) -> None:
    overrides, widths, _ = SMOLLM3[name]
    model = tiny_model("smollm3", **overrides)
    folder = write_folder(pruned(model, widths) if widths else model, tmp_path / "model")
    assert assert_parity(folder, tmp_path, artifact_format) == ("smollm3" if "gguf" in artifact_format else "")


def test_a_removed_block_moves_the_layers_that_llama_cpp_does_not_rotate(tmp_path: Path) -> None:
    """The fourth layer of the file would be the fifth of the model, which is rotated."""
    widths = [LayerShape(0, 0, 0), *[LayerShape(4, 2, 64)] * 4]
    folder = write_folder(pruned(tiny_model("smollm3", **FOURTH), widths), tmp_path / "model")
    with pytest.raises(SaapError, match=r"all but every 4th layer, this model has none in layers 2; leave gguf-f16"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert_parity(folder, tmp_path, "onnx-fp32")


def test_genai_runs_smollm3(tmp_path: Path) -> None:
    folder = write_folder(pruned(tiny_model("smollm3"), WIDTHS), tmp_path / "model")
    write_onnx(folder, tmp_path / "out", "fp32")
    assert_genai_answers_as_torch_does(folder, tmp_path / "out")


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
THETAS = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
}
REFUSED = [
    ("qwen3", {"attention_bias": True}, "'qwen3' does not read all of the biases"),
    ("qwen3", {"rope_parameters": LLAMA3}, "no llama3 rope scaling"),
    ("smollm3", FOURTH | {"mlp_bias": True}, "'smollm3' does not read all of the biases"),
    ("smollm3", FOURTH | {"rope_parameters": LLAMA3}, "no llama3 rope scaling"),
    ("smollm3", {}, "in all but every 4th layer, this model has none in layers 1"),
    ("hunyuan_v1_dense", {"attention_bias": True}, "'hunyuan-dense' does not read all of the biases"),
    ("hunyuan_v1_dense", {"rope_parameters": LLAMA3}, "no llama3 rope scaling"),
    ("gemma2", {"attention_bias": True}, "'gemma2' does not read all of the biases"),
    ("gemma2", {"query_pre_attn_scalar": 24}, "root of head_dim \\(16\\).*\\(24\\)"),
    ("gemma2", {"num_hidden_layers": 46}, "number of heads"),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "last of every 2"),
    ("gemma2", {"attn_logit_softcapping": None}, "caps the scores"),
    ("gemma2", {"final_logit_softcapping": None}, "caps the scores"),
    ("gemma2", {"tied": False}, "no output matrix"),
    ("gemma3_text", {"sliding_window_pattern": 2}, "last of every 6"),
    ("gemma3_text", {"num_hidden_layers": 62}, "number of heads"),
    ("gemma3_text", {"rope_parameters": THETAS}, "rope base 10000"),
]


@pytest.mark.parametrize(("family", "overrides", "reason"), REFUSED)
def test_what_llama_cpp_cannot_hold_is_refused(family: str, overrides: dict, reason: str, tmp_path: Path) -> None:
    folder = write_folder(raw_model(family, **GEMMA.get(family, {}) | overrides), tmp_path / "model")
    with pytest.raises(SaapError, match=f"cannot go to gguf-q4_0: .*{reason}.*leave gguf-q4_0 out"):
        write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("family", "overrides"), [(family, overrides) for family, overrides, _ in REFUSED if family in GEMMA]
)
def test_what_llama_cpp_has_fixed_of_gemma_is_free_in_onnx(family: str, overrides: dict, tmp_path: Path) -> None:
    overrides = {name: min(value, 7) if name == "num_hidden_layers" else value for name, value in overrides.items()}
    folder = write_folder(tiny_gemma(family, **overrides), tmp_path / "model")
    assert_parity(folder, tmp_path, "onnx-fp32")


def test_biases_of_repair_have_no_place_beside_norms_of_q_and_k() -> None:
    spec = spec_of(raw_model("qwen3"))
    biased = export_refusal(replace(spec, o_bias=True, down_bias=True), "gguf-f16", per_layer=True)
    assert biased and "'openelm' does not read all of the biases" in biased


# Gemma's tokenizer


ROWS = 640


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """As Gemma's tokenizer.json: every way to make a piece out of two is a merge, ranked by the piece's score."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer, learner.pre_tokenizer = normalizers.Replace(" ", "▁"), pre_tokenizers.Metaspace("▁", "never")
    learner.train_from_iterator([TEXT, "a  b    c\n\nd"], trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    pieces = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    vocabulary = list(
        dict.fromkeys([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "▁▁", "▁▁▁▁", "\n"])
    )
    ids = {piece: index for index, piece in enumerate(vocabulary)}
    model = models.BPE(ids, list(merges(vocabulary)), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("\n\n", "<table>")])
    tokenizer.add_tokens([f"<unused{index}>" for index in range(ROWS - tokenizer.get_vocab_size())])
    tokenizer.add_special_tokens(["<image_soft_token>"])  # beyond the model's rows, as in Gemma 3's text models
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def merges(vocabulary: list[str]) -> Iterator[tuple[str, str]]:
    known = set(vocabulary)
    for piece in vocabulary:
        for cut in range(1, len(piece)):
            if not piece.startswith("<0x") and piece[:cut] in known and piece[cut:] in known:
                yield piece[:cut], piece[cut:]


def gemma_folder(family: str, folder: Path) -> Path:
    tokenizer = gemma_tokenizer()
    write_folder(tiny_gemma(family, vocab_size=ROWS, bos_token_id=2, eos_token_id=1), folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_gemma_tokens(tmp_path: Path) -> None:
    folder = gemma_folder("gemma3_text", tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    engine, theirs = LlamaCppEngine(tmp_path / "m.gguf", 1, 16), load_tokenizer(folder)
    for text in (HARD_TEXT, TEXT[:300], "", " ", "a  b\n\n c    d", "the <table> of\n\n\ndogs"):
        assert engine.tokenize(text, False, False) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert engine.tokenize("dog", True, False) == theirs("dog")["input_ids"] and theirs("dog")["input_ids"][0] == 2
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["byte_fallback"]
