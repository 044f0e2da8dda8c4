"""The tokenizer of a GGUF model as a tokenizer.json that gives llama.cpp's ids.

Two of llama.cpp's algorithms can be read. `gpt2` is byte-level BPE with a splitting rule named in `tokenizer.ggml.pre`.
`llama` merges the pair whose result scores highest, which is BPE over whole texts with merges in the order of scores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gguf

from saap_edge.errors import SaapError
from saap_edge.gguf_file.reader import GgufModel
from saap_edge.gguf_input.splitting import ADDS_BOS, pre_tokenizer

__all__ = ["ROLES", "Vocabulary", "tokenizer_of"]

_KIND, _KEYS = gguf.TokenType, gguf.Keys.Tokenizer
_SPACE = "▁"
ROLES = {"bos": _KEYS.BOS_ID, "eos": _KEYS.EOS_ID, "unk": _KEYS.UNK_ID, "pad": _KEYS.PAD_ID}
_LLAMA_IDS = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's defaults if a `llama` vocabulary names none
_ENDS = {"eot": _KEYS.EOT_ID, "eom": _KEYS.EOM_ID}
_FILLED = re.compile(r"\[PAD(\d+)\]")  # converters' name for an id without a token
# In models with these names all special tokens, except these, swallow the spaces after them (llama-vocab.cpp).
_SWALLOWING, _NOT_SWALLOWING = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF model.

    Attributes:
        kind: llama.cpp's algorithm, "gpt2" or "llama".
        tokens, types: by id.
        ids: by role (ROLES), with llama.cpp's defaults.
        ends: the ids that metadata names as ends of a text, eos first.
        add_bos, add_eos: whether they are added to a text.
    """

    model: GgufModel = field(repr=False)
    kind: str
    tokens: list[str] = field(repr=False)
    types: list[int] = field(repr=False)
    ids: dict[str, int]
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool

    @classmethod
    def of(cls, model: GgufModel, rows: int) -> Vocabulary:
        """Read the vocabulary of a model whose embedding has `rows` rows.

        Raises SaapError when it does not fit these rows, has another algorithm, or lacks an id that it needs.
        """
        where, kind = f"'{model.path}'", model.text(_KEYS.MODEL, "none")
        if kind not in ("gpt2", "llama"):
            raise SaapError(f"{where}: tokenizer '{kind}' is not supported (supported: gpt2, llama)")
        tokens = model.strings(_KEYS.LIST)
        if len(tokens) != rows:
            raise SaapError(f"{where}: the tokenizer has {len(tokens)} tokens, token_embd.weight {rows} rows")
        if len(set(tokens)) < len(tokens):
            raise SaapError(f"{where}: a token is in the vocabulary twice")
        types = model.array(_KEYS.TOKEN_TYPE, [int(_KIND.NORMAL)] * rows)
        if len(types) != rows:
            raise SaapError(f"{where}: {_KEYS.TOKEN_TYPE} is of {len(types)} tokens, not of {rows}")
        ids = {role: _id(model, key, rows, _LLAMA_IDS.get(role) if kind == "llama" else None)
               for role, key in (ROLES | _ENDS).items()}  # fmt: skip
        known = {role: index for role, index in ids.items() if index is not None}
        add_bos = model.flag(_KEYS.ADD_BOS, kind == "llama" or model.text(_KEYS.PRE, "") in ADDS_BOS)
        add_eos = model.flag(_KEYS.ADD_EOS, False)
        for role, adds in (("bos", add_bos), ("eos", add_eos)):
            if adds and role not in known:
                raise SaapError(f"{where}: every text gets a {role.upper()}, and {ROLES[role]} is missing")
        if model.flag(_KEYS.ADD_SEP, False):
            raise SaapError(f"{where}: {_KEYS.ADD_SEP} is set, which no decoder has")
        ends = tuple(dict.fromkeys(known[role] for role in ("eos", *_ENDS) if role in known))
        return cls(model, kind, tokens, types, {role: known[role] for role in ROLES if role in known}, ends, add_bos,
                   add_eos)  # fmt: skip

    @cached_property
    def by_token(self) -> dict[str, int]:
        """Ids by token, without tokens that only fill unused rows of the embedding."""
        unused, found = int(_KIND.UNUSED), {}
        for index, token in enumerate(self.tokens):
            filled = _FILLED.fullmatch(token) if self.types[index] == unused else None
            if token and not (filled and int(filled[1]) == index):
                found[token] = index
        return found

    def special(self, index: int) -> bool:
        """Whether an id is a control token or the unknown token."""
        return self.types[index] in (_KIND.CONTROL, _KIND.UNKNOWN)

    def added(self) -> list[dict[str, Any]]:
        """Entries of added_tokens, which are found in a text before it is split."""
        swallowing = any(name in self.model.text(gguf.Keys.General.NAME, "").lower() for name in _SWALLOWING)
        return [
            {
                "id": index, "content": token, "single_word": False, "lstrip": False,
                "rstrip": swallowing and token not in _NOT_SWALLOWING, "normalized": False,
                "special": self.special(index),
            }
            for token, index in self.by_token.items()
            if self.special(index) or self.types[index] == _KIND.USER_DEFINED
        ]  # fmt: skip


