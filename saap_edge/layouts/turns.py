"""What a chat template writes around the contents of a chat, found by rendering it, and the same in Go's language.

Ollama's templates are Go's. Its language cannot say all that Jinja can: what is found here holds for chats of text in
which a user and the assistant take turns, perhaps after a system message. `turns_of` finds it or says why it does not
hold; nothing is assumed about the form of a template.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["CHATS", "Turns", "turns_of"]

Messages = list[dict[str, str]]
Render = Callable[[Messages], str]

_USER, _ANSWER, _AGAIN, _SYSTEM = "a2uQ", "b3vR", "c4wS", "d5xT"  # contents that no template contains
_TEXTS = (
    "How are you?",
    "Fine <b>&</b> \"well\"\n\n- one\n- 'two'",
    "{{ now }} {% if %} ä 数 🙂",
    "<think>So</think>Yes",
)


def _chat(texts: tuple[str, ...], system: str = "") -> Messages:
    roles = ("user", "assistant") * len(texts)
    turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}, *turns] if system else turns


# Chats on which what was found is tried, beside those that it was found by.
CHATS: tuple[Messages, ...] = tuple(
    _chat(texts, system)
    for system in ("", 'Be "brief".\nAnswer in verse.')
    for texts in (
        _TEXTS[:1], _TEXTS[1:2], (*_TEXTS[:2], _TEXTS[2]), (_TEXTS[2], *_TEXTS[:2]),
        (_TEXTS[0], _TEXTS[3], _TEXTS[1]), (*_TEXTS[:2], _TEXTS[2], _TEXTS[3], _TEXTS[0]),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Turns:
    """Texts around the contents of a chat.

    Attributes:
        system: before the system message; None: the template takes none.
        first: before the first user's message, where there is no system message.
        after_system: before the first user's message, after the system message.
        answer: between a user's message and the assistant's.
        again: between the assistant's message and the user's next one.
        end: after the last user's message, so that the assistant answers.
    """

    system: str | None
    first: str
    after_system: str
    answer: str
    again: str
    end: str

    def render(self, messages: Messages) -> str:
        """The prompt of a chat whose last message is the user's.

        >>> Turns("<s>", "<u>", "</s><u>", "</u><a>", "</a><u>", "</u><a>").render([{"role": "user", "content": "Hi"}])
        '<u>Hi</u><a>'
        """
        text, before = "", ""
        gaps = {("", "system"): self.system or "", ("", "user"): self.first, ("system", "user"): self.after_system,
                ("user", "assistant"): self.answer, ("assistant", "user"): self.again}  # fmt: skip
        for message in messages:
            text += gaps[before, message["role"]] + message["content"]
            before = message["role"]
        return text + self.end

    def in_go(self) -> str:
        """The template in Go's language, as Ollama fills it: `.Messages` holds all messages, `.System` the system's.

        A chat that ends with the assistant's message goes on with it.
        """
        system = "" if self.system is None else f'{{{{ if eq .Role "system" }}}}{_go(self.system)}{{{{ .Content }}}}'
        turn = (
            f'{"{{ else if" if system else "{{ if"} eq .Role "user" }}}}{self._before_user()}{{{{ .Content }}}}'
            f'{{{{ else if eq .Role "assistant" }}}}{_go(self.answer)}{{{{ .Content }}}}{{{{ end }}}}'
        )
        loop = f"{{{{ range $i, $_ := .Messages }}}}{{{{ $last = .Role }}}}{system}{turn}{{{{ end }}}}"
        return f'{{{{ $last := "" }}}}{loop}{{{{ if ne $last "assistant" }}}}{_go(self.end)}{{{{ end }}}}'

    def _before_user(self) -> str:
        first, after, again = map(_go, (self.first, self.after_system, self.again))
        if self.system is None:
            return again if first == again else f"{{{{ if eq $i 0 }}}}{first}{{{{ else }}}}{again}{{{{ end }}}}"
        if first == after == again:
            return again
        return (
            f"{{{{ if eq $i 0 }}}}{first}{{{{ else if and (eq $i 1) $.System }}}}{after}"
            f"{{{{ else }}}}{again}{{{{ end }}}}"
        )


def turns_of(render: Render, bos: str) -> tuple[Turns | None, str]:
    """Find the `Turns` of a template, and lines about what they leave out; (None, the reason) where there are none.

    Args:
        render: renders a chat so that the assistant answers next; it may raise anything.
        bos: text of the BOS that the runtime puts before every prompt itself; it is taken off the prompts.
    """
    plain = _without(bos, render)
    try:
        turns = _found(plain)
        for chat in CHATS:
            if chat[0]["role"] == "system" and turns.system is None:
                continue
            if turns.render(chat) != plain(chat):
                return None, f"it does more than write texts around the messages, in a chat of {len(chat)} messages"
    except Exception as error:  # a template is a program, and may raise anything
        return None, " ".join(f"it takes no plain chat ({error or type(error).__name__})".split())
    if any('"""' in text for text in (turns.in_go(),)):
        return None, "it has three quotes in a row, which end a text in a Modelfile"
    return turns, _left_out(turns, plain)


def _found(render: Render) -> Turns:
    first, answer, again, end = _cut(render(_chat((_USER, _ANSWER, _AGAIN))), (_USER, _ANSWER, _AGAIN))
    system, after_system = None, ""
    with contextlib.suppress(Exception):  # where it takes no system message, as in Gemma 1
        system, after_system, _ = _cut(render(_chat((_USER,), _SYSTEM)), (_SYSTEM, _USER))
    return Turns(system, first, after_system, answer, again, end)


def _cut(text: str, contents: tuple[str, ...]) -> list[str]:
    """The texts before, between and after the contents. Raises ValueError where these are not there once, in order."""
    parts = re.split("|".join(contents), text)
    if re.findall("|".join(contents), text) != list(contents):
        raise ValueError("the messages are not written once each, in their order")
    return parts


def _without(bos: str, render: Render) -> Render:
    return lambda messages: render(messages).removeprefix(bos) if bos else render(messages)


def _left_out(turns: Turns, render: Render) -> str:
    spaced = [{"role": "user", "content": " a "}]
    trims = render(spaced) != turns.render(spaced)
    told = ["takes spaces off both ends of a message"] if trims else []
    told += ["refuses a system message, which is left out here"] if turns.system is None else []
    return " and ".join(told)


def _go(text: str) -> str:
    """A text outside of Go's actions; with one inside where it would begin or be an action itself.

    >>> _go("<|user|>"), _go("a {{ b")
    ('<|user|>', '{{ "a {{ b" }}')
    """
    if "{{" not in text and not text.endswith("{"):
        return text
    escapes: Mapping[str, str] = {"\\": "\\\\", '"': "\\x22", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return f'{{{{ "{"".join(escapes.get(letter, letter) for letter in text)}" }}}}'
