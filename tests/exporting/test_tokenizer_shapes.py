"""Every shape of tokenizer is carried with transformers' ids, or refused because llama.cpp's would differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saap_edge.engines.llama_cpp import LlamaCppVocabulary
from saap_edge.engines.vocabularies import GenaiVocabulary
from saap_edge.errors import SaapError
from saap_edge.evaluation.token_ids import CHAT, NAMES, PLAIN, Probe, check_token_ids, differences, probes, special_read
from saap_edge.exporting import gguf_tokenizer
from saap_edge.exporting.gguf_tokenizer import write_vocabulary
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.tokenizer import load_tokenizer, plain_ids
from tests.conftest import TEXT, raw_model
from tests.exporting.tokenizer_shapes import SHAPES, Shape
from tests.exporting.tokenizer_texts import ACCENTS, TEXTS, _learnt_bytes, _learnt_pieces

TEMPLATE = "{%% for m in messages %%}%s{%% endfor %%}"


def document(shape: Shape) -> dict[str, Any]:
    """tokenizer.json with the special tokens first and the others behind a vocabulary learnt from the hard texts."""
    learnt, merges = _learnt_pieces() if shape.pieces else _learnt_bytes()
    own = [token for token in learnt if token not in ("<unk>", "<s>", "</s>")]
    tokens = list(dict.fromkeys([*shape.special, *own, *shape.swallowing, *shape.added]))
    ids = {token: index for index, token in enumerate(tokens)}

    def entry(token: str, **flags: Any) -> dict[str, Any]:
        plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"id": ids[token], "content": token} | plain | flags

    added = [entry(token, special=True, **shape.flags) for token in shape.special]
    added += [entry(token, special=True, rstrip=True) for token in shape.swallowing]
    added += [entry(token, special=False, **shape.added_flags) for token in shape.added]
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>" if shape.pieces else None,
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": shape.pieces,
        "byte_fallback": shape.pieces, "ignore_merges": shape.whole,
        "vocab": {token: ids[token] for token in [*shape.special, *own]},
        "merges": [list(pair) for pair in merges if "".join(pair) in own and set(pair) <= set(own)],
    }  # fmt: skip
    trim = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    marks = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    marks += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if shape.prefix else []
    decoder = {"type": "Sequence", "decoders": marks} if shape.pieces else trim
    text = {"Sequence": {"id": "A", "type_id": 0}}
    first = {"id": shape.before, "ids": [ids.get(shape.before or "")], "tokens": [shape.before]}
    token = {"SpecialToken": {"id": shape.before, "type_id": 0}}
    around = {
        "type": "TemplateProcessing", "single": [token, text], "pair": [token, text, text],
        "special_tokens": {shape.before: first},
    }  # fmt: skip
    processor = None if shape.pieces else trim
    if shape.before:
        processor = around if shape.pieces else {"type": "Sequence", "processors": [trim, around]}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": sorted(added, key=lambda each: each["id"]),
        "normalizer": shape.normalizer, "pre_tokenizer": shape.pre_tokenizer, "post_processor": processor,
        "decoder": decoder, "model": model,
    }  # fmt: skip


def template(form: str) -> str:
    """`form` for every turn, and what opens an answer."""
    turn = form.replace("{role}", "{{ m['role'] }}").replace("{content}", "{{ m['content'] }}")
    opened = form.split("{content}")[0].replace("{role}", "assistant")
    return TEMPLATE % turn + "{% if add_generation_prompt %}" + opened + "{% endif %}"


def folder_of(shape: Shape, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    ends = {
        "eos_token": "</s>" if "</s>" in (*shape.special, *shape.added) else shape.special[shape.before is not None]
    }
    ends |= {"bos_token": shape.before} if shape.before else {}
    ends |= {"unk_token": "<unk>"} if shape.pieces else {}
    config = {"tokenizer_class": shape.load_as} | ends | shape.config
    (folder / "tokenizer.json").write_text(json.dumps(document(shape)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    raw_model(shape.family, vocab_size=rows_of(shape)).save_pretrained(folder)
    if shape.form:
        (folder / "chat_template.jinja").write_text(template(shape.form), encoding="utf-8")
    return folder


def rows_of(shape: Shape) -> int:
    """Rows of an embedding that holds all tokens, and eight more."""
    content = document(shape)
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    return max(ids) + 9


def all_texts(tokenizer: Any) -> list[Probe]:
    hard = [Probe(PLAIN, text) for text in (*TEXTS, *ACCENTS[:1]) if text.lstrip(" ") == text and "\u0301" not in text]
    return [*probes(tokenizer, TEXT, len(tokenizer)), *hard]


def said(folder: Path, *formats: str) -> list[str]:
    """What is told of token ids, not of the tokens that end a text."""
    notes = check_token_ids(folder, read_spec(folder), load_tokenizer(folder), TEXT, formats)
    return [note for note in notes if "also ends a text" not in note]


@pytest.mark.parametrize("name", SHAPES)
def test_ids_are_those_of_tokenizer_json_or_told_or_the_model_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[name]
    folder = folder_of(shape, tmp_path / "model")
    spec = read_spec(folder)
    tokenizer = load_tokenizer(folder)
    if shape.refused:
        with pytest.raises(SaapError, match=shape.refused):
            write_vocabulary(folder, spec, tmp_path / "v.gguf")
        assert not (tmp_path / "v.gguf").exists()
        # Rightly so: by the rule that comes nearest, the ids would differ.
        monkeypatch.setattr(gguf_tokenizer, "splitting_rule", lambda document: shape.nearest)
        monkeypatch.setattr(gguf_tokenizer, "check_pieces", lambda document: None)
    write_vocabulary(folder, spec, tmp_path / "v.gguf")
    found = differences(all_texts(tokenizer), tokenizer, LlamaCppVocabulary(tmp_path / "v.gguf").tokenize)
    assert PLAIN in found if shape.refused else set(found) == set(shape.told), found


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if not shape.pieces])
def test_what_genai_reads_otherwise(name: str, tmp_path: Path) -> None:
    """Where a later genai does better, this table says so."""
    shape, folder = SHAPES[name], folder_of(SHAPES[name], tmp_path)
    if isinstance(shape.genai, str):
        with pytest.raises(SaapError, match=shape.genai):
            GenaiVocabulary(folder)
        return
    tokenizer = load_tokenizer(folder)
    found = differences(special_read(all_texts(tokenizer)), tokenizer, GenaiVocabulary(folder).tokenize)
    assert set(found) == set(shape.genai)


def test_all_that_is_said_of_a_model_before_any_work(tmp_path: Path) -> None:
    """In processes of their own, as a compile does it; SmolLM2's digits, which three readers see in two ways."""
    folder = folder_of(SHAPES["SmolLM2"], tmp_path)
    notes = said(folder, "gguf-f16", "onnx-fp32")
    readers = ["AutoTokenizer of transformers 5"] * (not TRANSFORMERS_4) + ["onnxruntime-genai"]
    assert len(notes) == len(readers)
    for note, reader in zip(notes, readers, strict=True):
        assert note.startswith(reader) and "gives other token ids than tokenizer.json in plain text ('" in note, note
    assert "it leaves out the step Digits" in notes[-1] and "the package tokenizers" in notes[-1]


