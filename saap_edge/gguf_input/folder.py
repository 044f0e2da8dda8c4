"""Unpacks a GGUF model into a Hugging Face folder. The weights stay in the file, to which the folder links."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from saap_edge.engines.answers import HARD_TEXT
from saap_edge.engines.child import VOCABULARY
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf_special import llama_cpp_ends
from saap_edge.gguf_file.reader import GgufModel
from saap_edge.gguf_file.tensors import GGUF_FILE
from saap_edge.gguf_input.config import config_of
from saap_edge.gguf_input.rounding import rounding_note, rounding_of
from saap_edge.gguf_input.tokenizer import ROLES, Vocabulary, tokenizer_of
from saap_edge.model.checkpoint import open_checkpoint

__all__ = ["SOURCE_FILE", "source_of", "unpack"]

VERSION = 1  # of the written folders: after a change all are unpacked again
SOURCE_FILE = "source.json"
_TEMPLATE = re.compile(r"[A-Za-z0-9_.-]+")
_SAMPLING = {"top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}
# Texts on which the tokenizer is compared with llama.cpp's, besides the hard text.
_TEXTS = (
    "", " ", "  two spaces", "\n\n \n\t x", "a\n\n\nb   c", "HTTPServer camelCase __init__ x1 1x 12345678 3.14 ½",
    "''' it's IT'S we'LL d'accord !!! ?? => /// `code`",
    "한국어 ひらがな漢字 中文，标点。 हिन्दी ไทย", "👨‍👩‍👧‍👦 ©®™ a\u200bb\ufeffc e\u0301clair n\u0303",
)  # fmt: skip


def unpack(path: Path) -> Path:
    """The folder of a GGUF model, which is made once and kept in the user's cache.

    It has config.json, the tokenizer, chat templates, generation_config.json, README.md with the licence, source.json,
    and links to the file.

    Raises SaapError, in one line, when the file is damaged or a part of it is missing, and when its architecture, rope,
    tokenizer or types of tensors are not supported.
    """
    if not path.is_file():
        raise SaapError(f"no file '{path}'")
    model = GgufModel(path)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saap-edge" / "gguf"
    stem = re.sub(r"[^A-Za-z0-9_.-]", "_", model.header.files[0].stem)
    final = root / f"{stem}-{_digest(model)}"
    if final.is_dir():
        return final
    with _written(root, final) as folder:
        _write_folder(model, folder)
    return final


def source_of(folder: Path) -> dict[str, Any] | None:
    """The content of source.json: file, architecture, types of matrices and the error of their rounding.

    None for a folder that was not unpacked from a GGUF file.
    """
    path = folder / SOURCE_FILE
    if not (folder / GGUF_FILE).is_symlink() or not path.is_file():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _digest(model: GgufModel) -> str:
    """A hash of all that determines the folder: the files' paths and headers, VERSION, whether llama.cpp is there."""
    runtime = find_spec("llama_cpp") is not None
    digest = hashlib.sha256(json.dumps([VERSION, runtime, *map(str, model.header.files)]).encode())
    for file in model.header.files:
        starts = [tensor.offset for tensor in model.header.tensors if tensor.file == file]
        with file.open("rb") as handle:
            digest.update(handle.read(min(starts, default=-1)))
    return digest.hexdigest()[:12]


@contextmanager
def _written(root: Path, final: Path) -> Iterator[Path]:
    """A temporary folder, renamed to `final` when it is complete, and removed on failure."""
    temporary = root / f".tmp-{final.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():  # else another run was faster, and its folder is the same
                raise
    except OSError as error:
        raise SaapError(f"cannot unpack into '{root}': {error.strerror or error} (XDG_CACHE_HOME)") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_folder(model: GgufModel, folder: Path) -> None:
    config = config_of(model)
    vocabulary = Vocabulary.of(model, config["vocab_size"])
    tokenizer = tokenizer_of(vocabulary)
    (folder / GGUF_FILE).symlink_to(model.header.files[0])
    for file in model.header.files if len(model.header.files) > 1 else ():
        (folder / file.name).symlink_to(file)  # so that the folder's hash covers all files
    special = {f"{role}_token_id": vocabulary.ids.get(role) for role in ("bos", "eos", "pad")}
    _json(folder / "config.json", config | special)
    _check_tensors(folder, model.path)
    _json(folder / "tokenizer.json", tokenizer)
    _json(folder / "tokenizer_config.json", _tokenizer_config(vocabulary, config["max_position_embeddings"]))
    _templates(model, folder)
    (folder / "README.md").write_text(_readme(model), encoding="utf-8")
    asked = _ask_llama_cpp(model, folder)
    named = asked["ends"] if asked else sorted(llama_cpp_ends(vocabulary.tokens, vocabulary.ids))
    ends = list(dict.fromkeys([*vocabulary.ends, *named]))
    _json(folder / "generation_config.json", _generation(model, vocabulary, ends))
    if asked:
        _compare(model, folder, asked["ids"])
    found = rounding_of(model)
    name = model.header.files[0].name
    source = {"file": name, "architecture": model.architecture} | found | {"note": rounding_note(name, found)}
    _json(folder / SOURCE_FILE, source)


