"""Finds the rule of llama.cpp that changes, splits and merges text as a tokenizer.json says.

llama.cpp has a fixed set of named splitting rules (llama-vocab.cpp, llm_tokenizer_bpe). Only rules that split every
text of tests/exporting/tokenizer_texts.py as transformers does are listed here.
"""

from __future__ import annotations

import json
from typing import Any

from saap_edge.errors import SaapError

__all__ = [
    "DIGIT", "GPT2", "SPLITTING_RULES", "check_pieces", "flatten", "holds_pieces", "normalizer_steps",
    "prefixes_space", "splitting_rule", "unmerged_pairs",
]  # fmt: skip

Step = dict[str, Any]

DIGIT = r"\p{N}"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASES = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"  # words end where lower case becomes upper
_DEEPSEEK = (
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""" "|[^\r\n" r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+" "[\r\n]*" r"|\s*" "[\r\n]+" r"|\s+(?!\S)|\s+",
)  # fmt: skip
# (regular expressions whose matches are split off, in order; whether a word that is a token is taken whole) ->
# llama.cpp's name of the rule.
SPLITTING_RULES = {
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_SEED,), False): "seed-coder",
    ((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), True): "minicpm5",
    (_DEEPSEEK, False): "deepseek-v3",
    ((DIGIT, GPT2), False): "smollm",
    ((GPT2,), False): "gpt-2",
}
# Every character is in a match of these, so that removing all but the matches removes nothing.
_COVERING = (_LLAMA3, _QWEN2, GPT2)

_SPACE = "▁"


def flatten(step: Step | None) -> list[Step]:
    """The steps of a part of tokenizer.json, in order, with nested sequences opened.

    >>> flatten({"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]})
    [{'type': 'Digits'}, {'type': 'ByteLevel'}]
    """
    if not step:
        return []
    inside = next((step[name] for name in ("normalizers", "pretokenizers") if name in step), None)
    return [step] if inside is None else [part for each in inside for part in flatten(each)]


def normalizer_steps(document: Step) -> list[Step]:
    """The steps of the normalizer, in order."""
    return flatten(document.get("normalizer"))


def holds_pieces(document: Step) -> bool:
    """Whether a tokenizer is SentencePiece-like: of characters, with bytes for unknown ones, not of bytes only."""
    steps = flatten(document.get("pre_tokenizer"))
    return bool(document["model"].get("byte_fallback")) and not any(step.get("type") == "ByteLevel" for step in steps)


def splitting_rule(document: Step) -> str:
    """llama.cpp's name of the splitting rule of a byte-level tokenizer. Raises SaapError when none is known.

    >>> byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    >>> splitting_rule({"pre_tokenizer": byte_level, "model": {"type": "BPE"}})
    'gpt-2'
    """
    for step in normalizer_steps(document):
        if step.get("type") != "NFC":
            raise SaapError(f"tokenizer normalizer {step.get('type')} has no equal in llama.cpp's BPE")
    steps, whole = flatten(document.get("pre_tokenizer")), bool(document["model"].get("ignore_merges"))
    key = tuple(name for name in (_matches(step, len(steps)) for step in steps) if name)
    bytewise = any(step.get("type") == "ByteLevel" for step in steps)
    if not bytewise or (key, whole) not in SPLITTING_RULES:
        known = ", ".join(sorted(SPLITTING_RULES.values()))
        rule = f"'{'; '.join(key)}'{', taking known words whole,' if whole else ''}"
        rule += " (that of Mistral Nemo and GPT-4o: llama.cpp splits accents otherwise)" if _CASES in rule else ""
        rule += "" if bytewise else " (without the step ByteLevel)"
        raise SaapError(f"llama.cpp has no known equal of this tokenizer's splitting rule {rule} (known: {known})")
    return SPLITTING_RULES[key, whole]


def _matches(step: Step, steps: int) -> str:
    """The regular expression whose matches a step splits off; "" if it splits nothing; else the step's JSON."""
    kind = step.get("type")
    if kind == "Split" and "Regex" in step["pattern"]:
        pattern = str(step["pattern"]["Regex"])
        behaviour = step.get("behavior"), bool(step.get("invert"))
        # Only one step, which turns text into bytes, may follow.
        keeps_all = behaviour == ("Removed", True) and pattern in _COVERING and steps <= 2
        if keeps_all or behaviour == ("Isolated", False):
            return pattern
    if kind == "ByteLevel" and not step.get("add_prefix_space", True):
        return GPT2 if step.get("use_regex", True) else ""
    if kind == "Digits":
        return DIGIT if step.get("individual_digits") else f"{DIGIT}+"
    return json.dumps(step, ensure_ascii=False)


def _marks_spaces(step: Step) -> bool:
    return step.get("type") == "Replace" and step["content"] == _SPACE and list(step["pattern"].values()) == [" "]


def check_pieces(document: Step) -> None:
    """Raise SaapError if a SentencePiece-like tokenizer changes or splits text in any way but marking spaces."""
    steps = normalizer_steps(document)
    for step in steps:
        if not _marks_spaces(step) and step != {"type": "Prepend", "prepend": _SPACE}:
            raise SaapError(f"tokenizer normalizer {step.get('type')} has no equal in llama.cpp's SentencePiece")
    marked = any(map(_marks_spaces, steps))
    for step in flatten(document.get("pre_tokenizer")):
        metaspace = step.get("type") == "Metaspace" and step.get("replacement") == _SPACE
        at_spaces = marked and step.get("pattern") == {"String": " "}  # Gemma's: no space is left to split at
        if not (metaspace or at_spaces):
            raise SaapError(f"tokenizer step {step.get('type')} has no equal in llama.cpp's SentencePiece")
        if metaspace and step.get("split", True) and any(_SPACE in token[1:] for token in document["model"]["vocab"]):
            raise SaapError("the tokenizer splits at spaces, and llama.cpp would take its tokens that have one inside")
        marked = marked or metaspace
    if not marked:
        raise SaapError("the tokenizer does not mark spaces with '▁', as llama.cpp's SentencePiece does")


def prefixes_space(document: Step) -> bool:
    """Whether the tokenizer puts a space before every text."""
    prepends = any(step.get("type") == "Prepend" for step in normalizer_steps(document))
    splitters = flatten(document.get("pre_tokenizer"))
    return prepends or any(step.get("prepend_scheme", "never") in ("always", "first") for step in splitters)


def unmerged_pairs(document: Step) -> int:
    """Number of pairs of SentencePiece-like tokens that form a third token without being a merge.

    llama.cpp, like SentencePiece, merges them anyway. A vocabulary made by SentencePiece has none.

    >>> unmerged_pairs({"model": {"byte_fallback": True, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []}})
    1
    """
    if not holds_pieces(document):
        return 0
    merges = {tuple(pair.split(" ", 1) if isinstance(pair, str) else pair) for pair in document["model"]["merges"]}
    pieces = set(document["model"]["vocab"]) - {token["content"] for token in document.get("added_tokens", [])}
    return sum(
        (token[:cut], token[cut:]) not in merges
        for token in pieces
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    )
