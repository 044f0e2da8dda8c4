"""Token ids of llama.cpp against transformers', with vocabularies in which every wrong split shows.

The tokens are learnt from the hard texts themselves without any splitting rule, so that merges cross every boundary
between words: a boundary that one side has and the other not gives other ids.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.errors import SaapError
from saap_edge.evaluate.answers import HARD_TEXT
from saap_edge.export.gguf import write_gguf
from saap_edge.export.gguf_tokenizer import _DEEPSEEK, _LLAMA3, pre_tokenizer_name
from saap_edge.model.tokenizer import load_tokenizer
from tests.conftest import QWEN2_SPLIT, tiny_model, write_folder

TEXTS = [
    HARD_TEXT, "", " ", "  ", "\n", "\n\n \n", "\t\t x", "a\u00a0b\u2003c \u3000d", "x  \n  y", "\r\r\n\n\r \r",
    "  leading and trailing   ", "HTTPServer camelCase PascalCase", "e\u0301clair n\u0303 हिन्दी ไทย தமிழ் বাংলা ខ្មែរ",
    "3.14 1,000,000 2²³ ½ ٣٤٥ Ⅷ 12345678 1a2b3c x1 1x", "''' it's IT'S I'm we'LL 's'S d'accord’s they'Re",
    "!!! ?? :-) => <= /// \\\\ $$ ++ `code` ~/x_y-z __init__ a.b.c",
    "한국어 띄어쓰기 ひらがなカタカナ漢字 中文字符，标点。", "#include <stdio.h>\r\n\r\nint main(){\treturn 0;}",
    "👨‍👩‍👧‍👦🏳️‍🌈🇩🇪 ☃️ ©®™", "a\u200bb\u200d\ufeffc \x1f", "ﬁ ﬂ ß ẞ İı ſ Kelvin K Å",
]  # fmt: skip
ACCENTS = ["CaseÉcole ÉCOLEnaïveTé aÉb ïAb ǅ ǆ", "e\u0301clair"]
# Special and added tokens inside, with spaces beside them.
TOKENS_INSIDE = [
    "The<s> quick </s>\n\n<tool>x",
    "<tool><tool> <s><s>a",
    "a <toolbox> b<tool",
    " <s> ",
    "<s>",
    "é<tool>é",
]
SPECIAL = ("<unk>", "<s>", "</s>")
Step = pre_tokenizers.PreTokenizer


def split(pattern: str) -> Step:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def then_bytes(*steps: Step, use_regex: bool = False) -> Step:
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=use_regex)])


RULES: dict[str, Step] = {
    "gpt-2": pre_tokenizers.ByteLevel(False),
    "smollm": then_bytes(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama-bpe": then_bytes(split(_LLAMA3)),
    "smaug-bpe": then_bytes(split(_LLAMA3)),
    "qwen2": then_bytes(split(QWEN2_SPLIT)),
    "deepseek-v3": then_bytes(*map(split, _DEEPSEEK)),
}


def hostile(rule: Step, **model: Any) -> Tokenizer:
    """Byte-level BPE whose merges cross every boundary."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    learner.train_from_iterator([*TEXTS, *ACCENTS, *TOKENS_INSIDE] * 3, trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(learnt["vocab"], [tuple(pair) for pair in learnt["merges"]], **model))
    tokenizer.pre_tokenizer, tokenizer.decoder = rule, decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


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
    tokenizer = hostile(RULES[rule], ignore_merges=rule == "llama-bpe")
    assert pre_tokenizer_name(json.loads(tokenizer.to_str())) == rule
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


TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = TEKKEN.replace("]+|[^", "]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^", 1).replace(
    "]*|\\p{N}|", "]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}|"
)


@pytest.mark.parametrize(("name", "pattern", "whole"), [("tekken", TEKKEN, True), ("gpt-4o", GPT4O, False)])
def test_rules_that_llama_cpp_only_approximates(
    name: str, pattern: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral Nemo's and GPT-4o's: llama.cpp splits accented camel case and combining marks otherwise. Refused."""
    tokenizer = hostile(then_bytes(split(pattern)), ignore_merges=whole)
    with pytest.raises(SaapError, match="no known equal"):
        exported(tokenizer, tmp_path / "refused")
    monkeypatch.setattr("saap_edge.export.gguf_tokenizer.pre_tokenizer_name", lambda document: name)
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


def pieces(normalizer: normalizers.Normalizer | None, pre_tokenizer: Step | None) -> Tokenizer:
    """As Llama 1 and 2, Mistral, Gemma: pieces learnt over marked spaces, bytes for what is unknown."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=list(SPECIAL), limit_alphabet=150)
    learner.train_from_iterator([*TEXTS, *TOKENS_INSIDE] * 3, trainer)
    learnt = json.loads(learner.to_str())["model"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [token for token in sorted(learnt["vocab"], key=learnt["vocab"].get) if token not in SPECIAL]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


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
