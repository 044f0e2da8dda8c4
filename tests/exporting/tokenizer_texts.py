"""Texts that tokenizers get wrong, and vocabularies in which every wrong split shows.

The tokens are learnt from the hard texts themselves without any splitting rule, so that merges cross every boundary
between words: a boundary that one side has and the other not gives other ids.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from saap_edge.engines.answers import HARD_TEXT
from saap_edge.exporting.tokenizer_rules import _DEEPSEEK, _LLAMA3, _QWEN35, _SEED
from tests.conftest import QWEN2_SPLIT

TEXTS = [
    HARD_TEXT, "", " ", "  ", "\n", "\n\n \n", "\t\t x", "a\u00a0b\u2003c \u3000d", "x  \n  y", "\r\r\n\n\r \r",
    "  leading and trailing   ", "HTTPServer camelCase PascalCase", "e\u0301clair n\u0303 हिन्दी ไทย தமிழ் বাংলা ខ្មែរ",
    "3.14 1,000,000 2²³ ½ ٣٤٥ Ⅷ 12345678 1a2b3c x1 1x", "''' it's IT'S I'm we'LL 's'S d'accord’s they'Re",
    "!!! ?? :-) => <= /// \\\\ $$ ++ `code` ~/x_y-z __init__ a.b.c",
    "한국어 띄어쓰기 ひらがなカタカナ漢字 中文字符，标点。", "#include <stdio.h>\r\n\r\nint main(){\treturn 0;}",
    "👨‍👩‍👧‍👦🏳️‍🌈🇩🇪 ☃️ ©®™", "a\u200bb\u200d\ufeffc \x1f", "a  1\n\n 2   34 5,678  ", "ﬁ ﬂ ß ẞ İı ſ Kelvin K Å",
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


RULES: dict[str, Step] = {  # llama.cpp's name: the rule
    "gpt-2": pre_tokenizers.ByteLevel(False),
    "smollm": then_bytes(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama-bpe": then_bytes(split(_LLAMA3)),
    "smaug-bpe": then_bytes(split(_LLAMA3)),
    "qwen2": then_bytes(split(QWEN2_SPLIT)),
    "qwen35": then_bytes(split(_QWEN35)),
    "seed-coder": then_bytes(split(_SEED)),
    "minicpm5": then_bytes(split(r"\p{N}{1,3}"), split(_LLAMA3.replace("{1,3}", "+"))),
    "deepseek-v3": then_bytes(*map(split, _DEEPSEEK)),
}
WHOLE = ("llama-bpe", "minicpm5")  # that take a word which is a token whole


@cache
def _learnt_bytes() -> tuple[dict[str, int], list[tuple[str, str]]]:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    learner.train_from_iterator([*TEXTS, *ACCENTS, *TOKENS_INSIDE] * 3, trainer)
    learnt = json.loads(learner.to_str())["model"]
    return learnt["vocab"], [tuple(pair) for pair in learnt["merges"]]


def hostile(rule: Step, **model: Any) -> Tokenizer:
    """Byte-level BPE whose merges cross every boundary."""
    tokenizer = Tokenizer(models.BPE(*_learnt_bytes(), **model))
    tokenizer.pre_tokenizer, tokenizer.decoder = rule, decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = TEKKEN.replace("]+|[^", "]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^", 1).replace(
    "]*|\\p{N}|", "]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}|"
)


@cache
def _learnt_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every pair that makes a piece is a merge, in the order of pieces: so it is in what SentencePiece has learnt."""
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    texts = [*TEXTS, *TOKENS_INSIDE]
    # The trainer breaks ties by chance: letters that occur as often as others are chosen here.
    letters = sorted(Counter("▁".join(texts).replace(" ", "▁")).items(), key=lambda item: (-item[1], item[0]))
    kept = [letter for letter, _ in letters[:150]]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=list(SPECIAL), initial_alphabet=kept, limit_alphabet=len(kept)
    )
    learner.train_from_iterator(texts * 3, trainer)
    learnt = json.loads(learner.to_str())["model"]
    own = [token for token in sorted(learnt["vocab"], key=learnt["vocab"].get) if token not in SPECIAL]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *own]
    known = set(own)
    made = list(dict.fromkeys("".join(pair) for pair in learnt["merges"]))
    pairs = [(token[:cut], token[cut:]) for token in made for cut in range(1, len(token))]
    merges = [pair for pair in pairs if known.issuperset(pair)]
    return {token: index for index, token in enumerate(tokens)}, merges


def pieces(normalizer: normalizers.Normalizer | None, pre_tokenizer: Step | None) -> Tokenizer:
    """As Llama 1 and 2, Mistral, Gemma: pieces learnt over marked spaces, bytes for what is unknown."""
    vocabulary, merges = _learnt_pieces()
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
