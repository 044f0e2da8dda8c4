"""Writes a Hugging Face tokenizer.json as GGUF metadata with which llama.cpp gives the same token ids.

Two kinds can be written: byte-level BPE (GPT-2, Llama 3, Qwen2, SmolLM: `tokenizer.ggml.model` = gpt2, with the name of
the splitting rule in `tokenizer.ggml.pre`) and SentencePiece-like BPE with byte fallback (Llama 1, 2, Gemma: `llama`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from saap_edge.errors import SaapError
from saap_edge.exporting.gguf_special import add_special
from saap_edge.exporting.tokenizer_rules import check_pieces, holds_pieces, prefixes_space, splitting_rule
from saap_edge.model.chat import read_chat
from saap_edge.model.spec import ModelSpec

__all__ = ["add_tokenizer", "model_name", "write_vocabulary"]

_KIND = gguf.TokenType


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, spec: ModelSpec) -> list[str]:
    """Add the folder's tokenizer to `writer`, with special tokens, templates and sampling (gguf_special.py).

    Returns what `add_special` returns. Raises SaapError as `add_special`, when there is no tokenizer.json, and when
    llama.cpp cannot split text in exactly the same way: nearly the same would silently give wrong answers.
    """
    document = _read(folder / "tokenizer.json")
    model = document.get("model", {})
    _check_model(document)
    tokens, kinds = _vocabulary(document, spec)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if holds_pieces(document):
        _add_sentencepiece(writer, document, tokens, kinds, merges)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitting_rule(document))
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
    return add_special(writer, read_chat(folder), tokens, _template_ends(document))


def write_vocabulary(folder: Path, spec: ModelSpec, out: Path) -> list[str]:
    """Write the folder's tokenizer as a GGUF file without weights. Returns and raises as `add_tokenizer`."""
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(model_name(folder, spec))
    named = add_tokenizer(writer, folder, spec)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
    finally:
        writer.close()
    return named


def _check_model(document: dict[str, Any]) -> None:
    """Raise SaapError for features that neither of llama.cpp's two algorithms has."""
    model = document.get("model", {})
    if model.get("type") != "BPE":
        raise SaapError(f"tokenizer of kind '{model.get('type')}' cannot go to GGUF (supported: BPE)")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise SaapError(f"tokenizer with {name} '{model[name]}' has no equal in llama.cpp's BPE")
    without = ("lstrip", "single_word") if _is_phi3(document) else ("lstrip", "rstrip", "single_word")
    for added in document.get("added_tokens", []):
        odd = [name for name in without if added.get(name)]
        if odd and not added["special"]:  # differences of special ones are found and reported by token_ids.py
            raise SaapError(f"the added token '{added['content']}' has {odd[0]}, which llama.cpp does not have")


_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def _is_phi3(document: dict[str, Any]) -> bool:
    added = document.get("added_tokens", [])
    swallows = any(token["special"] and token.get("rstrip") for token in added)
    return swallows and {token["content"] for token in added} >= _PHI3_TOKENS


def model_name(folder: Path, spec: ModelSpec) -> str:
    """The value of `general.name`, from which llama.cpp derives a rule (llama-vocab.cpp, "set attributes by name").

    In a model called "phi-3" special tokens swallow the space after them, and a vocabulary without _PHI3_TOKENS does
    not load. So only models with that rule get this name.
    """
    phi3 = _is_phi3(_read(folder / "tokenizer.json"))
    return f"{'Phi-3' if phi3 else spec.family.title.replace('-', ' ')}, saap-edge"


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise SaapError(f"no tokenizer.json in '{path.parent}': the runtimes need the model's fast tokenizer") from None
    except ValueError as error:
        raise SaapError(f"{path}: not valid JSON ({error})") from None
    return document


def _vocabulary(document: dict[str, Any], spec: ModelSpec) -> tuple[list[str], list[int]]:
    """Tokens by id, and their types, one for each row of the embedding. Added tokens without a row are left out."""
    by_id = {index: token for token, index in document["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, int(_KIND.NORMAL))
    for added in document.get("added_tokens", []):
        if added["id"] >= spec.vocab_size and added["content"] not in document["model"]["vocab"]:
            continue
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = int(_KIND.CONTROL if added["special"] else _KIND.USER_DEFINED)
    if by_id and max(by_id) >= spec.vocab_size:
        raise SaapError(
            f"the tokenizer has {max(by_id) + 1} tokens and the model {spec.vocab_size}: they do not belong together"
        )
    if holds_pieces(document):
        for index, token in by_id.items():
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                kinds[index] = int(_KIND.BYTE)
        unknown = document["model"]["vocab"].get(document["model"].get("unk_token") or "")
        if unknown is not None:
            kinds[unknown] = int(_KIND.UNKNOWN)
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(spec.vocab_size)]
    return tokens, [kinds.get(index, int(_KIND.UNUSED)) for index in range(spec.vocab_size)]


def _add_sentencepiece(
    writer: gguf.GGUFWriter, document: dict[str, Any], tokens: list[str], kinds: list[int], merges: list[str]
) -> None:
    """Add SentencePiece-like BPE. llama.cpp merges the pair whose result scores highest: minus a merge's rank."""
    check_pieces(document)
    rank = {merge.replace(" ", "", 1): -float(index) for index, merge in reversed(list(enumerate(merges)))}
    lowest = -float(len(merges)) - 1
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([rank.get(token, lowest) for token in tokens])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(prefixes_space(document))


def _template_ends(document: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The special tokens that the post-processor adds before and after a text."""
    processor = document.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            names = [part.get("SpecialToken", {}).get("id") for part in step["single"]]
            text = names.index(None)
            return names[:text], names[text + 1 :]
    return [], []
