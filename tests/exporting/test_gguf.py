"""GGUF against transformers (logits, token ids) and gguf-py (bytes)."""

import json

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from saap_edge.engines.answers import HARD_TEXT
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError
from saap_edge.evaluation.arithmetic import runtime_arithmetic
from saap_edge.evaluation.parity import logits, relative_error, shipped_model
from saap_edge.exporting.gguf import permute, write_gguf
from saap_edge.exporting.weights import ExportWeights
from saap_edge.formats import FORMATS
from saap_edge.model.blocks import BLOCK_FORMATS, dequantise
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from saap_edge.model.tokenizer import load_tokenizer
from tests.conftest import (
    AS_LLAMA,
    QWEN2_SPLIT,
    TEXT,
    VOCABULARY,
    WIDTHS,
    cut_short,
    randomise_projections,
    raw_model,
    tiny_model,
    write_folder,
)
from tests.exporting.codes_support import tune
from tests.exporting.llama_support import exact_logits

IDS = list(range(1, 30))
TOLERANCE = {name: format.tolerance for name, format in FORMATS.items()}


def engine_logits(path, mode):
    engine = LlamaCppEngine(path, 1, 64)
    if mode == "prefill":
        return engine.forward(IDS, all_logits=True).copy()
    head = [engine.forward(IDS[:10], all_logits=True).copy()] if mode == "mixed" else []
    return np.concatenate(head + [engine.forward([token]).copy() for token in IDS[10 if head else 0 :]])


def assert_parity(folder, path, quantisation):
    artifact_format = f"gguf-{quantisation}"
    model = shipped_model(folder, artifact_format)
    expected = logits(model, IDS)
    with runtime_arithmetic(model, ExportWeights(folder), artifact_format):
        predicted = relative_error(logits(model, IDS), expected)
    for mode in ("prefill", "steps", "mixed"):
        error = relative_error(engine_logits(path, mode), expected)
        assert error < 1.25 * predicted < 0.04, (mode, error, predicted)


