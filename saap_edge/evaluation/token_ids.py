"""Compares the token ids of every runtime's tokenizer with those of tokenizer.json, on texts that are hard to split.

Each runtime splits text with code of its own, and a comparison is more reliable than knowledge of all its rules. If ids
of plain text differ, the model is refused before any work. Other differences are reported, a line each.
"""

from __future__ import annotations

import json
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saap_edge.engines.answers import DIGITS, HARD_TEXT, VERIFIED_CHARACTERS
from saap_edge.engines.child import VOCABULARY
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.genai import write_genai
from saap_edge.exporting.gguf_tokenizer import write_vocabulary
from saap_edge.exporting.openvino import write_tokenizer
from saap_edge.exporting.tokenizer_rules import unmerged_pairs
from saap_edge.formats import FORMATS
from saap_edge.model.config import read_object
from saap_edge.model.spec import ModelSpec
from saap_edge.model.tokenizer import plain_ids
from saap_edge.registry import resolve

__all__ = [
    "PLAIN", "Probe", "by_genai", "by_llama_cpp", "by_openvino", "check_token_ids", "differences", "probes",
    "special_read", "tell",
]  # fmt: skip

# Kinds of texts in which ids may differ. Those of plain text must not.
PLAIN, LEADING, ACCENTS = "plain text", "text that begins with a space", "accents that are not composed"
ADDED, CHAT, AROUND = "text beside added tokens", "chat prompts", "what stands around a text"
NAMES = "names of special tokens in plain text"

_BESIDE = ("The quick{}brown fox", "a {} b", "{}\n\n{}x")
_ADDED = 48  # most added tokens that are tried: some vocabularies have thousands of reserved ones
_CHAT = (("user", "The quick  fox?"), ("assistant", "Yes, 12 of them."), ("user", "Why"))

Tokenise = Callable[[str, bool, bool], list[int]]  # (text, add BOS and EOS, read names of special tokens) -> ids


@dataclass(frozen=True)
class Probe:
    """A text to compare.

    Attributes:
        about: its kind, which a report of a difference names.
        special: names of special tokens in it are read as these tokens.
        ends: BOS and EOS are added if the tokenizer says so.
    """

    about: str
    text: str
    special: bool = False
    ends: bool = False


def probes(tokenizer: Any, text: str, rows: int) -> list[Probe]:
    """Hard texts, the beginning of `text`, texts with the tokenizer's added tokens, and a chat.

    `rows` is the number of rows of the model's embedding: exported files have no added tokens beyond them.
    """
    added = [token for index, token in tokenizer.added_tokens_decoder.items() if index < rows]
    sample = unicodedata.normalize("NFC", text[:VERIFIED_CHARACTERS]).lstrip(" ")
    found = [token for token in added if not token.special and len(token.content.strip()) > 1]
    own = ADDED if any(token.content in sample for token in found) else PLAIN
    texts = [
        Probe(PLAIN, HARD_TEXT), Probe(PLAIN, DIGITS), Probe(own, sample), Probe(LEADING, "  two spaces first"),
        Probe(ACCENTS, "e\u0301clair man\u0303ana"), Probe(AROUND, "The quick brown fox", True, True),
    ]  # fmt: skip
    texts += [Probe(ADDED, form.format(name, name), True) for name in _chosen(added) for form in _BESIDE]
    texts += [Probe(NAMES, f"The {name} fox {name}") for name in _chosen([token for token in added if token.special])]
    prompt = _chat(tokenizer)
    return [*texts, Probe(CHAT, prompt, True)] if prompt else texts


def special_read(texts: Iterable[Probe]) -> list[Probe]:
    """The texts for a runtime that always reads the names of special tokens as these tokens.

    >>> special_read([Probe(PLAIN, "a b"), Probe(NAMES, "The </s> fox")])
    [Probe(about='plain text', text='a b', special=True, ends=False)]
    """
    return [replace(probe, special=True) for probe in texts if probe.about != NAMES]


