"""bundle.json: what a bundle for a board holds, where it came from, and the answers it must give there."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from saap_edge.errors import SaapError

__all__ = [
    "BUNDLE_FILE", "LIMIT", "LOGITS_FILE", "VERSION", "Answers", "Board", "Bundle", "File", "Licence", "Tokenizer",
    "is_inside", "read_bundle",
]  # fmt: skip

VERSION: Literal[1] = 1
BUNDLE_FILE, LOGITS_FILE = "bundle.json", "expected.npy"
LIMIT = 16 * 2**20  # bytes of a bundle.json: what is longer is none


def is_inside(path: str) -> bool:
    """`path` is a plain relative path that stays in its folder, as every file of a bundle has."""
    parts = PurePosixPath(path).parts
    return bool(parts) and path == "/".join(parts) and not {"..", "/"} & set(parts) and not set("\\:\0") & set(path)


def _checked(path: str) -> str:
    if not is_inside(path):
        raise ValueError("not a relative path inside the bundle")
    return path


Inside = Annotated[str, AfterValidator(_checked)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class File(_Strict):
    """A file of the bundle; bundle.json itself is not listed."""

    path: Inside
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Board(_Strict):
    """The target it was made for."""

    name: str
    title: str
    cpu: str
    threads: int = Field(ge=1)


class Licence(_Strict):
    """Licence of the base model, as its folder tells: `name` from README.md, None where it says none; its files."""

    name: str | None
    files: list[Inside]


class Tokenizer(_Strict):
    """`file` is its tokenizer.json. `ids` are what it makes of `text`, special tokens left out; `pieces` are what the
    vocabulary calls these ids."""

    file: Inside
    text: str
    ids: list[int]
    pieces: list[str]

    @model_validator(mode="after")
    def _as_many(self) -> Tokenizer:
        if len(self.ids) != len(self.pieces) or not self.ids:
            raise ValueError("tokenizer: as many pieces as ids")
        return self


class Answers(_Strict):
    """What the artifact answered where the bundle was made.

    `tokens` are `prompt_tokens` ids of `prompt` and their greedy continuation, whose text is `text`. expected.npy
    holds the logits of every token, float32 [tokens, columns], at the vocabulary's `columns` (check.py).
    `likeliest`: the token with the largest logit after each; `margins`: how far it is ahead of the next, in RMS of the
    token's centred logits. `error` and `tolerance` are those of the verify stage, against torch.
    """

    prompt: str
    prompt_tokens: int = Field(ge=1)
    tokens: list[int] = Field(min_length=2, max_length=4096)
    text: str
    likeliest: list[int]
    margins: list[float]
    error: float = Field(ge=0)
    tolerance: float = Field(ge=0)

    @model_validator(mode="after")
    def _as_many(self) -> Answers:
        if not len(self.tokens) == len(self.likeliest) == len(self.margins):
            raise ValueError("answers: as many likeliest tokens and margins as tokens")
        return self


class Bundle(_Strict):
    """A bundle. `model` is a GGUF file or an ONNX folder; `layers` are [heads, kv heads, FFN width]; `lineage` maps
    what it was made from to hashes; `versions` are those of the libraries that made it."""

    version: Literal[1]
    saap_edge: str
    role: str
    format: str
    model: Inside
    vocab_size: int = Field(ge=1)
    kv_bytes_per_token: int = Field(ge=0)
    tuned: str | None
    group: int
    layers: list[tuple[int, int, int]]
    lineage: dict[str, str]
    versions: dict[str, str]
    board: Board
    base_licence: Licence
    tokenizer: Tokenizer
    answers: Answers
    files: list[File]

    @model_validator(mode="after")
    def _listed(self) -> Bundle:
        paths = [file.path for file in self.files]
        if len(set(paths)) < len(paths) or BUNDLE_FILE in paths:
            raise ValueError("files: a file is listed twice, or bundle.json itself is")
        if not any(path == self.model or path.startswith(f"{self.model}/") for path in paths):
            raise ValueError(f"files: '{self.model}' is not listed")
        missing = {LOGITS_FILE, self.tokenizer.file, *self.base_licence.files} - set(paths)
        if missing:
            raise ValueError(f"files: '{min(missing)}' is not listed")
        return self


def read_bundle(folder: Path) -> Bundle:
    """The bundle.json of a folder. Raises SaapError when it is missing, malformed, or of another version."""
    path = folder / BUNDLE_FILE
    try:
        if path.stat().st_size > LIMIT:
            raise ValueError(f"more than {LIMIT} bytes")
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        found = document.get("version") if isinstance(document, dict) else None
        if isinstance(found, int) and found > VERSION:
            raise SaapError(f"'{path}' is version {found}, this saap-edge reads {VERSION}: use the one that made it")
        return Bundle.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SaapError(f"'{path}' is damaged: {place and place + ': '}{first['msg']}") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise SaapError(f"'{path}' is not a bundle's manifest: {reason}") from None