@pytest.mark.skipif(TRANSFORMERS_4, reason="its classes read tokenizer.json")
def test_classes_of_transformers_5_with_a_rule_of_their_own(tmp_path: Path) -> None:
    """Llama's marks no space behind an added token, GPT-2's splits as GPT-2 whatever tokenizer.json says."""
    for name, about in (("TinyLlama", "chat prompts"), ("OLMo 2", "plain text"), ("Zephyr 7B", None)):
        folder = folder_of(SHAPES[name], tmp_path / name)
        notes = said(folder, "gguf-f16")
        assert [about in note for note in notes] == ([True] if about else []), notes


def test_a_rule_that_only_comes_near_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table of rules does not know is measured all the same."""
    folder = folder_of(SHAPES["Llama 3.2"], tmp_path)
    monkeypatch.setattr(gguf_tokenizer, "splitting_rule", lambda document: "qwen2")
    with pytest.raises(SaapError, match=r"splits text into other tokens than tokenizer.json \('.*; leave gguf-f16 out"):
        said(folder, "gguf-f16")
    assert said(folder, "onnx-fp32") == []


def test_pairs_that_only_llama_cpp_merges(tmp_path: Path) -> None:
    """SentencePiece has both ways to "xqz": here one is left out. No text that is compared has the letters."""
    shape = SHAPES["Zephyr 7B"]
    folder, content = folder_of(shape, tmp_path), document(shape)
    vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
    for token in ("q", "x", "z", "xq", "qz", "xqz"):
        vocabulary.setdefault(token, len(vocabulary))
    merges += [["x", "q"], ["q", "z"], ["xq", "z"]]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    spec = replace(read_spec(folder), vocab_size=len(vocabulary))
    notes = check_token_ids(folder, spec, load_tokenizer(folder), TEXT, ["gguf-f16"])
    assert notes == ["llama.cpp merges 1 pairs of tokens that tokenizer.json does not: some texts get other ids"]


def test_a_special_token_that_llama_cpp_makes_of_plain_text(tmp_path: Path) -> None:
    """SentencePiece never makes one; llama.cpp does where pieces of its name are in the vocabulary."""
    shape = SHAPES["Zephyr 7B"]
    folder, content = folder_of(shape, tmp_path), document(shape)
    vocabulary = content["model"]["vocab"]
    for token in ("<", "s", ">", "<s"):
        vocabulary.setdefault(token, len(vocabulary))
    content["model"]["merges"].insert(0, ["<", "s"])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    assert "<s" in tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, "a <s> b"))
    spec = replace(read_spec(folder), vocab_size=len(vocabulary))
    notes = check_token_ids(folder, spec, tokenizer, TEXT, ["gguf-f16"])
    assert any(note.startswith("llama.cpp gives") and NAMES in note for note in notes), notes


def test_a_template_that_refuses_a_conversation(tmp_path: Path) -> None:
    """It is given a shorter one, and one that refuses all is left alone: templates are programs."""
    folder = folder_of(SHAPES["SmolLM2"], tmp_path)
    tokenizer = load_tokenizer(folder)
    for condition, prompts in (("messages|length > 1", 1), ("true", 0)):
        tokenizer.chat_template = "{% if " + condition + " %}{{ raise_exception('no') }}{% endif %}<|im_start|>"
        texts = probes(tokenizer, TEXT, len(tokenizer))
        assert [probe.text for probe in texts if probe.about == CHAT] == ["<|im_start|>"] * prompts


@pytest.mark.parametrize("name", ["SmolLM2", "TinyLlama"])
@pytest.mark.parametrize(("rows", "outcome"), [(-1, "do not belong together"), (0, 0), (1, 1), (64, 64)])
def test_a_vocabulary_of_another_size_than_the_embedding(
    name: str, rows: int, outcome: int | str, tmp_path: Path
) -> None:
    """A token without a row is refused; rows without a token are filled up with ones that no text gives."""
    folder = folder_of(SHAPES[name], tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    spec = replace(read_spec(folder), vocab_size=len(tokenizer) + rows)
    if isinstance(outcome, str):
        with pytest.raises(SaapError, match=outcome):
            write_vocabulary(folder, spec, tmp_path / "v.gguf")
        return
    write_vocabulary(folder, spec, tmp_path / "v.gguf")
    engine = LlamaCppVocabulary(tmp_path / "v.gguf")
    assert engine.vocab_size == len(tokenizer) + outcome
    assert differences(all_texts(tokenizer), tokenizer, engine.tokenize) == {}