def _chosen(added: list[Any]) -> list[str]:
    """Names of some added tokens: one with each combination of flags, and the first _ADDED."""
    kinds = {(token.special, token.normalized, token.lstrip, token.rstrip, token.single_word): token for token in added}
    return list(dict.fromkeys(token.content for token in [*kinds.values(), *added[:_ADDED]]))


def _chat(tokenizer: Any) -> str | None:
    """A conversation in the model's own template; None if it has none, or refuses this conversation."""
    messages = [{"role": role, "content": content} for role, content in _CHAT]
    for turns in (messages, messages[:1]) if tokenizer.chat_template else ():
        try:
            prompt: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception:  # a template is a program, and may raise anything
            continue
        return prompt
    return None


def differences(texts: Iterable[Probe], tokenizer: Any, tokenise: Tokenise) -> dict[str, str]:
    """Kind of text -> the first place where a runtime differs from tokenizer.json, as `'THEIRS' for 'OURS'`.

    Kinds without a difference are left out.
    """
    found: dict[str, str] = {}
    for probe in texts:
        if probe.about in found:
            continue
        expected = _expected(tokenizer, probe)
        actual = tokenise(probe.text, probe.ends, probe.special)
        if actual != expected:
            found[probe.about] = _place(tokenizer, actual, expected)
    return found


def _expected(tokenizer: Any, probe: Probe) -> list[int]:
    if not probe.special:
        return plain_ids(tokenizer, probe.text)
    ids: list[int] = tokenizer(probe.text, add_special_tokens=probe.ends, verbose=False)["input_ids"]
    return ids


def _place(tokenizer: Any, actual: list[int], expected: list[int]) -> str:
    pairs = enumerate(zip(actual, expected, strict=False))
    at = next((index for index, (a, b) in pairs if a != b), min(len(actual), len(expected)))
    rows = len(tokenizer)

    def pieces(ids: list[int]) -> str:
        names = [tokenizer.convert_ids_to_tokens(i) if i < rows else str(i) for i in ids[max(0, at - 1) : at + 3]]
        return re.sub(r"\s+", " ", " ".join(map(str, names)))[:60]

    return f"'{pieces(actual)}' for '{pieces(expected)}'"


def tell(reader: str, found: Mapping[str, str]) -> list[str]:
    """A line with all differences of a runtime (`reader`), or no line.

    >>> tell("llama.cpp", {CHAT: "'a b' for 'ab'"})
    ["llama.cpp gives other token ids than tokenizer.json in chat prompts ('a b' for 'ab')"]
    """
    told = "; ".join(f"{about} ({place})" for about, place in found.items())
    return [f"{reader} gives other token ids than tokenizer.json in {told}"] if told else []


def check_token_ids(folder: Path, spec: ModelSpec, tokenizer: Any, text: str, formats: Iterable[str]) -> list[str]:
    """Compare the tokenizers of the runtimes that run `formats` with `tokenizer`, which is that of `folder`.

    `text` is one that will be measured. Returns a line for each difference in other than plain text. Raises SaapError
    when a runtime cannot read this tokenizer, or gives other ids for plain text.
    """
    texts, asked = probes(tokenizer, text, spec.vocab_size), list(formats)
    notes = _by_its_class(folder, texts, tokenizer)
    checks: dict[str, list[str]] = {}
    for record in FORMATS.values():
        if record.name in asked and record.token_check is not None:
            checks.setdefault(record.token_check, []).append(record.name)
    for check, names in checks.items():
        try:
            notes += resolve(check)(folder, spec, texts, tokenizer)
        except SaapError as error:
            named = ", ".join(name for name in asked if name in names)
            raise SaapError(f"{error}; leave {named} out (export.formats)") from None
    return notes


