"""The files of a parent and its drafts: where they are, and whether their tokens are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saap_edge.artifacts import read_manifest
from saap_edge.cache import ancestors
from saap_edge.engines.gguf_header import Header, read_header, read_strings
from saap_edge.engines.registry import engine_named
from saap_edge.errors import SaapError
from saap_edge.formats import described

__all__ = ["check_same_tokens", "dense_of", "draft_at"]

_REPORT = "report.json"  # the link in a run's --out folder to what its last stage wrote
# What gives a text its ids, and an id its text. Chat templates may differ.
_SCALARS = ("model", "pre", "add_space_prefix", "remove_extra_whitespaces", "byte_fallback")
_STRINGS = ("tokens", "merges")
_NUMBERS = ("token_type", "scores")


def draft_at(path: Path, format: str | None) -> Path:
    """The file of a pruned model: a .gguf file as it is; of a run's --out folder or an export, the artifact.

    Raises SaapError where there is none, or `format` has to say which one.
    """
    if path.is_file():
        return path
    folder = _stage(path, "export") if (path / _REPORT).is_file() else path
    return _artifact(folder, format, path)


def dense_of(path: Path, format: str | None) -> Path:
    """The dense model's artifact in a run's --out folder. Raises SaapError as `draft_at`."""
    if not (path / _REPORT).is_file():
        raise SaapError(f"--model is needed: '{path}' is no finished run, whose dense model could be taken")
    return _artifact(_stage(path, "dense"), format, path)


def _stage(out: Path, name: str) -> Path:
    found = ancestors((out / _REPORT).resolve().parent)
    if name not in found:
        raise SaapError(f"'{out}' has no stage {name}: give .gguf files")
    return found[name]


def _artifact(folder: Path, format: str | None, asked: Path) -> Path:
    if not (folder / "manifest.json").is_file():
        raise SaapError(f"'{asked}' is no .gguf file, no run's --out folder and no export: give one of these")
    every = {artifact.format: artifact.path for artifact in read_manifest(folder).artifacts}
    known = {name: path for name, path in every.items() if engine_named(described(name).engine).drafts}
    if not known:
        raise SaapError(f"'{asked}' has no GGUF file ({', '.join(every)}): only llama.cpp takes a draft here")
    if format is None and len(known) > 1:
        raise SaapError(f"--format is needed: '{asked}' has {', '.join(known)}")
    if format is not None and format not in known:
        raise SaapError(f"--format {format}: '{asked}' has {', '.join(known)}")
    return folder / known[format or next(iter(known))]


def check_same_tokens(model: Path, draft: Path) -> None:
    """Raise SaapError, naming what differs, unless both files give every text the same token ids."""
    one, other = read_header(model), read_header(draft)
    names = [read_strings(header.files[0], "tokenizer.ggml.tokens") for header in (one, other)]
    if names[0] is None or names[1] is None:
        lacking = model if names[0] is None else draft
        raise SaapError(f"'{lacking}' has no tokenizer: whether both have the same tokens cannot be told")
    if len(names[0]) != len(names[1]):
        _refuse(model, draft, f"{len(names[0])} tokens and {len(names[1])}")
    for key in _STRINGS:
        first, second = (read_strings(header.files[0], f"tokenizer.ggml.{key}") or [] for header in (one, other))
        _compare(model, draft, key, first, second)
    for key in _NUMBERS:
        _compare(model, draft, key, _told(one, key) or [], _told(other, key) or [])
    for key in _SCALARS:
        if _told(one, key) != _told(other, key):
            _refuse(model, draft, f"tokenizer.ggml.{key} is {_told(one, key)!r} and {_told(other, key)!r}")


def _told(header: Header, key: str) -> Any:
    return header.metadata.get(f"tokenizer.ggml.{key}")


def _compare(model: Path, draft: Path, key: str, first: list[Any], second: list[Any]) -> None:
    if first == second:
        return
    place = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        _refuse(model, draft, f"tokenizer.ggml.{key} has {len(first)} entries and {len(second)}")
    else:
        _refuse(model, draft, f"tokenizer.ggml.{key} {place} is {first[place]!r} and {second[place]!r}")


def _refuse(model: Path, draft: Path, what: str) -> None:
    raise SaapError(
        f"'{draft}' is no draft of '{model}': their tokenizers differ ({what}). A draft must be a pruning of the same "
        "model"
    )
