"""Files that go with the weights: all that a tokenizer, chats and sampling need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from saap_edge.model.chat import GENERATION_FILE, Chat, read_chat
from saap_edge.model.checkpoint import open_checkpoint

__all__ = ["TEMPLATES_FOLDER", "TOKENIZER_FILES", "copy_tokenizer"]

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
TEMPLATES_FOLDER = "additional_chat_templates"


def copy_tokenizer(source: str | Path, out: str | Path, generation: dict[str, Any] | None = None) -> Chat:
    """Copy the tokenizer's files and templates byte for byte; saving them through a library may change them.

    Two files may differ from the source. generation_config.json names every id that ends a text (Chat.ends), so that
    transformers ends where the other formats do. A missing tokenizer_config.json is written with what transformers
    assumes, because onnxruntime-genai and AutoTokenizer need one.

    Args:
        source: the model folder.
        out: a folder; may be `source`, and then only these two files are written.
        generation: replaces the generation_config.json in `source`.

    Returns the `Chat` of the source. Raises SaapError as `read_chat`.
    """
    source, out = Path(source), Path(out)
    chat = read_chat(source, generation)
    for path in [*map(source.joinpath, TOKENIZER_FILES), *sorted((source / TEMPLATES_FOLDER).glob("*.jinja"))]:
        target = out / path.relative_to(source)
        if path.is_file() and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if not (out / "tokenizer_config.json").exists():
        _write(out / "tokenizer_config.json", {"tokenizer_class": chat.tokenizer_class, **chat.variables})
    _write_generation(chat, source, out)
    return chat


def _write_generation(chat: Chat, source: Path, out: Path) -> None:
    ends = chat.ends[0] if len(chat.ends) == 1 else list(chat.ends)
    document = dict(chat.generation)
    if not document:
        config = open_checkpoint(source).config
        roles = ("bos_token_id", "pad_token_id")
        document = {role: config[role] for role in roles if isinstance(config.get(role), int)}
    # transformers replaces a file with this mark by one made from config.json, whose ends may differ.
    document.pop("_from_model_config", None)
    if chat.ends and document.get("eos_token_id") != ends:
        document["eos_token_id"] = ends
    if document == chat.generation and source != out and (source / GENERATION_FILE).is_file():
        shutil.copyfile(source / GENERATION_FILE, out / GENERATION_FILE)
    elif document:
        _write(out / GENERATION_FILE, document)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