def _by_its_class(folder: Path, texts: list[Probe], tokenizer: Any) -> list[str]:
    """Differences of transformers' AutoTokenizer, which uses the class named in tokenizer_config.json."""
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(str(folder))
    except Exception:  # an unknown class, or one that needs the model's own code, which saap-edge does not run
        return []

    def tokenise(text: str, ends: bool, special: bool) -> list[int]:
        ids: list[int] = other(text, add_special_tokens=ends, split_special_tokens=not special, verbose=False)[
            "input_ids"
        ]
        return ids

    name = f"AutoTokenizer of transformers {version('transformers')} ({type(other).__name__})"
    return tell(name, differences(texts, tokenizer, tokenise))


def by_llama_cpp(folder: Path, spec: ModelSpec, texts: list[Probe], tokenizer: Any) -> list[str]:
    """Differences of llama.cpp in other than plain text.

    Raises SaapError when it cannot read the tokenizer, or splits plain text differently.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        try:
            named = write_vocabulary(folder, spec, path)
        except OSError as error:
            raise SaapError(f"cannot write a temporary file to '{scratch}': {error.strerror}") from None
        notes = (
            [f"llama.cpp, unlike transformers, also ends a text at {', '.join(named)}: by the name"] if named else []
        )
        if find_spec("llama_cpp") is None:
            return [*notes, "llama.cpp is not installed here: its token ids were not compared"]
        try:
            with Worker(f"llama.cpp{VOCABULARY}", path, 1, 1) as worker:
                found = differences(texts, tokenizer, worker.tokenize)
        except SaapError as error:
            raise SaapError(f"llama.cpp does not take this tokenizer: {error}") from None
    if PLAIN in found:
        raise SaapError(f"llama.cpp splits text into other tokens than tokenizer.json ({found[PLAIN]})")
    pairs = unmerged_pairs(read_object(folder / "tokenizer.json"))
    if pairs:
        notes.append(f"llama.cpp merges {pairs} pairs of tokens that tokenizer.json does not: some texts get other ids")
    return [*tell("llama.cpp", found), *notes]


def by_genai(folder: Path, spec: ModelSpec, texts: list[Probe], tokenizer: Any) -> list[str]:
    """Differences of onnxruntime-genai. Even those in plain text are no error: other programs run the graph too."""
    if find_spec("onnxruntime_genai") is None:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        write_genai(spec, folder, Path(scratch), "model.onnx")
        try:
            with Worker(f"onnxruntime-genai{VOCABULARY}", Path(scratch), 1, 1) as worker:
                found = differences(special_read(texts), tokenizer, worker.tokenize)
        except SaapError as error:
            return [f"onnxruntime-genai's own tokenizer does not take this one: {error}"]
    return [f"{note}: {_why_genai(folder)}" for note in tell("onnxruntime-genai's own tokenizer", found)]


def _why_genai(folder: Path) -> str:
    """What is known of the reason, and what to do. No other form of the rule helps: of expressions with \\p{...}, genai
    reads only those that it knows by their text."""
    remedy = "where that matters, make the ids with the package tokenizers (append_tokens takes ids)"
    steps = json.dumps(read_object(folder / "tokenizer.json").get("pre_tokenizer"))
    return f"it leaves out the step Digits, which splits digits off first; {remedy}" if '"Digits"' in steps else remedy


def by_openvino(folder: Path, spec: ModelSpec, texts: list[Probe], tokenizer: Any) -> list[str]:
    """Differences of OpenVINO GenAI. Even those in plain text are no error: other programs run the model too."""
    if find_spec("openvino_genai") is None:
        return ["openvino-genai is not installed here: its token ids were not compared"]
    with tempfile.TemporaryDirectory() as scratch:
        write_tokenizer(folder, Path(scratch))
        try:
            with Worker(f"openvino{VOCABULARY}", Path(scratch), 1, 1) as worker:
                found = differences(special_read(texts), tokenizer, worker.tokenize)
        except SaapError as error:
            return [f"OpenVINO GenAI's own tokenizer does not take this one: {error}"]
    return tell("OpenVINO GenAI's own tokenizer", found)
