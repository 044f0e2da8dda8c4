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
from saap_edge.export.gguf_special import add_special
from saap_edge.model.chat import read_chat
from saap_edge.model.spec import ModelSpec

__all__ = ["SPLITTING_RULES", "add_tokenizer", "check_tokenizer", "model_name", "pre_tokenizer_name"]

_KIND = gguf.TokenType

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASES = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"  # words end where lower case becomes upper
_DEEPSEEK = (
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""" "|[^\r\n" r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+" "[\r\n]*" r"|\s*" "[\r\n]+" r"|\s+(?!\S)|\s+",
)  # fmt: skip
# How a known splitting rule looks in tokenizer.json (`_steps`), and whether a word that is a token is taken whole ->
# its name in llama.cpp, which fixes both (llama-vocab.cpp, llama_vocab_pre_type and ignore_merges). Only rules that
# split as transformers does on tests/export/test_tokenizers.py's texts: tekken's and gpt-4o's do not.
SPLITTING_RULES = {
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_LLAMA3.replace("{1,3}", ""),), False): "qwen2",
    (_DEEPSEEK, False): "deepseek-v3",
    (("Digits", "ByteLevel"), False): "smollm",
    (("ByteLevel",), False): "gpt-2",
}


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, spec: ModelSpec) -> list[str]:
    """Add the folder's tokenizer, with all that gguf_special.py carries, to `writer`.

    Returns what `add_special` does. Raises SaapError as that, when there is no tokenizer.json, or llama.cpp has no
    equal of it: a tokenizer that is nearly right would answer quietly wrong.
    """
    document = _read(folder / "tokenizer.json")
    model = document.get("model", {})
    _check_model(document)
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
    return add_special(writer, read_chat(folder), tokens, _template_ends(document))


def check_tokenizer(folder: Path, spec: ModelSpec) -> list[str]:
    """Return, or raise SaapError, as `add_tokenizer` would, without writing anything."""
    return add_tokenizer(gguf.GGUFWriter(None, "llama"), folder, spec)


def _check_model(document: dict[str, Any]) -> None:
    """Raise SaapError for what neither of llama.cpp's two algorithms does."""
    model = document.get("model", {})
    if model.get("type") != "BPE":
        raise SaapError(f"tokenizer of kind '{model.get('type')}' cannot go to GGUF (supported: BPE)")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise SaapError(f"tokenizer with {name} '{model[name]}' has no equal in llama.cpp's BPE")
    for added in document.get("added_tokens", []):
        odd = [name for name in ("lstrip", "rstrip", "single_word") if added.get(name)]
        if odd and not added["special"]:
            raise SaapError(f"the added token '{added['content']}' has {odd[0]}, which llama.cpp does not have")


_PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def model_name(folder: Path, spec: ModelSpec) -> str:
    """`general.name`. llama.cpp reads a rule out of it: in a model called "phi-3", special tokens swallow the space
    behind them, and a vocabulary without _PHI3_TOKENS does not load (llama-vocab.cpp, "set attributes by name")."""
    added = _read(folder / "tokenizer.json").get("added_tokens", [])
    swallows = any(token["special"] and token.get("rstrip") for token in added)
    phi3 = swallows and {token["content"] for token in added} >= _PHI3_TOKENS
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
    """Tokens by id and their types, filled up to the rows of the embedding; without added tokens that have no row."""
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
    pre_tokenizer, whole = document.get("pre_tokenizer") or {}, bool(document["model"].get("ignore_merges"))
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer] if pre_tokenizer else [])
    key = tuple(name for name in map(_step, steps) if name)
    if (key, whole) not in SPLITTING_RULES:
        known = ", ".join(sorted(SPLITTING_RULES.values()))
        rule = f"'{'; '.join(key)}'{', taking known words whole,' if whole else ''}"
        rule += " (that of Mistral Nemo and GPT-4o: llama.cpp splits accents otherwise)" if _CASES in rule else ""
        raise SaapError(f"llama.cpp has no known equal of this tokenizer's splitting rule {rule} (known: {known})")
    return SPLITTING_RULES[key, whole]


def _step(step: dict[str, Any]) -> str:
    """What a pre-tokenizer does: a regular expression whose matches stand alone, or its type; empty for nothing."""
    kind = str(step.get("type"))
    isolates = kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert")
    if isolates and "Regex" in step["pattern"]:
        return str(step["pattern"]["Regex"])
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return kind if step.get("use_regex", True) else ""
    if kind == "Digits" and step.get("individual_digits"):
        return kind
    return json.dumps(step, ensure_ascii=False)


_SPACE = "▁"
_SPACES_MARKED = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


def _check_sentencepiece(document: dict[str, Any]) -> None:
    """Raise SaapError where text is changed or split otherwise than by marking spaces."""
    normalizer, splitter = document.get("normalizer"), document.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    for step in steps:
        if step not in (_SPACES_MARKED, {"type": "Prepend", "prepend": _SPACE}):
            raise SaapError(f"tokenizer normalizer {step.get('type')} has no equal in llama.cpp's SentencePiece")
    metaspace = splitter.get("type") == "Metaspace" and splitter.get("replacement") == _SPACE
    marked = _SPACES_MARKED in steps and splitter.get("pattern") == {"String": " "}  # Gemma's: nothing is left to split
    if splitter and not (metaspace or marked):
        raise SaapError(f"tokenizer step {splitter.get('type')} has no equal in llama.cpp's SentencePiece")
    if metaspace and splitter.get("split", True) and any(_SPACE in token[1:] for token in document["model"]["vocab"]):
        raise SaapError("the tokenizer splits at spaces, and llama.cpp would take its tokens that have one inside")


def _add_sentencepiece(
    writer: gguf.GGUFWriter, document: dict[str, Any], tokens: list[str], kinds: list[int], merges: list[str]
) -> None:
    """SentencePiece-like BPE. llama.cpp merges the pair whose result scores highest, so a merge's rank is its score."""
    _check_sentencepiece(document)
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


def _template_ends(document: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The special tokens that the post-processor puts before and after a text."""
    processor = document.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            names = [part.get("SpecialToken", {}).get("id") for part in step["single"]]
            text = names.index(None)
            return names[:text], names[text + 1 :]
    return [], []
