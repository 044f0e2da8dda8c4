"""Token ids of llama.cpp against transformers', with vocabularies in which every wrong split shows."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.tokenizer_rules import splitting_rule
from saap_edge.model.tokenizer import load_tokenizer
from tests.conftest import QWEN2_SPLIT, tiny_model, write_folder
from tests.exporting.tokenizer_texts import (
    ACCENTS,
    GPT4O,
    RULES,
    TEKKEN,
    TEXTS,
    TOKENS_INSIDE,
    WHOLE,
    hostile,
    pieces,
    split,
    then_bytes,
)  # fmt: skip


def exported(tokenizer: Tokenizer, tmp_path: Path, **names: str) -> tuple[LlamaCppEngine, Any]:
    """llama.cpp with a model that has this tokenizer, and transformers' own."""
    folder = write_folder(tiny_model("llama", vocab_size=tokenizer.get_vocab_size() + 3), tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    names = {"bos_token": "<s>", "eos_token": "</s>"} | names
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    return LlamaCppEngine(tmp_path / "m.gguf", 1, 16), load_tokenizer(folder)


def differing(engine: LlamaCppEngine, theirs: Any, texts: list[str]) -> list[str]:
    """Texts that come out otherwise; transformers always reads special tokens in a text."""

    def same(text: str) -> bool:
        alone = engine.tokenize(text, False, True) == theirs.encode(text, add_special_tokens=False)
        return alone and engine.tokenize(text, True, True) == theirs.encode(text)

    return [text for text in texts if not same(text)]


@pytest.mark.parametrize("rule", RULES)
def test_every_splitting_rule(rule: str, tmp_path: Path) -> None:
    tokenizer = hostile(RULES[rule], ignore_merges=rule in WHOLE)
    assert splitting_rule(json.loads(tokenizer.to_str())) == rule
    engine, theirs = exported(tokenizer, tmp_path)
    assert differing(engine, theirs, [*TEXTS, *ACCENTS, *TOKENS_INSIDE]) == []
    # Plain text: a token's name stays text where special tokens are not read.
    assert engine.tokenize("a<s>b", False, False) != engine.tokenize("a<s>b", False, True)


def test_the_texts_tell_the_rules_apart(tmp_path: Path) -> None:
    """Else the test above would pass with any of them."""
    ids = {
        name: tuple(tuple(hostile(rule).encode(text).ids) for text in TEXTS)
        for name, rule in RULES.items() if name != "smaug-bpe"
    }  # fmt: skip
    assert len(set(ids.values())) == len(ids)


@pytest.mark.parametrize("whole", [True, False])
def test_words_that_are_tokens(whole: bool, tmp_path: Path) -> None:
    """Llama 3 takes a known word whole though no merges make it; others with its rule do not."""
    tokenizer = hostile(RULES["llama-bpe"], ignore_merges=whole)
    document = json.loads(tokenizer.to_str())
    document["model"]["vocab"]["Ġlighthouse"] = tokenizer.get_vocab_size()
    engine, theirs = exported(Tokenizer.from_str(json.dumps(document)), tmp_path)
    assert differing(engine, theirs, ["a lighthouse", "a lighthouses", " lighthouse"]) == []
    assert (len(theirs.encode(" lighthouse")) == 1) == whole


@pytest.mark.parametrize(("name", "pattern", "whole"), [("tekken", TEKKEN, True), ("gpt-4o", GPT4O, False)])
def test_rules_that_llama_cpp_only_approximates(
    name: str, pattern: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral Nemo's and GPT-4o's: llama.cpp splits accented camel case and combining marks otherwise. Refused."""
    tokenizer = hostile(then_bytes(split(pattern)), ignore_merges=whole)
    with pytest.raises(SaapError, match="no known equal"):
        exported(tokenizer, tmp_path / "refused")
    monkeypatch.setattr("saap_edge.exporting.gguf_tokenizer.splitting_rule", lambda document: name)
    engine, theirs = exported(tokenizer, tmp_path)
    marks = [text for text in TEXTS if "\u0301" in text]
    assert differing(engine, theirs, [*TEXTS, *ACCENTS]) == [*marks, *ACCENTS]


def test_llama_cpp_does_not_compose_characters(tmp_path: Path) -> None:
    """Qwen's tokenizer composes accents before it splits (NFC). Text that is composed already, as nearly all is, comes
    out the same."""
    tokenizer = hostile(RULES["qwen2"])
    tokenizer.normalizer = normalizers.NFC()
    engine, theirs = exported(tokenizer, tmp_path)
    texts = [*TEXTS, *ACCENTS, *TOKENS_INSIDE]
    assert differing(engine, theirs, texts) == [text for text in texts if unicodedata.normalize("NFC", text) != text]


def change(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(fields)


def of_model(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["model"].update(fields)


def of_tool(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["added_tokens"][-1].update(fields)


REFUSED: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (of_model(continuing_subword_prefix="##"), "continuing_subword_prefix '##'"),
    (of_model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (of_model(ignore_merges=True), "taking known words whole"),
    (of_tool(rstrip=True), "'<tool>' has rstrip"),
    (of_tool(single_word=True), "'<tool>' has single_word"),
    (change(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
    (change(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}), "splitting rule"),
    (change(pre_tokenizer=json.loads(split(QWEN2_SPLIT).__getstate__()) | {"behavior": "Removed"}), "splitting rule"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), REFUSED)
def test_what_would_be_nearly_right_is_refused(
    damage: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path
) -> None:
    folder = write_folder(tiny_model("llama", vocab_size=1500), tmp_path / "model")
    document = json.loads(hostile(RULES["gpt-2"]).to_str())
    damage(document)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(SaapError, match=reason):
        write_gguf(folder, tmp_path / "m.gguf", "q8_0")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(("template", "reason"), [
    ("$A", None), ("<s> $A", None), ("$A </s>", None), ("<s> $A </s>", None), ("</s> $A", "puts </s> around"),
    ("<s> <s> $A", "puts <s> <s> around"), ("$A <s>", "puts <s> around"),
])  # fmt: skip
def test_what_stands_around_a_text(template: str, reason: str | None, tmp_path: Path) -> None:
    tokenizer = hostile(RULES["gpt-2"])
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    if reason:
        with pytest.raises(SaapError, match=reason):
            exported(tokenizer, tmp_path)
    else:
        assert differing(*exported(tokenizer, tmp_path), ["", "dog", "<tool>", " x"]) == []


# SentencePiece-like


MARKED = normalizers.Replace(" ", "▁")
SENTENCEPIECE = {
    "prepended": (normalizers.Sequence([normalizers.Prepend("▁"), MARKED]), None),
    "marked": (MARKED, None),
    "gemma": (MARKED, pre_tokenizers.Split(" ", "merged_with_previous")),
    "metaspace-always": (None, pre_tokenizers.Metaspace("▁", "always", split=False)),
    "metaspace-first": (None, pre_tokenizers.Metaspace("▁", "first", split=False)),
    "metaspace-never": (None, pre_tokenizers.Metaspace("▁", "never", split=False)),
}


# llama.cpp, as SentencePiece itself, marks a space before every text, also behind a token inside; Metaspace not where
# there is one, nor, where it is for the first text only, behind a token inside.
BEGIN_WITH_A_SPACE = [" ", "  ", "  leading and trailing   ", TOKENS_INSIDE[0], TOKENS_INSIDE[1], " <s> "]
DIFFERING = {"metaspace-always": BEGIN_WITH_A_SPACE, "metaspace-first": [*BEGIN_WITH_A_SPACE, "é<tool>é"]}


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_sentencepiece_like(kind: str, tmp_path: Path) -> None:
    engine, theirs = exported(pieces(*SENTENCEPIECE[kind]), tmp_path, unk_token="<unk>")
    assert differing(engine, theirs, [*TEXTS, *ACCENTS, *TOKENS_INSIDE]) == DIFFERING.get(kind, [])


def lower(document: dict[str, Any]) -> None:
    document["normalizer"]["normalizers"].append({"type": "Lowercase"})


REFUSED_PIECES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lower, "normalizer Lowercase"),
    (change(pre_tokenizer={"type": "Whitespace"}), "step Whitespace"),
    (
        change(pre_tokenizer=json.loads(pre_tokenizers.Metaspace("▁", "always").__getstate__())),
        "tokens that have one inside",
    ),
]


@pytest.mark.parametrize(("damage", "reason"), REFUSED_PIECES)
def test_sentencepiece_that_would_be_nearly_right_is_refused(
    damage: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path
) -> None:
    document = json.loads(pieces(*SENTENCEPIECE["prepended"]).to_str())
    damage(document)
    with pytest.raises(SaapError, match=reason):
        exported(Tokenizer.from_str(json.dumps(document)), tmp_path)
    assert not (tmp_path / "m.gguf").exists()
