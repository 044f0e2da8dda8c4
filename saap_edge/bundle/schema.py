"""bundle.json: what a bundle for a board holds, where it came from, and the answers it must give there."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from saap_edge.errors import SaapError
from saap_edge.files import file_hash

__all__ = [
    "BUNDLE_FILE", "LIMIT", "LOGITS_FILE", "VERSION", "Answers", "Board", "Bundle", "File", "Licence", "Tokenizer",
    "is_inside", "list_files", "read_bundle",
]  # fmt: skip

VERSION: Literal[1] = 1
BUNDLE_FILE, LOGITS_FILE = "bundle.json", "expected.npy"
LIMIT = 16 * 2**20  # bytes: no bundle.json is longer


def is_inside(path: str) -> bool:
    """Whether `path` is a plain relative path that stays inside its folder, as the files of a bundle must.

    >>> [is_inside(path) for path in ("model/model.onnx", "../model.onnx", "/etc/passwd", "C:model", "a//b")]
    [True, False, False, False, False]
    """
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
    """A file of the bundle, its bytes and sha256. bundle.json itself is not listed."""

    path: Inside
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Board(_Strict):
    """The target that the bundle was made for."""

    name: str
    title: str
    cpu: str
    threads: int = Field(ge=1)


class Licence(_Strict):
    """Licence of the base model, as its folder states it: `name` from README.md (None: not stated), and its files."""

    name: str | None
    files: list[Inside]


class Tokenizer(_Strict):
    """The tokenizer, and a text that it must split as recorded.

    Attributes:
        file: its tokenizer.json.
        text: the text.
        ids: token ids of the text, without special tokens.
        pieces: the names of these ids in the vocabulary.
    """

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

    expected.npy beside it holds the logits of every token, float32 [tokens, columns], at `check.columns` of the
    vocabulary.

    Attributes:
        prompt: the text that was continued.
        prompt_tokens: how many of `tokens` are of the prompt.
        tokens: ids of the prompt and of its greedy continuation.
        text: text of the continuation.
        likeliest: the token with the largest logit after each token.
        margins: how far that logit is ahead of the next, in RMS of the token's centred logits.
        error, tolerance: what the verify stage found against torch.
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
    """A bundle: the file bundle.json.

    Attributes:
        version: of this format.
        saap_edge: version that made it.
        role: dense or pruned.
        format: format of the artifact, as "gguf-q4_0".
        model: the artifact: a GGUF file or an ONNX folder.
        vocab_size: logits a token gives.
        kv_bytes_per_token: bytes of a token's keys and values.
        tuned: block format whose codes were trained; None: there are none.
        group: inputs that share a scale in blocks that were not tuned.
        layers: [heads, kv heads, FFN width] of every layer.
        lineage: hashes of what it was made from, by name.
        versions: versions of the libraries that made it.
        board: the target that it was made for.
        kv: type of the KV cache that run.sh and `bench` use; None: the runtime's own, in which the answers were given.
        ubatch: tokens of a prompt that they compute at once; None: the runtime's own number.
        base_licence: licence of the base model.
        tokenizer: the tokenizer, and a text that it must split as recorded.
        answers: what the artifact must answer.
        files: all other files.
    """

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
    kv: str | None = None
    ubatch: int | None = Field(default=None, ge=1)
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


def list_files(folder: Path) -> list[File]:
    """All files below the folder but bundle.json, as that lists them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / BUNDLE_FILE)
    return [
        File(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=file_hash(path))
        for path in paths
    ]


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