@pytest.mark.parametrize("quantisation", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("kind", ["dense", "pruned"])
def test_answers_as_torch_does(kind, quantisation, dense_folder, pruned_folder, tmp_path):
    folder = {"dense": dense_folder, "pruned": pruned_folder}[kind]
    summary = write_gguf(folder, tmp_path / "m.gguf", quantisation)
    assert_parity(folder, tmp_path / "m.gguf", quantisation)
    assert summary["file_bytes"] > summary["projection_bytes"] > 0


def test_f32_answers_within_a_ten_thousandth(pruned_folder, tmp_path):
    """Keys and values in float32 too: what is left is the order of sums."""
    write_gguf(pruned_folder, tmp_path / "m.gguf", "f32")
    expected = logits(load_model(pruned_folder), IDS)
    np.testing.assert_allclose(exact_logits(tmp_path / "m.gguf", IDS), expected, atol=1e-4)


def build(tmp_path, family="llama", widths=WIDTHS, **overrides):
    dense = tiny_model(family, **overrides)
    return write_folder(randomise_projections(build_pruned(dense, widths)), tmp_path / "model")


SCALED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


@pytest.mark.parametrize("overrides", [
    {"tied": False}, {"rope_parameters": SCALED}, {"attention_bias": True}, {"mlp_bias": True},
    {"tied": False, "attention_bias": True, "mlp_bias": True},
    {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
])  # fmt: skip
def test_variants(overrides, tmp_path):
    folder = build(tmp_path, **overrides)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert_parity(folder, tmp_path / "m.gguf", "f16")


@pytest.mark.parametrize("mlp_bias", [False, True])
@pytest.mark.parametrize("quantisation", ["f16", "q4_0"])
def test_off_grid_ffn_is_padded_and_answers_the_same(tmp_path, quantisation, mlp_bias):
    folder = write_folder(tiny_model("llama", intermediate_size=44, mlp_bias=mlp_bias), tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", quantisation)
    assert_parity(folder, tmp_path / "m.gguf", quantisation)
    tensors = by_name(tmp_path / "m.gguf")
    kinds = {tensor.tensor_type.name for name, tensor in tensors.items() if "ffn_down.weight" in name}
    assert kinds == {quantisation.upper()}


def architecture(path):
    return str(gguf.GGUFReader(path).fields["general.architecture"].contents())


def test_uniform_plan_is_a_plain_llama(tmp_path):
    folder = build(tmp_path, widths=[LayerShape(4, 2, 64)] * 3)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert architecture(tmp_path / "m.gguf") == "llama"
    assert_parity(folder, tmp_path / "m.gguf", "f16")
    write_gguf(build(tmp_path / "other"), tmp_path / "o.gguf", "f16")
    assert architecture(tmp_path / "o.gguf") == "deci"


@pytest.mark.parametrize("family", ["llama", "granite"])
@pytest.mark.parametrize("mlp_bias", [False, True])
def test_biases_of_a_uniform_plan_need_no_other_architecture(tmp_path, family, mlp_bias):
    """Repair gives o and down a bias; the folder is then no plain class, the file is."""
    dense = tiny_model(family, mlp_bias=mlp_bias)
    for layer in dense.model.layers:
        for module in (layer.self_attn.o_proj, layer.mlp.down_proj):
            module.bias = torch.nn.Parameter(torch.zeros(64))
    model = randomise_projections(build_pruned(dense, [LayerShape(4, 2, 64)] * 3))
    assert model.config.model_type == "saap_edge"
    folder = write_folder(model, tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "f32")
    assert architecture(tmp_path / "m.gguf") == "llama"
    expected = logits(load_model(folder), IDS)
    np.testing.assert_allclose(exact_logits(tmp_path / "m.gguf", IDS), expected, atol=1e-4)
    names = {name.split(".", 2)[2] for name in by_name(tmp_path / "m.gguf") if name.endswith("bias")}
    assert names == {"attn_output.bias", "ffn_down.bias"} | ({"ffn_gate.bias", "ffn_up.bias"} if mlp_bias else set())


# Attention gone in the first layer, FFN gone in the last, query heads gone in the middle: widths that deci alone takes.
DEPTH = [LayerShape(0, 0, 64), LayerShape(2, 2, 96), LayerShape(8, 4, 0)]


@pytest.mark.parametrize("quantisation", ["f16", "q4_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "granite"])
def test_removed_sublayers_and_query_slots_answer_as_torch_does(family, quantisation, tmp_path):
    folder = build(tmp_path, family, DEPTH)
    write_gguf(folder, tmp_path / "m.gguf", quantisation)
    assert architecture(tmp_path / "m.gguf") == "deci"
    heads = gguf.GGUFReader(tmp_path / "m.gguf").fields["deci.attention.head_count"].contents()
    assert heads == [2, 2, 8]  # two heads of 16, all zero, fill a block of 32
    assert_parity(folder, tmp_path / "m.gguf", quantisation)


@pytest.mark.parametrize("family", AS_LLAMA)
def test_dense_models_in_other_layouts_answer_as_transformers_do(family, tmp_path):
    raw = raw_model(family)
    folder = write_folder(raw, tmp_path / "model")
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert_parity(folder, tmp_path / "m.gguf", "f16")
    with torch.no_grad():
        expected = raw(torch.tensor([IDS])).logits[0].numpy()
    assert relative_error(engine_logits(tmp_path / "m.gguf", "prefill"), expected) < TOLERANCE["gguf-f16"]


def test_families_without_a_writer_are_refused_before_a_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("saap_edge.exporting.refusal.GGUF_WRITERS", ("llama", "deci"))
    folder = build(tmp_path, "gemma2", [LayerShape(4, 2, 64)] * 3)
    with pytest.raises(SaapError, match=r"Gemma 2.*no writer.*'gemma2'.*leave gguf-f16 out"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    folder = build(tmp_path / "q", "qwen3", tied=False)
    with pytest.raises(SaapError, match=r"different widths cannot go to gguf-f16: no architecture.*output matrix"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()


def by_name(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def values(path):
    """What gguf-py reads out of a file: name -> float32 [out, in]."""
    return {name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for name, tensor in by_name(path).items()}


OURS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def stored_parts(path, spec):
    """Codes [out, in] and fp16 figures [out, blocks, 1 or 2] of every projection, rows in the folder's order."""
    parts, tensors = {}, by_name(path)
    for index, layer in enumerate(spec.layers):
        for theirs, ours in OURS.items():
            tensor = tensors[f"blk.{index}.{ours}.weight"]
            kind = tensor.tensor_type.name
            fields = tensor.data.reshape(len(tensor.data), -1, {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind])
            head = 4 if kind == "Q4_1" else 2
            codes, figures = fields[..., head:], np.ascontiguousarray(fields[..., :head]).view(np.float16)
            if kind == "Q8_0":
                codes = (codes.view(np.int8).astype(int) + 128).astype(np.uint8)
            else:
                codes = np.concatenate([codes & 15, codes >> 4], axis=-1)
            heads = {"attn_q": layer.heads, "attn_k": layer.kv_heads}.get(ours)
            rows = np.argsort(permute(np.arange(len(codes)), heads))
            parts[f"model.layers.{index}.{theirs}.weight"] = codes.reshape(len(codes), -1)[rows], figures[rows]
    return parts


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
def test_rounded_blocks_are_the_shared_ones(pruned_folder, tmp_path, name):
    """What gguf-py reads equals what the folder rounds to; rows of q and k are only reordered."""
    weights = ExportWeights(pruned_folder)
    write_gguf(pruned_folder, tmp_path / "m.gguf", name)
    read = values(tmp_path / "m.gguf")
    for index, layer in enumerate(weights.spec.layers):
        for theirs, ours in OURS.items():
            heads = {"attn_q": layer.heads, "attn_k": layer.kv_heads}.get(ours)
            blocks = weights.blocks(f"model.layers.{index}.{theirs}.weight", BLOCK_FORMATS[name])
            np.testing.assert_array_equal(
                read[f"blk.{index}.{ours}.weight"], permute(dequantise(blocks).numpy(), heads)
            )
    table = weights.blocks("model.embed_tokens.weight", BLOCK_FORMATS["q8_0"])
    np.testing.assert_array_equal(read["token_embd.weight"], dequantise(table).numpy())
    assert by_name(tmp_path / "m.gguf")["token_embd.weight"].tensor_type.name == "Q8_0"


@pytest.mark.parametrize(("name", "kind"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_float_weights_are_rounded_once(pruned_folder, tmp_path, name, kind):
    weights = ExportWeights(pruned_folder)
    write_gguf(pruned_folder, tmp_path / "m.gguf", name)
    read = values(tmp_path / "m.gguf")
    for ours, theirs in (
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
    ):
        assert by_name(tmp_path / "m.gguf")[ours].tensor_type.name == name.upper()
        expected = weights.tensor(theirs).to(kind).float()
        np.testing.assert_array_equal(read[ours], expected.numpy())


@pytest.mark.parametrize("group", [32, 64, 128, 256])
@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
def test_tuned_blocks_arrive_untouched(tmp_path, name, group):
    """Down's 96, 64 and 32 inputs fill no larger group: the last one is short, its scale there all the same."""
    folder = build(tmp_path)
    tuned = tune(folder, name, group)
    write_gguf(folder, tmp_path / "m.gguf", name)
    stored = stored_parts(tmp_path / "m.gguf", ExportWeights(folder).spec)
    assert stored.keys() == tuned.keys()
    for weight, blocks in tuned.items():
        codes, figures = stored[weight]
        np.testing.assert_array_equal(codes, blocks.codes.numpy())
        for block in range(figures.shape[1]):
            mine = [
                part[:, block * 32 // group].numpy() for part in (blocks.scales, blocks.offsets) if part is not None
            ]
            np.testing.assert_array_equal(figures[:, block], np.stack(mine, -1))
    assert_parity(folder, tmp_path / "m.gguf", name)


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1"])
def test_tuned_blocks_of_an_ffn_off_the_grid(tmp_path, name):
    """44 channels in a group of 128: the file's are 64, of which the last 20 count for nothing."""
    folder = write_folder(tiny_model("llama", intermediate_size=44), tmp_path / "model")
    tuned = tune(folder, name, 128)
    write_gguf(folder, tmp_path / "m.gguf", name)
    stored = stored_parts(tmp_path / "m.gguf", ExportWeights(folder).spec)
    for weight, blocks in tuned.items():
        codes, figures = stored[weight]
        rows, columns = blocks.codes.shape
        np.testing.assert_array_equal(codes[:rows, :columns], blocks.codes.numpy())
        assert not figures[rows:].any()
        np.testing.assert_array_equal(figures[:rows, 0, 0], blocks.scales[:, 0].numpy())
    assert_parity(folder, tmp_path / "m.gguf", name)


def test_blocks_that_the_file_cannot_hold_are_rounded_anew(tmp_path):
    folder = build(tmp_path)
    weights = ExportWeights(folder)
    tune(folder, "int4_zp", 128)
    write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    for name, (codes, figures) in stored_parts(tmp_path / "m.gguf", weights.spec).items():
        blocks = weights.blocks(name, BLOCK_FORMATS["q4_0"])
        np.testing.assert_array_equal(codes, blocks.codes.numpy())
        np.testing.assert_array_equal(figures[..., 0], blocks.scales.numpy())


def test_permute_pairs_the_halves():
    np.testing.assert_array_equal(permute(np.arange(8), 1), [0, 4, 1, 5, 2, 6, 3, 7])
    np.testing.assert_array_equal(permute(np.arange(8), 2), [0, 2, 1, 3, 4, 6, 5, 7])


# Tokenizers


def ids_agree(folder, tmp_path):
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    engine, tokenizer = LlamaCppEngine(tmp_path / "m.gguf", 1, 16), load_tokenizer(folder)
    for text in (HARD_TEXT, TEXT[:200], "", " ", "a  b\n\n c"):
        assert engine.tokenize(text, False, False) == tokenizer(text, add_special_tokens=False)["input_ids"], text
    assert engine.tokenize("dog", True, False) == tokenizer("dog")["input_ids"]
    return engine


def test_byte_level_bpe(dense_folder, tmp_path):
    engine = ids_agree(dense_folder, tmp_path)
    assert engine.detokenize(engine.tokenize("quick fox", False, False)) == "quick fox"


SPECIAL = ("<unk>", "<s>", "</s>")


def trained(tokenizer, folder, special=SPECIAL, **names):
    byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else [],
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    write_folder(tiny_model("llama"), folder)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **names).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("rule", ["qwen2", "smollm"])
def test_other_splitting_rules(rule, tmp_path):
    tokenizer = Tokenizer(models.BPE())
    steps = {
        "qwen2": [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)],
    }[rule]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    ids_agree(trained(tokenizer, tmp_path / "model"), tmp_path)


def test_sentencepiece_like_bpe(tmp_path):
    """As Llama 1 and 2: metaspace, byte fallback, BOS before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    folder = trained(tokenizer, tmp_path / "model", unk_token="<unk>")
    document = json.loads((folder / "tokenizer.json").read_text())
    room = VOCABULARY - len(document["model"]["vocab"])
    assert room > 0
    # Byte tokens take the ids after the trained ones; there are as many as the table has room for, from 0 up.
    for byte in range(min(room, 256)):
        document["model"]["vocab"][f"<0x{byte:02X}>"] = len(document["model"]["vocab"])
    document["post_processor"] = json.loads(
        processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]).__getstate__()
    )
    (folder / "tokenizer.json").write_text(json.dumps(document))
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    engine, theirs = LlamaCppEngine(tmp_path / "m.gguf", 1, 16), load_tokenizer(folder)
    for text in (TEXT[:150], "the dog  jumps\n over", "Pack my box"):
        assert engine.tokenize(text, True, False) == theirs(text)["input_ids"], text


def test_special_tokens_that_swallow_the_space_behind_them(tmp_path):
    """As Phi-3's: llama.cpp has that rule only for models that are called so."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    special = [
        AddedToken(name, rstrip=name in ("</s>", "<|user|>")) for name in (*SPECIAL, "<|endoftext|>", "<|user|>")
    ]
    folder = trained(tokenizer, tmp_path / "model", special)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["general.name"].contents().startswith("Phi-3")
    engine, theirs = LlamaCppEngine(tmp_path / "m.gguf", 1, 16), load_tokenizer(folder)
    for text in ("<|user|>\n quick fox</s> dog", "<|endoftext|> the <|user|> dog"):
        assert engine.tokenize(text, False, True) == theirs(text, add_special_tokens=False)["input_ids"], text


def test_unknown_splitting_rule_is_refused(tmp_path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex("a+"), "isolated"), decoders.ByteLevel()
    with pytest.raises(SaapError, match="splitting rule 'a\\+'"):
        write_gguf(trained(tokenizer, tmp_path / "model"), tmp_path / "m.gguf", "f16")


def test_chat_template_and_metadata(dense_folder, tmp_path):
    (dense_folder / "chat_template.jinja").write_text("{{ messages }}")
    write_gguf(dense_folder, tmp_path / "m.gguf", "f16")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0


def test_no_tokenizer_is_refused(tmp_path):
    folder = build(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SaapError, match=r"no tokenizer\.json"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"])
@pytest.mark.parametrize("quantisation", ["f16", "q8_0"])
def test_weights_that_are_not_what_the_config_says(name, quantisation, tmp_path):
    folder = cut_short(write_folder(tiny_model("llama"), tmp_path / "model"), name, 96)
    with pytest.raises(SaapError, match=rf"{name} is \(96, 64\), config.json says"):
        write_gguf(folder, tmp_path / "model.gguf", quantisation)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(("widths", "reason"), [
    ([5, 2, 64], "abort the process"), ([8, 0, 64], "shared by 0"),
])  # fmt: skip
def test_traps_of_deci_are_refused_before_a_file_is_written(tmp_path, widths, reason):
    folder = build(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["layer_widths"][1] = widths
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SaapError, match=f"layer 1.*{reason}"):
        write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert not (tmp_path / "m.gguf").exists()