def _check_tensors(folder: Path, path: Path) -> None:
    """Raise SaapError, about the GGUF file, when `open_checkpoint` would refuse the folder."""
    try:
        open_checkpoint(folder)
    except SaapError as error:
        raise SaapError(str(error).replace(str(folder), str(path))) from None


def _json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _tokenizer_config(vocabulary: Vocabulary, context: int) -> dict[str, Any]:
    named = {f"{role}_token": vocabulary.tokens[vocabulary.ids[role]] for role in ROLES if role in vocabulary.ids}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    } | named  # fmt: skip


def _templates(model: GgufModel, folder: Path) -> None:
    prefix = "tokenizer.chat_template"
    for key in model.header.metadata:
        if key != prefix and not key.startswith(f"{prefix}."):
            continue
        name = key.removeprefix(prefix).removeprefix(".")
        if name and not _TEMPLATE.fullmatch(name):
            raise SaapError(f"'{model.path}': a chat template is called {name!r}")
        path = folder / "additional_chat_templates" / f"{name}.jinja" if name else folder / "chat_template.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(model.text(key), encoding="utf-8")


def _readme(model: GgufModel) -> str:
    general = {name: model.text(f"general.{name}", None) for name in ("license", "license.name", "license.link")}
    front = {name.replace(".", "_"): value for name, value in general.items() if value}
    title = model.text("general.name", model.header.files[0].stem)
    head = yaml.safe_dump(front) if front else ""
    return f"---\n{head}---\n\n# {title}\n\nUnpacked from {model.header.files[0].name}.\n"


def _generation(model: GgufModel, vocabulary: Vocabulary, ends: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {
        f"{role}_token_id": vocabulary.ids[role] for role in ("bos", "pad") if role in vocabulary.ids
    }
    if ends:
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    temperature = model.number("general.sampling.temp", None)
    if temperature is not None:
        found["do_sample"] = temperature > 0
        found |= {"temperature": temperature} if temperature > 0 else {}
    for key, word in _SAMPLING.items():
        value = model.number(f"general.sampling.{key}", None)
        if value is not None and (word == "repetition_penalty" or found.get("do_sample")):
            found[word] = value
    return found


def _probes(folder: Path) -> list[str]:
    """Texts to compare, the last with every special token between words."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = [token["content"] for token in document["added_tokens"]][:200]
    return [HARD_TEXT, *_TEXTS, "".join(f"{token}word {token} \n" for token in added)]


def _ask_llama_cpp(model: GgufModel, folder: Path) -> dict[str, Any] | None:
    """llama.cpp's ids of the probes, and the ids at which it ends a text; None if it is not installed."""
    if find_spec("llama_cpp") is None:
        return None
    try:
        with Worker(f"llama.cpp{VOCABULARY}", model.header.files[0], 1, 1) as worker:
            return {"ids": [worker.tokenize(text, True, True) for text in _probes(folder)], "ends": worker.ends()}
    except SaapError as error:
        raise SaapError(f"'{model.path}': llama.cpp does not read its vocabulary: {error}") from None


def _compare(model: GgufModel, folder: Path, expected: list[list[int]]) -> None:
    """Raise SaapError when the folder's tokenizer gives other ids than llama.cpp."""
    from saap_edge.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    for text, ids in zip(_probes(folder), expected, strict=True):
        found = tokenizer(text)["input_ids"]
        if found != ids:
            at = next(i for i, pair in enumerate(zip_longest(found, ids)) if pair[0] != pair[1])
            raise SaapError(
                f"'{model.path}': its tokenizer, as it was read, gives other ids than llama.cpp: of "
                f"{text[:40]!r}, token {at} is {found[at : at + 1]}, not {ids[at : at + 1]}. Please report it with the "
                "name of the model"
            )
