"""A Hugging Face tokenizer.json as GGUF metadata, such that llama.cpp gives the same token ids.

Two kinds are carried: byte-level BPE (GPT-2, Llama 3, Qwen2, SmolLM: `tokenizer.ggml.model` = gpt2, with the name of
the splitting rule in `tokenizer.ggml.pre`) and SentencePiece-like BPE with byte fallback (Llama 1, 2, Gemma: `llama`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf

from saap_edge.errors import SaapError
from saap_edge.model.spec import ModelSpec

__all__ = ["add_tokenizer", "model_name", "pre_tokenizer_name"]

_KIND = gguf.TokenType

# How a known splitting rule looks in tokenizer.json -> its name in llama.cpp. Keys are regular expressions, or the
# chain of pre-tokenizer types where there is no expression (llama-vocab.cpp, llama_vocab_pre_type).
_PATTERNS = {
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
    "|\\s+(?!\\S)|\\s+": "qwen2",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+": "llama-bpe",
    "Digits,ByteLevel": "smollm",
    "ByteLevel": "gpt-2",
}


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, spec: ModelSpec) -> None:
    """Add the folder's tokenizer and chat template to `writer`.

    Raises SaapError when there is no tokenizer.json, or llama.cpp has no equal of it: a tokenizer that is nearly right
    would answer quietly wrong.
    """
    document, config = _read(folder / "tokenizer.json"), _read(folder / "tokenizer_config.json", optional=True)
    model = document.get("model", {})
    if model.get("type") != "BPE":
        raise SaapError(f"tokenizer of kind '{model.get('type')}' cannot go to GGUF (supported: BPE)")
    tokens, kinds = _vocabulary(document, spec)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        _add_sentencepiece(writer, document, tokens, kinds, merges)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(document))
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
    _add_special(writer, document, config, spec)
    template = _chat_template(folder, config)
    if template:
        writer.add_chat_template(template)


_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def model_name(folder: Path, spec: ModelSpec) -> str:
    """`general.name`. llama.cpp reads a rule out of it: in a model called "phi-3", special tokens swallow the space
    behind them, and a vocabulary without _PHI3_TOKENS does not load (llama-vocab.cpp, "set attributes by name")."""
    added = _read(folder / "tokenizer.json").get("added_tokens", [])
    swallows = any(token["special"] and token.get("rstrip") for token in added)
    phi3 = swallows and {token["content"] for token in added} >= _PHI3_TOKENS
    return f"{'Phi-3' if phi3 else spec.family.title.replace('-', ' ')}, saap-edge"


def _read(path: Path, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise SaapError(f"no tokenizer.json in '{path.parent}': the runtimes need the model's fast tokenizer") from None
    except ValueError as error:
        raise SaapError(f"{path}: not valid JSON ({error})") from None
    return document


# Gemma 3's text models share a tokenizer with those that see, but have no row for this token: whoever feeds it to them
# gets an error in transformers too (huggingface/transformers#37011).
_WITHOUT_ROW = "<image_soft_token>"


def _vocabulary(document: dict[str, Any], spec: ModelSpec) -> tuple[list[str], list[int]]:
    """Tokens by id and their types, filled up to the rows of the embedding."""
    by_id = {index: token for token, index in document["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, int(_KIND.NORMAL))
    for added in document.get("added_tokens", []):
        if added["content"] == _WITHOUT_ROW and added["id"] >= spec.vocab_size:
            continue
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = int(_KIND.CONTROL if added["special"] else _KIND.USER_DEFINED)
    if by_id and max(by_id) >= spec.vocab_size:
        raise SaapError(
            f"the tokenizer has {max(by_id) + 1} tokens and the model {spec.vocab_size}: they do not belong together"
        )
    if document["model"].get("byte_fallback"):
        for index, token in by_id.items():
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                kinds[index] = int(_KIND.BYTE)
        unknown = document["model"]["vocab"].get(document["model"].get("unk_token") or "")
        if unknown is not None:
            kinds[unknown] = int(_KIND.UNKNOWN)
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(spec.vocab_size)]
    return tokens, [kinds.get(index, int(_KIND.UNUSED)) for index in range(spec.vocab_size)]


def pre_tokenizer_name(document: dict[str, Any]) -> str:
    """llama.cpp's name of the splitting rule. Raises SaapError for one it does not have under a name known here."""
    if document.get("normalizer") not in (None, {"type": "NFC"}):
        raise SaapError(f"tokenizer normalizer {document['normalizer'].get('type')} has no equal in llama.cpp's BPE")
    steps = document.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps]) if steps else []
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    key = patterns[0] if len(patterns) == 1 else ",".join(str(step.get("type")) for step in steps)
    prefixed = any(step.get("add_prefix_space") for step in steps)
    single = all(step.get("individual_digits", True) for step in steps)
    if key not in _PATTERNS or prefixed or not single:
        known = ", ".join(sorted(_PATTERNS.values()))
        raise SaapError(f"llama.cpp has no known equal of this tokenizer's splitting rule '{key}' (known: {known})")
    return _PATTERNS[key]


def _add_sentencepiece(
    writer: gguf.GGUFWriter, document: dict[str, Any], tokens: list[str], kinds: list[int], merges: list[str]
) -> None:
    """SentencePiece-like BPE. llama.cpp merges the pair whose result scores highest, so a merge's rank is its score."""
    rank = {merge.replace(" ", "", 1): -float(index) for index, merge in reversed(list(enumerate(merges)))}
    lowest = -float(len(merges)) - 1
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([rank.get(token, lowest) for token in tokens])
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(_prefixes_space(document))


def _prefixes_space(document: dict[str, Any]) -> bool:
    normalizer = document.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    metaspace = document.get("pre_tokenizer") or {}
    prepends = any(step.get("type") == "Prepend" for step in steps)
    return prepends or metaspace.get("prepend_scheme", "never") in ("always", "first")


def _add_special(writer: gguf.GGUFWriter, document: dict[str, Any], config: dict[str, Any], spec: ModelSpec) -> None:
    ids = {added["content"]: added["id"] for added in document.get("added_tokens", [])}
    ids = document["model"]["vocab"] | ids

    def named(role: str) -> int | None:
        token = config.get(f"{role}_token")
        return ids.get(token["content"] if isinstance(token, dict) else token) if token else None

    bos, eos = named("bos"), named("eos")
    bos = spec.bos_token_id if bos is None else bos
    eos = spec.eos_token_ids[0] if eos is None and spec.eos_token_ids else eos
    adders = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id}
    adders |= {"unk": writer.add_unk_token_id, "pad": writer.add_pad_token_id}
    for role, add in adders.items():
        index = {"bos": bos, "eos": eos}.get(role, named(role))
        if index is not None:
            add(index)
    first, last = _template_ends(document)
    writer.add_add_bos_token(first is not None and ids.get(first) == bos)
    writer.add_add_eos_token(last is not None and ids.get(last) == eos)


def _template_ends(document: dict[str, Any]) -> tuple[str | None, str | None]:
    """The special tokens that the post-processor puts before and after a text."""
    processor = document.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        if single:
            ends = [part.get("SpecialToken", {}).get("id") for part in (single[0], single[-1])]
            return ends[0], ends[1]
    return None, None


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    return template if isinstance(template, str) else None
