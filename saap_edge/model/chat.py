"""What a model folder says about texts and chats: special tokens, ids that end a text, chat templates, sampling.

Every format is written from this one reading, so that all formats end a text where transformers does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from saap_edge.errors import SaapError
from saap_edge.model.checkpoint import open_checkpoint
from saap_edge.model.tokenizer import BACKEND_5, PLAIN, load_tokenizer

__all__ = ["DEFAULT", "Chat", "Sampling", "read_chat", "read_generation", "sampling_of"]

DEFAULT = "default"  # name of the template that is used when none is named
GENERATION_FILE = "generation_config.json"
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Chat:
    """Special tokens, ends, templates and sampling defaults of one model. All ids are inside its vocabulary.

    Attributes:
        tokens: ids by role (ROLES), as transformers' tokenizer has them.
        bos, pad: the tokenizer's, else those of generation_config.json or config.json, else None.
        ends: every id that ends a text or a turn, the tokenizer's own first (`_ends`).
        variables: the text of each variable that a template may use ("bos_token" and so on).
        templates: chat templates by name.
        generation: the content of generation_config.json.
        tokenizer_class: the class that transformers loads, under a name that transformers 4 and 5 both know.
        warnings: a line about each value that had to be left out.
    """

    tokens: dict[str, int]
    bos: int | None
    pad: int | None
    ends: tuple[int, ...]
    variables: dict[str, str]
    templates: dict[str, str]
    generation: dict[str, Any]
    tokenizer_class: str
    warnings: tuple[str, ...]

    def with_variables(self, template: str, given: Collection[str]) -> str:
        """`template` with definitions of the special tokens that it names before it, except those in `given`.

        `given` are those that a runtime defines itself. transformers defines all that the tokenizer has.
        """
        names = sorted(set(re.findall(r"\b[a-z]+_token\b", template)) - set(given))
        wanted = [name for name in names if name in self.variables or name in ("bos_token", "eos_token")]
        return (
            "".join(f"{{%- set {name} = {json.dumps(self.variables.get(name, ''))} -%}}" for name in wanted) + template
        )


@dataclass(frozen=True)
class Sampling:
    """How a model's next token is chosen, with transformers' defaults where generation_config.json says nothing.

    `do_sample` None: the file does not say, and transformers takes the likeliest token. `top_k` 0: no limit.
    """

    do_sample: bool | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


def read_chat(folder: str | Path, generation: dict[str, Any] | None = None) -> Chat:
    """Read the `Chat` of a Hugging Face folder. `generation` replaces its generation_config.json.

    Raises SaapError as `open_checkpoint`, for a folder without a tokenizer, and for values that are not token ids,
    templates or numbers.
    """
    folder = Path(folder)
    config = open_checkpoint(folder).config
    generation = read_generation(folder) if generation is None else generation
    sampling_of(generation, folder / GENERATION_FILE)  # refused here, not in the middle of an export
    reader = _Ids(int(config["vocab_size"]))
    sources = ((generation, folder / GENERATION_FILE), (config, folder / "config.json"))
    said = {
        role: [(index, path) for source, path in sources for index in reader.read(source.get(f"{role}_token_id"), path)]
        for role in ("bos", "eos", "pad")
    }
    tokenizer, vocabulary = _as_people_load_it(folder), load_tokenizer(folder)
    _check_rows(folder, vocabulary, reader)
    words = vocabulary.get_vocab()
    variables = {
        name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str) and text in words
    }
    ids = {role: words.get(variables.get(f"{role}_token", "")) for role in ROLES}
    tokens = {role: index for role, index in ids.items() if index is not None and index < reader.vocab_size}
    first = {role: tokens.get(role, next((index for index, _ in said[role]), None)) for role in ("bos", "pad")}
    special = {*tokens.values(), *(int(index) for index in vocabulary.added_tokens_decoder)}
    ends = _ends(tokens.get("eos"), said["eos"], special, reader)
    name = type(tokenizer).__name__
    return Chat(
        tokens=tokens, bos=first["bos"], pad=first["pad"], ends=ends, variables=variables,
        templates=_templates(folder, tokenizer), generation=generation,
        tokenizer_class=PLAIN if name == BACKEND_5 else name, warnings=tuple(dict.fromkeys(reader.warnings)),
    )  # fmt: skip


def read_generation(folder: str | Path) -> dict[str, Any]:
    """The content of generation_config.json; empty where there is none. Raises SaapError when it is no JSON object."""
    path = Path(folder) / GENERATION_FILE
    return _read(path) if path.is_file() else {}


def sampling_of(generation: dict[str, Any], where: str | Path = GENERATION_FILE) -> Sampling:
    """The sampling defaults of a generation_config.json; `where` names it in errors.

    Raises SaapError for values of another type than transformers accepts.

    >>> sampling_of({"do_sample": True, "temperature": 0.6})
    Sampling(do_sample=True, temperature=0.6, top_k=50, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    """

    def number(name: str, default: float) -> float:
        value = generation.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SaapError(f"{where}: {name} is {json.dumps(value)}: a number is needed, or leave it out")
        return float(value)

    sample = generation.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise SaapError(f"{where}: do_sample is {json.dumps(sample)}: true or false is needed, or leave it out")
    return Sampling(
        sample, number("temperature", 1.0), int(number("top_k", 50)), number("top_p", 1.0), number("min_p", 0.0),
        number("repetition_penalty", 1.0),
    )  # fmt: skip


class _Ids:
    """Reads token ids in the forms people write, and keeps a warning about each that it leaves out."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.warnings = vocab_size, list[str]()

    def read(self, value: Any, where: str | Path) -> Iterator[int]:
        """The ids in a number, a number as text, or a list of these. Raises SaapError for anything else."""
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            if isinstance(item, str) and re.fullmatch(r"-?\d+", item.strip()):
                item = int(item)
            if isinstance(item, bool) or not isinstance(item, int):
                raise SaapError(f"{where}: {json.dumps(item)} is no token id: give a whole number, or a list of them")
            if 0 <= item < self.vocab_size:
                yield item
            else:
                self.warnings.append(f"{where}: token id {item} left out: the model has ids 0 to {self.vocab_size - 1}")


def _ends(eos: int | None, said: list[tuple[int, Path]], special: set[int], reader: _Ids) -> tuple[int, ...]:
    """All ids that end a text: the tokenizer's, those of generation_config.json and those of config.json.

    transformers' `generate` stops at those of generation_config.json, or of config.json where the former has none; chat
    programs stop at the tokenizer's. At each of them some program ends the answer, so all of them count. Exception: if
    generation_config.json has ends, an id of config.json that is an ordinary token was left by another tokenizer.
    """
    sure = [index for index, path in said if path.name == GENERATION_FILE]
    ends = list(dict.fromkeys([*([] if eos is None else [eos]), *sure]))
    for index, path in said:
        if index in ends:
            continue
        if sure and index not in special:
            reader.warnings.append(f"{path}: eos_token_id {index} left out: it is an ordinary piece of text")
        else:
            ends.append(index)
    return tuple(ends)


def _check_rows(folder: Path, tokenizer: Any, reader: _Ids) -> None:
    """Raise SaapError when ordinary tokens have no row in the embedding; note added tokens that have none.

    Gemma 3's text models have such an added token, and so do models that were given a padding token later. transformers
    fails at them too.
    """
    rows = reader.vocab_size
    if tokenizer.vocab_size > rows:
        raise SaapError(
            f"'{folder}': the tokenizer has {tokenizer.vocab_size} tokens and the model {rows}: they do not belong "
            "together"
        )
    for index, token in tokenizer.added_tokens_decoder.items():
        if index >= rows:
            reader.warnings.append(
                f"the tokenizer's '{token.content}' (id {index}) left out: the model has {rows} rows"
            )


def _as_people_load_it(folder: Path) -> Any:
    """The tokenizer that AutoTokenizer chooses: some classes have special tokens not in tokenizer_config.json."""
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    except Exception:  # a class that does not fit tokenizer.json
        return load_tokenizer(folder)


def _templates(folder: Path, tokenizer: Any) -> dict[str, str]:
    """Chat templates by name: those transformers reads, else chat_template.json, which only its processors read."""
    found = tokenizer.chat_template
    if found is None and (folder / "chat_template.json").is_file():
        found = _read(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    templates = found if isinstance(found, dict) else {} if found is None else {DEFAULT: found}
    for name, template in templates.items():
        if not isinstance(name, str) or not isinstance(template, str) or not _NAME.fullmatch(name):
            raise SaapError(f"'{folder}': chat template {name!r} is no text with a plain name (letters, digits, _ . -)")
    return dict(templates)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object. Raises SaapError when the file holds anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SaapError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise SaapError(f"{path}: not a JSON object")
    return document