def _id(model: GgufModel, key: str, rows: int, default: int | None) -> int | None:
    """An id; None for one outside the vocabulary, which llama.cpp ignores too."""
    index = model.count(key, None)
    index = default if index is None else index
    return index if index is not None and index < rows else None


def tokenizer_of(vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of tokenizer.json. Raises SaapError for an unknown splitting rule, and merges of unknown tokens."""
    bpe = _byte_level(vocabulary) if vocabulary.kind == "gpt2" else _sentencepiece(vocabulary)
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": vocabulary.added(),
        "post_processor": _post_processor(vocabulary),
    } | bpe  # fmt: skip


def _bpe(vocabulary: Vocabulary, merges: list[list[str]], **settings: Any) -> dict[str, Any]:
    usual = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    }  # fmt: skip
    return usual | settings | {"vocab": vocabulary.by_token, "merges": merges}


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    model, ids = vocabulary.model, vocabulary.by_token
    rule, whole = pre_tokenizer(model.text(_KEYS.PRE, "default"), str(model.path))
    merges = []
    for merge in model.strings(_KEYS.MERGES):
        cut = merge.find(" ", 1)
        pair = [merge[:cut], merge[cut + 1 :]]
        if cut < 0 or any(part not in ids for part in (*pair, "".join(pair))):
            raise SaapError(f"'{model.path}': the merge {merge!r} is of tokens that the vocabulary lacks")
        merges.append(pair)
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None, "pre_tokenizer": rule, "decoder": decoder,
        "model": _bpe(vocabulary, merges, ignore_merges=whole),
    }  # fmt: skip


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    model = vocabulary.model
    prefix = model.flag(_KEYS.ADD_PREFIX, True)
    mark: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    unmark: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]  # fmt: skip
    if prefix:  # a space before every piece of text between special tokens, as in llama.cpp
        mark = [{"type": "Prepend", "prepend": _SPACE}, *mark]
        unmark.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = vocabulary.ids.get("unk")
    bpe = _bpe(
        vocabulary, _merges(vocabulary), byte_fallback=True, fuse_unk=True,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
    )  # fmt: skip
    return {
        "normalizer": {"type": "Sequence", "normalizers": mark}, "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": unmark}, "model": bpe,
    }  # fmt: skip


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Every pair of tokens that forms a token, in the order in which llama.cpp prefers the results."""
    model = vocabulary.model
    scores = model.array(_KEYS.SCORES, None)
    if scores is None or len(scores) != len(vocabulary.tokens):
        raise SaapError(f"'{model.path}': {_KEYS.SCORES} is missing, or not of all tokens")
    # Special tokens are found before anything is merged.
    ids = {token: index for token, index in vocabulary.by_token.items() if not vocabulary.special(index)}
    ranked = sorted(ids, key=lambda token: (-scores[ids[token]], ids[token]))
    return [
        [token[:cut], token[cut:]]
        for token in ranked
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    around = {"bos": vocabulary.add_bos, "eos": vocabulary.add_eos}
    named = {role: vocabulary.tokens[vocabulary.ids[role]] for role, adds in around.items() if adds}
    if not named:
        return None

    def special(role: str, sequence: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": named[role], "type_id": sequence}}] if role in named else []

    def text(letter: str, sequence: int) -> list[dict[str, Any]]:
        return [*special("bos", sequence), {"Sequence": {"id": letter, "type_id": sequence}}, *special("eos", sequence)]

    tokens = {token: {"id": token, "ids": [vocabulary.ids[role]], "tokens": [token]} for role, token in named.items()}
    return {
        "type": "TemplateProcessing", "single": text("A", 0), "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": tokens,
    }  # fmt: skip
