"""The layout of Ollama: the GGUF file, and a Modelfile that says how it is talked to.

What Ollama does without a TEMPLATE depends on its version. It compares the file's chat template with some that it knows
and takes its own form of one that is nearly the same. For any other, versions since mid-2026 let llama.cpp render the
file's template, and older ones send messages to the model bare (template/template.go, server/create.go). With a
TEMPLATE all of them do the same.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from saap_edge.bundle.find import base_licence
from saap_edge.engines.gguf_header import read_header
from saap_edge.layouts.registry import Given
from saap_edge.layouts.turns import turns_of
from saap_edge.model.chat import DEFAULT, Chat, read_chat, sampling_of
from saap_edge.model.tokenizer import load_tokenizer

__all__ = ["modelfile", "place", "write"]

CONTEXT = 4096  # tokens at most, Ollama's own default: it takes the memory of all before the first token


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


def modelfile(given: Given) -> tuple[str, list[str]]:
    """The text of a Modelfile for a GGUF file, and lines on what it does not say."""
    metadata, chat = read_header(given.path).metadata, read_chat(given.model)
    lines = [f"# Written by saap-edge: {given.format}.", f"FROM ./{given.path.name}", ""]
    template, notes = _template(given.model, chat, bool(metadata.get("tokenizer.ggml.add_bos_token")))
    lines += [*template, "", *_parameters(given.model, metadata, chat)]
    licence = base_licence(given.base).name
    lines += ["", f'LICENSE "{licence}"'] if licence and '"' not in licence else []
    return "\n".join(lines) + "\n", notes


def _template(model: Path, chat: Chat, adds_bos: bool) -> tuple[list[str], list[str]]:
    jinja = chat.templates.get(DEFAULT)
    if jinja is None:
        note = "the model has no chat template: Ollama sends it bare text"
        return [f"# {note[0].upper()}{note[1:]}.", 'TEMPLATE "{{ .Prompt }}"'], [note]
    reason = "its text changes with the date" if "strftime_now" in jinja else ""
    turns, told = (None, reason) if reason else turns_of(_renderer(model, jinja), _bos(chat) if adds_bos else "")
    if turns is None:
        note = (
            f"no TEMPLATE was written, because Go's language cannot say the chat template ({told}): Ollama renders the "
            "one in the GGUF file with llama.cpp since mid-2026, and older versions send bare text"
        )
        return [f"# {note[0].upper()}{note[1:]}."], [note]
    found = [f"# The model's own template also {told}."] if told else []
    return [*found, f'TEMPLATE """{turns.in_go()}"""'], [f"the model's own template also {told}"] if told else []


def _bos(chat: Chat) -> str:
    return chat.variables.get("bos_token", "")


def _renderer(model: Path, jinja: str) -> Any:
    tokenizer = load_tokenizer(model)
    return lambda messages: tokenizer.apply_chat_template(
        messages, chat_template=jinja, tokenize=False, add_generation_prompt=True
    )


def _parameters(model: Path, metadata: dict[str, Any], chat: Chat) -> list[str]:
    """Lines that say all that Ollama would otherwise choose itself: it samples unless it is told not to."""
    sampling, trained = sampling_of(chat.generation), metadata.get(f"{metadata['general.architecture']}.context_length")
    values: list[tuple[str, object]] = [("num_ctx", min(CONTEXT, int(trained or CONTEXT)))]
    if sampling.do_sample:
        values += [("temperature", sampling.temperature), ("top_k", sampling.top_k), ("top_p", sampling.top_p),
                   ("min_p", sampling.min_p)]  # fmt: skip
    else:
        values.append(("temperature", 0))
    values.append(("repeat_penalty", sampling.repetition_penalty))
    words = [load_tokenizer(model).convert_ids_to_tokens(index) for index in chat.ends]
    stops = [("stop", f'"{word}"') for word in words if word and not set('"\\\n') & set(word)]
    return [f"PARAMETER {name} {value}" for name, value in (*values, *stops)]
