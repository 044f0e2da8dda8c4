"""The layout of Ollama: the GGUF file, and a Modelfile that says how it is talked to.

What Ollama does without a TEMPLATE depends on its version. It compares the file's chat template with some that it knows
and takes its own form of one that is nearly the same. For any other, versions since mid-2026 let llama.cpp render the
file's template, and older ones send messages to the model bare (template/template.go, server/create.go). With a
TEMPLATE all of them do the same.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.bundle.find import base_licence
from saap_edge.engines.gguf_header import read_header
from saap_edge.layouts.registry import Given
from saap_edge.layouts.turns import turns_of
from saap_edge.model.chat import DEFAULT, Chat, read_chat, sampling_of
from saap_edge.model.tokenizer import load_tokenizer

__all__ = ["Settings", "modelfile", "place", "settings_of", "write"]

CONTEXT = 4096  # tokens at most, Ollama's own default: it takes the memory of all before the first token
_STOP, _BARE = "stop", "{{ .Prompt }}"


def write(given: Given, out: Path) -> list[str]:
    """Write the layout of a GGUF file into the empty folder `out`; returns what the user should read."""
    place(given.path, out / given.path.name)
    text, notes = modelfile(given)
    (out / "Modelfile").write_text(text, encoding="utf-8", newline="\n")
    return ["in the folder: ollama create NAME -f Modelfile, then ollama run NAME", *notes]


def place(source: Path, target: Path) -> None:
    """Put a file at `target`: as a second name of the same bytes, or as a copy where the disk does not allow that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Settings:
    """How Ollama has to talk to a GGUF file.

    Attributes:
        template: in Go's language; None: it cannot say the model's template.
        parameters: names and values of PARAMETER lines, one name several times for several ends.
        told: what the template does not say, or why there is none; "": nothing.
    """

    template: str | None
    parameters: tuple[tuple[str, Any], ...]
    told: str = ""


def settings_of(given: Given) -> Settings:
    """The settings of a GGUF file, from its own metadata and the chat template of its model's folder."""
    metadata, chat = read_header(given.path).metadata, read_chat(given.model)
    template, told = _template(given.model, chat, bool(metadata.get("tokenizer.ggml.add_bos_token")))
    return Settings(template, tuple(_parameters(given.model, metadata, chat)), told)


def modelfile(given: Given) -> tuple[str, list[str]]:
    """The text of a Modelfile for a GGUF file, and lines on what it does not say."""
    settings = settings_of(given)
    lines = [f"# Written by saap-edge: {given.format}.", f"FROM ./{given.path.name}", ""]
    lines += [f"# {settings.told[0].upper()}{settings.told[1:]}."] if settings.told else []
    quotes = '"' if settings.template == _BARE else '"""'
    lines += [f"TEMPLATE {quotes}{settings.template}{quotes}"] if settings.template is not None else []
    lines += ["", *(f"PARAMETER {name} {_written(name, value)}" for name, value in settings.parameters)]
    licence = base_licence(given.base).name
    lines += ["", f'LICENSE "{licence}"'] if licence and '"' not in licence else []
    return "\n".join(lines) + "\n", [settings.told] if settings.told else []


def _template(model: Path, chat: Chat, adds_bos: bool) -> tuple[str | None, str]:
    jinja = chat.templates.get(DEFAULT)
    if jinja is None:
        return _BARE, "the model has no chat template: Ollama sends it bare text"
    reason = "its text changes with the date" if "strftime_now" in jinja else ""
    turns, told = (None, reason) if reason else turns_of(_renderer(model, jinja), _bos(chat) if adds_bos else "")
    if turns is None:
        return None, (
            f"no TEMPLATE was written, because Go's language cannot say the chat template ({told}): Ollama renders the "
            "one in the GGUF file with llama.cpp since mid-2026, and older versions send bare text"
        )
    return turns.in_go(), f"the model's own template also {told}" if told else ""


def _bos(chat: Chat) -> str:
    return chat.variables.get("bos_token", "")


def _renderer(model: Path, jinja: str) -> Any:
    tokenizer = load_tokenizer(model)
    return lambda messages: tokenizer.apply_chat_template(
        messages, chat_template=jinja, tokenize=False, add_generation_prompt=True
    )


def _written(name: str, value: Any) -> str:
    return f'"{value}"' if name == _STOP else str(value)


def _parameters(model: Path, metadata: dict[str, Any], chat: Chat) -> list[tuple[str, Any]]:
    """All that Ollama would otherwise choose itself: it samples unless it is told not to."""
    sampling, trained = sampling_of(chat.generation), metadata.get(f"{metadata['general.architecture']}.context_length")
    values: list[tuple[str, Any]] = [("num_ctx", min(CONTEXT, int(trained or CONTEXT)))]
    if sampling.do_sample:
        values += [("temperature", sampling.temperature), ("top_k", sampling.top_k), ("top_p", sampling.top_p),
                   ("min_p", sampling.min_p)]  # fmt: skip
    else:
        values.append(("temperature", 0))
    values.append(("repeat_penalty", sampling.repetition_penalty))
    words = [load_tokenizer(model).convert_ids_to_tokens(index) for index in chat.ends]
    return values + [(_STOP, word) for word in words if word and not set('"\\\n') & set(word)]
