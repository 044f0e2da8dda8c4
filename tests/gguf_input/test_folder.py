"""Unpacked folders: tokenizers against llama.cpp on the same file, ids, templates, licence; damage, parts, cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from saap_edge.chain.context import open_context
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError
from saap_edge.evaluation.parity import logits
from saap_edge.evaluation.subjects import Settings, evaluate_path
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.kquants import write_kquant
from saap_edge.gguf_file.reader import GgufModel
from saap_edge.gguf_input import folder as folder_module
from saap_edge.gguf_input.folder import source_of, unpack
from saap_edge.gguf_input.rounding import rounding_of
from saap_edge.model.folder import load_model
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.progress import no_bar
from saap_edge.recipe import Recipe
from saap_edge.sources import resolve_model
from tests.conftest import VOCABULARY, raw_model, tiny_model, write_folder
from tests.exporting.tokenizer_texts import RULES, SPECIAL, TEXTS, TOKENS_INSIDE, WHOLE, hostile
from tests.gguf_input.foreign import TOKENS, finish, tensors_of, write_foreign, writer_of

IDS = list(range(1, 20))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "saap-edge" / "gguf"


def write_with(tokenizer: Tokenizer, tmp_path: Path, family: str = "llama") -> Path:
    """A file of ours of a tiny model with this tokenizer."""
    scalar = {"query_pre_attn_scalar": 16} if family == "gemma2" else {}
    model = tiny_model(family, vocab_size=tokenizer.get_vocab_size() + 3, **scalar)  # fewer tokens than rows
    folder = write_folder(model, tmp_path / "hf")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    write_gguf(folder, tmp_path / "m.gguf", "f16")
    return tmp_path / "m.gguf"


def assert_ids_of_llama_cpp(folder: Path, path: Path, texts: list[str]) -> None:
    engine, tokenizer = LlamaCppEngine(path, 1, 64), load_tokenizer(folder)
    for text in texts:
        assert tokenizer(text)["input_ids"] == engine.tokenize(text, True, True), text
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert plain == engine.tokenize(text, False, True), text


@pytest.mark.parametrize("rule", list(RULES))
def test_every_splitting_rule(rule, tmp_path):
    path = write_with(hostile(RULES[rule], ignore_merges=rule in WHOLE), tmp_path)
    assert_ids_of_llama_cpp(unpack(path), path, [*TEXTS, *TOKENS_INSIDE])


@pytest.mark.parametrize("family,rule", [("qwen2", "qwen2"), ("qwen2", "gpt-2"), ("qwen3", "qwen2")])
def test_a_family_whose_class_has_a_rule_of_its_own(family, rule, tmp_path):
    """The file's rule counts: AutoTokenizer of transformers 5 has Qwen2's for every qwen2."""
    path = write_with(hostile(RULES[rule]), tmp_path, family)
    assert_ids_of_llama_cpp(unpack(path), path, [*TEXTS, *TOKENS_INSIDE])


def sentencepiece(prefix: bool) -> Tokenizer:
    """BPE with byte fallback whose tokens have several ways to be merged, of equal and of other lengths."""
    pieces = ["▁", *"abcdehlortuw", "é", "ab", "bc", "abc", "he", "ll", "lo", "hell", "llo", "hello", "▁h", "▁hello",
              "▁▁", "▁w", "or", "wor", "ld", "▁wor", "▁world", "aa", "aaaa", "aaa"]  # fmt: skip
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    for token in [*(f"<0x{byte:02X}>" for byte in range(256)), *pieces]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [
        (token[:cut], token[cut:])
        for token in pieces
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    mark = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark]) if prefix else mark
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


@pytest.mark.parametrize("family,prefix", [("llama", True), ("llama", False), ("mistral", True), ("gemma2", False)])
def test_sentencepiece(family, prefix, tmp_path):
    path = write_with(sentencepiece(prefix), tmp_path, family)
    texts = ["hello world", " hello  world", "aaaaaaa aaaaa", "abcabc helloworld", "<s>hello</s> world<tool> hello"]
    folder = unpack(path)
    assert_ids_of_llama_cpp(folder, path, [*TEXTS, *TOKENS_INSIDE, *texts])
    assert load_tokenizer(folder).decode(load_tokenizer(folder)("hello wörld").input_ids) == "hello wörld"


def plain_folder(tmp_path: Path, change=lambda writer: None, name: str = "m.gguf", **overrides: object) -> Path:
    """A foreign file, its metadata changed, unpacked."""
    model = raw_model("llama", **overrides)
    writer = writer_of(model, tmp_path / name)
    change(writer)
    finish(writer, tensors_of(model))
    return unpack(tmp_path / name)


def test_a_folder_says_what_the_file_says(tmp_path):
    def change(writer):
        writer.add_add_bos_token(True)
        writer.add_eot_token_id(3)
        writer.add_pad_token_id(2)
        writer.add_sampling_temp(0.7)
        writer.add_sampling_top_k(40)
        writer.add_string("tokenizer.chat_template.tool_use", "tools {{ tools }}")

    folder = plain_folder(tmp_path, change)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {
        "bos_token_id": 0, "pad_token_id": 2, "eos_token_id": [0, 3, 1], "do_sample": True, "temperature": 0.7,
        "top_k": 40,
    }  # fmt: skip
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 2)
    assert tokenizer("he").input_ids == [0, TOKENS.index("he")]
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hi<|im_end|>"
    assert tokenizer.apply_chat_template(chat, tokenize=False, chat_template="tool_use", tools=[]) == "tools []"
    assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0\n---\n")
    assert tokenizer.vocab_size == len(TOKENS)  # what only fills the embedding is no token


def test_weights_stay_in_the_file_and_a_folder_is_made_once(tmp_path, cache):
    path = write_foreign(raw_model("llama"), tmp_path / "m.gguf")
    folder = unpack(path)
    assert (folder / "model.gguf").is_symlink() and folder.parent == cache
    assert sum(file.lstat().st_size for file in folder.iterdir()) < 100_000
    before = (folder / "config.json").stat().st_mtime_ns
    assert unpack(path) == folder == resolve_model(str(path))
    assert (folder / "config.json").stat().st_mtime_ns == before
    # Another model under the same name is another folder.
    other = plain_folder(tmp_path, lambda writer: writer.add_description("other"))
    assert other != folder and sorted(os.listdir(cache)) == sorted([folder.name, other.name])


@pytest.mark.parametrize("change,reason", [
    (lambda w: w.add_tokenizer_pre("tekken"), "splitting rule 'tekken'"),
    (lambda w: w.add_tokenizer_model("t5"), "tokenizer 't5' is not supported"),
    (lambda w: w.add_token_list(["a", "b"]), "the tokenizer has 2 tokens"),
    (lambda w: w.add_token_list(["a"] * VOCABULARY), "a token is in the vocabulary twice"),
    (lambda w: w.add_token_types([1, 2]), "is of 2 tokens"),
    (lambda w: w.add_token_merges(["x y"]), "the merge 'x y' is of tokens"),
    (lambda w: (w.add_bos_token_id(VOCABULARY), w.add_add_bos_token(True)), "every text gets a BOS"),
    (lambda w: w.add_string("tokenizer.chat_template.../../x", "x"), "a chat template is called"),
])  # fmt: skip
def test_what_the_vocabulary_cannot_be_is_refused(change, reason, tmp_path, cache):
    def anew(writer):
        """What the change adds takes the place of what the writer has."""
        kept = writer.kv_data[0].copy()
        writer.kv_data[0].clear()
        change(writer)
        writer.kv_data[0] = kept | writer.kv_data[0]

    with pytest.raises(SaapError) as error:
        plain_folder(tmp_path, anew)
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert not list(cache.iterdir())


def test_a_tokenizer_that_differs_from_llama_cpp_is_refused(tmp_path, cache, monkeypatch):
    path = write_with(hostile(RULES["llama-bpe"], ignore_merges=True), tmp_path)
    right = folder_module.tokenizer_of

    def wrong(vocabulary):
        document = right(vocabulary)
        document["pre_tokenizer"] = json.loads(pre_tokenizers.ByteLevel(False).__getstate__())
        return document

    monkeypatch.setattr(folder_module, "tokenizer_of", wrong)
    with pytest.raises(SaapError, match="gives other ids than"):
        unpack(path)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.9, 0.9999])
def test_a_file_cut_short_is_refused_and_leaves_nothing(share, tmp_path, cache):
    path = write_foreign(raw_model("llama"), tmp_path / "m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SaapError) as error:
        unpack(path)
    assert "\n" not in str(error.value) and not cache.exists()


def test_no_file_and_no_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" * 100)
    for name, reason in (("x.gguf", "is not a GGUF file"), ("none.gguf", "no model folder")):
        with pytest.raises(SaapError, match=reason):
            resolve_model(str(tmp_path / name))


def split(tmp_path: Path) -> list[Path]:
    model = raw_model("llama")
    writer = writer_of(model, tmp_path / "m.gguf")
    writer.split_max_tensors = 12
    finish(writer, tensors_of(model))
    return sorted(tmp_path.glob("m-*.gguf"))


def test_a_split_model_is_read_whole_from_any_part(tmp_path):
    parts = split(tmp_path)
    assert len(parts) > 2
    folder = unpack(parts[1])
    assert folder == unpack(parts[0])
    np.testing.assert_allclose(logits(load_model(folder), IDS), logits(raw_model("llama"), IDS), atol=1e-4)
    assert {path.name for path in parts} < set(os.listdir(folder))  # each decides the result of a stage
    parts[-1].unlink()
    with pytest.raises(SaapError, match=parts[-1].name):
        unpack(parts[0])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_rounding_that_blocks_show_is_that_which_was_done(kind, tmp_path):
    kind_of = gguf.GGMLQuantizationType[kind]
    weights = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    packed = gguf.quants.quantize(weights, kind_of)
    lost = np.sqrt(np.square(gguf.quants.dequantize(packed, kind_of) - weights).mean() / np.square(weights).mean())
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", packed, raw_dtype=kind_of)
    finish(writer, {"norm": np.ones(4, np.float32)})
    found = rounding_of(GgufModel(tmp_path / "m.gguf"))
    assert found["types"] == {kind: 1}
    assert found["rounding"][kind] == pytest.approx(lost, rel=0.05)


@pytest.mark.parametrize("quantisation,kind", [("q4_k_m", "Q4_K"), ("q6_k", "Q6_K")])
def test_the_rounding_of_k_quants(quantisation, kind, tmp_path):
    folder = write_folder(raw_model("llama", hidden_size=256, intermediate_size=256), tmp_path / "hf")
    write_gguf(folder, tmp_path / "f16.gguf", "f16")
    write_kquant(folder, tmp_path / "f16.gguf", tmp_path / "m.gguf", quantisation)
    model = GgufModel(tmp_path / "m.gguf")
    name = "blk.0.ffn_gate.weight"
    weights = load_model(folder).model.layers[0].mlp.gate_proj.weight.detach().numpy()
    lost = np.sqrt(np.square(model.rows(name, 0, 256).numpy() - weights).mean() / np.square(weights).mean())
    # These look for the scale that rounds best, and so lose less than evenly spread errors would.
    assert 0.8 * rounding_of(model)["rounding"][kind] < lost < rounding_of(model)["rounding"][kind]


def test_a_job_names_the_file_and_says_what_its_rounding_cost(tmp_path):
    folder = write_folder(tiny_model("llama", max_position_embeddings=1024), tmp_path / "hf")
    write_gguf(folder, tmp_path / "m.gguf", "q4_1")
    recipe = Recipe.model_validate({"model": str(tmp_path / "m.gguf"), "target": "rpi5"})
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"formats": ["gguf-q4_0"]})})
    job = open_context(recipe, None, no_bar)
    assert job.model_name == "m.gguf"
    assert any("quantised already" in warning and "Q4_1" in warning for warning in job.warnings)
    assert source_of(job.model) == job.source and job.source["types"]["Q4_1"] == 21


def test_evaluate_needs_no_other_tokenizer(tmp_path):
    folder = write_folder(tiny_model("llama"), tmp_path / "hf")
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox. " * 100)
    found = [
        evaluate_path(tmp_path / "m.gguf", Settings(text=text, window=64, tokenizer=tokenizer), no_bar)["perplexity"]
        for tokenizer in (None, folder, tmp_path / "m.gguf")
    ]
    assert found[0] == found[1] == found[2]
