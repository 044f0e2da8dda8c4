"""Token ids of every runtime's own tokenizer against those of tokenizer.json, on texts that are hard to split.

A runtime reads the same vocabulary with code of its own, and measuring is surer than knowing all its rules. Where plain
text comes out otherwise, the model is refused before any work; what else differs is told in a line.
"""

from __future__ import annotations

import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saap_edge.engines.answers import HARD_TEXT, VERIFIED_CHARACTERS
from saap_edge.engines.child import VOCABULARY
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.genai import write_genai
from saap_edge.exporting.gguf_tokenizer import write_vocabulary
from saap_edge.exporting.tokenizer_rules import unmerged_pairs
from saap_edge.formats import FORMATS
from saap_edge.model.config import read_object
from saap_edge.model.spec import ModelSpec
from saap_edge.model.tokenizer import plain_ids
from saap_edge.registry import resolve

__all__ = [
    "PLAIN", "Probe", "by_genai", "by_llama_cpp", "check_token_ids", "differences", "probes", "special_read", "tell",
]  # fmt: skip

# What a difference is about. Plain text must not differ.
PLAIN, LEADING, ACCENTS = "plain text", "text that begins with a space", "accents that are not composed"
ADDED, CHAT, AROUND = "text beside added tokens", "chat prompts", "what stands around a text"
NAMES = "names of special tokens in plain text"

_DIGITS = "a  1\n\n 2   34 5,678  "  # where digits are split first, spaces before them are what differs
_BESIDE = ("The quick{}brown fox", "a {} b", "{}\n\n{}x")
_ADDED = 48  # added tokens that are tried: some vocabularies have thousands of reserved ones
_CHAT = (("user", "The quick  fox?"), ("assistant", "Yes, 12 of them."), ("user", "Why"))

Tokenise = Callable[[str, bool, bool], list[int]]  # text, BOS and EOS are added, special tokens are read


@dataclass(frozen=True)
class Probe:
    """A text, and what a difference in its ids is about. `special`: the names of special tokens in it are tokens;
    `ends`: BOS and EOS are added as the tokenizer asks."""

    about: str
    text: str
    special: bool = False
    ends: bool = False


def probes(tokenizer: Any, text: str, rows: int) -> list[Probe]:
    """Hard texts, the first characters of `text`, texts with the tokenizer's own added tokens, and a chat.

    `rows` are those of the model's embedding: no file has an added token beyond them.
    """
    added = [token for index, token in tokenizer.added_tokens_decoder.items() if index < rows]
    sample = unicodedata.normalize("NFC", text[:VERIFIED_CHARACTERS]).lstrip(" ")
    found = [token for token in added if not token.special and len(token.content.strip()) > 1]
    own = ADDED if any(token.content in sample for token in found) else PLAIN
    texts = [
        Probe(PLAIN, HARD_TEXT), Probe(PLAIN, _DIGITS), Probe(own, sample), Probe(LEADING, "  two spaces first"),
        Probe(ACCENTS, "e\u0301clair man\u0303ana"), Probe(AROUND, "The quick brown fox", True, True),
    ]  # fmt: skip
    texts += [Probe(ADDED, form.format(name, name), True) for name in _chosen(added) for form in _BESIDE]
    texts += [Probe(NAMES, f"The {name} fox {name}") for name in _chosen([token for token in added if token.special])]
    prompt = _chat(tokenizer)
    return [*texts, Probe(CHAT, prompt, True)] if prompt else texts


def special_read(texts: Iterable[Probe]) -> list[Probe]:
    """The texts for a reader that takes the names of special tokens for these everywhere."""
    return [replace(probe, special=True) for probe in texts if probe.about != NAMES]


def _chosen(added: list[Any]) -> list[str]:
    """Names of added tokens: one of each kind, and the first of all."""
    kinds = {(token.special, token.normalized, token.lstrip, token.rstrip, token.single_word): token for token in added}
    return list(dict.fromkeys(token.content for token in [*kinds.values(), *added[:_ADDED]]))


def _chat(tokenizer: Any) -> str | None:
    """A conversation by the model's own template; None where it has none, or one that wants another conversation."""
    messages = [{"role": role, "content": content} for role, content in _CHAT]
    for turns in (messages, messages[:1]) if tokenizer.chat_template else ():
        try:
            prompt: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception:  # whatever a template raises: it is a program
            continue
        return prompt
    return None


def differences(texts: Iterable[Probe], tokenizer: Any, tokenise: Tokenise) -> dict[str, str]:
    """What differs between a runtime and tokenizer.json -> the first place where it does, as `'THEIRS' for 'OURS'`."""
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
    """A line on what differs in a runtime; none where nothing does."""
    told = "; ".join(f"{about} ({place})" for about, place in found.items())
    return [f"{reader} gives other token ids than tokenizer.json in {told}"] if told else []


def check_token_ids(folder: Path, spec: ModelSpec, tokenizer: Any, text: str, formats: Iterable[str]) -> list[str]:
    """Compare the tokenizers of the runtimes that run `formats` with `tokenizer`, the one of `folder`; `text` is one
    that will be measured.

    Returns what differs beside plain text, a line each. Raises SaapError when a runtime cannot have this tokenizer, or
    gives other ids for plain text.
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
    """What differs in transformers where AutoTokenizer takes the class that tokenizer_config.json names."""
    from transformers import AutoTokenizer

    try:
        other = AutoTokenizer.from_pretrained(str(folder))
    except Exception:  # a class that it does not know, or code of the model's own: saap-edge does without it
        return []

    def tokenise(text: str, ends: bool, special: bool) -> list[int]:
        ids: list[int] = other(text, add_special_tokens=ends, split_special_tokens=not special, verbose=False)[
            "input_ids"
        ]
        return ids

    name = f"AutoTokenizer of transformers {version('transformers')} ({type(other).__name__})"
    return tell(name, differences(texts, tokenizer, tokenise))


def by_llama_cpp(folder: Path, spec: ModelSpec, texts: list[Probe], tokenizer: Any) -> list[str]:
    """What differs in llama.cpp beside plain text. Raises SaapError where it cannot have the tokenizer."""
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
    """What differs in onnxruntime-genai, plain text too: the graph is not at fault, and others run it."""
    if find_spec("onnxruntime_genai") is None:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        write_genai(spec, folder, Path(scratch), "model.onnx")
        try:
            with Worker(f"onnxruntime-genai{VOCABULARY}", Path(scratch), 1, 1) as worker:
                found = differences(special_read(texts), tokenizer, worker.tokenize)
        except SaapError as error:
            return [f"onnxruntime-genai's own tokenizer does not take this one: {error}"]
    return tell("onnxruntime-genai's own tokenizer", found)
