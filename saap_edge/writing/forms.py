"""What a model is given so that it writes: the beginning of a chat in its own template, or of a plain text.

A chat model writes the user's question itself, after the template's header of a user's turn, and then answers it (the
idea of MAGPIE, arXiv 2406.08464). A model without a chat template continues a first token from its vocabulary (as in
LLM-QAT, arXiv 2305.17888).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.model.chat import DEFAULT, Chat, read_chat
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.writing.settings import LONGEST

__all__ = ["QUESTION", "Form", "read_form"]

QUESTION = 128  # tokens that a question has at most: one that does not end is dropped
LEAST_ANSWER = 64  # tokens that must be left for the answer
_ASKED, _ANSWERED = "saapquestionmark", "saapanswermark"  # stand for both texts while the template is rendered


@dataclass(frozen=True)
class Form:
    """How documents of a model begin, go on and end, in token ids.

    Attributes:
        kind: "chat" or "text".
        parts: pairs of what is given and the most tokens that the model writes after it.
        close: what follows the last part.
        ends: tokens that end a part.
        banned: special tokens that end nothing: they would put structure where the template has none.
        starts: tokens that a text may begin with: beginnings of words.
        length: tokens of the longest document.
    """

    kind: str
    parts: tuple[tuple[tuple[int, ...], int], ...]
    close: tuple[int, ...]
    ends: tuple[int, ...]
    banned: tuple[int, ...]
    starts: tuple[int, ...]
    length: int

    def whole(self, start: list[int], written: list[list[int]]) -> list[int]:
        """All tokens of a document: what was given, `start` (the first tokens of its first part), what was written."""
        ids: list[int] = []
        for (given, _), text in zip(self.parts, [start + written[0], *written[1:]], strict=True):
            ids += [*given, *text]
        return [*ids, *self.close]


def read_form(folder: Path) -> Form:
    """The form of the model in `folder`.

    Raises SaapError where nothing in its vocabulary begins a word, where nothing ends a text, and where its context is
    too short for its chat template.
    """
    tokenizer, chat, spec = load_tokenizer(folder), read_chat(folder), read_spec(folder)
    length = min(LONGEST, spec.context)
    if not chat.ends:
        raise SaapError(f"'{folder}': no token ends a text, so the model cannot write documents: give a text instead")
    special = {int(index) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    starts = _starts(tokenizer, spec.vocab_size, special)
    if not starts:
        raise SaapError(f"'{folder}': no token begins a word: give a text instead of letting the model write it")
    parts, close = _chat(tokenizer, chat, length, folder) or _plain(tokenizer, chat, length)
    known = special & set(range(spec.vocab_size))
    beyond = range(min(len(tokenizer), spec.vocab_size), spec.vocab_size)  # rows of the embedding that no token has
    banned = tuple(sorted((known | set(beyond)) - set(chat.ends)))
    return Form("chat" if len(parts) > 1 else "text", parts, close, chat.ends, banned, starts, length)


def _starts(tokenizer: Any, vocab_size: int, special: set[int]) -> tuple[int, ...]:
    """Tokens that begin a word: letters after the tokenizer's mark of a space, or with a capital."""
    ids = [index for index in range(min(len(tokenizer), vocab_size)) if index not in special]
    words = tokenizer.batch_decode([[index] for index in ids])
    marks = (str(token)[:1] in ("Ġ", "▁") for token in tokenizer.convert_ids_to_tokens(ids))
    return tuple(
        index
        for index, word, marked in zip(ids, words, marks, strict=True)
        if word.strip().isalpha() and (marked or word.strip()[0].isupper())
    )


def _plain(tokenizer: Any, chat: Chat, length: int) -> tuple[Any, tuple[int, ...]]:
    """A text after BOS, where the tokenizer puts one before texts; it is closed by the first token that ends texts."""
    given = tuple(index for index in tokenizer("")["input_ids"][:1] if index == chat.bos)
    return ((given, length - len(given) - 2),), chat.ends[:1]


def _chat(tokenizer: Any, chat: Chat, length: int, folder: Path) -> tuple[Any, tuple[int, ...]] | None:
    """A question and its answer in the chat template; None where the model has none, or it has no such places."""
    template = chat.templates.get(DEFAULT)
    asked = _render(tokenizer, template, [("user", _ASKED)], True)
    both = _render(tokenizer, template, [("user", _ASKED), ("assistant", _ANSWERED)], False)
    if asked.count(_ASKED) != 1 or both.count(_ANSWERED) != 1:
        return None
    before, _, after = asked.partition(_ASKED)
    close = both.partition(_ANSWERED)[2]
    if not before.strip() or not after.strip():  # it does not say whose turn it is
        return None
    first, second, last = (
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (before, after, close)
    )
    room = length - len(first) - len(second) - len(last) - QUESTION
    if room < LEAST_ANSWER:
        raise SaapError(
            f"'{folder}': the chat template leaves no room for an answer in a context of {length} tokens: give a text "
            "instead of letting the model write it"
        )
    return ((first, QUESTION), (second, room)), last or chat.ends[:1]


def _render(tokenizer: Any, template: str | None, turns: list[tuple[str, str]], answer: bool) -> str:
    """The text of a chat; empty where there is no template, or it does not take these turns."""
    messages = [{"role": role, "content": content} for role, content in turns]
    if not template:
        return ""
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=answer
            )
        )
    except Exception:  # a template is a program: it raises what it likes
        return ""
