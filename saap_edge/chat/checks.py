"""Checks that an answer follows an instruction: pure functions of the answer's text, as in IFEval (arXiv 2311.07911).

The text comes without white space around it. A check's arguments are those of its function, by name and type; they are
what a line of an instruction file may say (docs/evaluation.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

__all__ = ["CHECKS"]

Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
TAG = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)


def bullets(answer: str, /, count: Count) -> bool:
    """Exactly `count` lines are bullets: they begin with "-", "*" or "•" and a space.

    >>> bullets("Sure:\\n- one\\n- two", 2), bullets("- one\\n- two\\n- three", 2)
    (True, False)
    """
    return len(re.findall(r"^\s*[-*•]\s+\S", answer, re.MULTILINE)) == count


def numbered(answer: str, /, count: Count) -> bool:
    """The numbered lines are 1. to `count`., in this order; "1)" counts too.

    >>> numbered("1. a\\n2. b", 2), numbered("1. a\\n2. b\\n3. c", 2), numbered("1. a\\n1. b", 2)
    (True, False, False)
    """
    return re.findall(r"^\s*(\d+)[.)]\s+\S", answer, re.MULTILINE) == [str(number) for number in range(1, count + 1)]


def uppercase(answer: str, /) -> bool:
    """All letters are capitals.

    >>> uppercase("YES, 2!"), uppercase("Yes"), uppercase("12")
    (True, False, False)
    """
    return answer.isupper()


def lowercase(answer: str, /) -> bool:
    """No letter is a capital.

    >>> lowercase("yes, 2!"), lowercase("Yes"), lowercase("12")
    (True, False, False)
    """
    return answer.islower()


def title(answer: str, /) -> bool:
    """A title stands in double angle brackets.

    >>> title("<<Rain>>\\nIt falls."), title("<Rain>"), title("<<>>")
    (True, False, False)
    """
    return re.search(r"<<[^<>\n]*\w[^<>\n]*>>", answer) is not None


def words(answer: str, /, least: Count = 1, most: Count | None = None) -> bool:
    """The number of words, parted by white space, is in these bounds.

    >>> words("a b c", 2, 3), words("a b c", most=2), words("a b c", 4)
    (True, False, False)
    """
    return least <= len(answer.split()) <= (most or len(answer))


def sentences(answer: str, /, least: Count = 1, most: Count | None = None) -> bool:
    """The number of sentences is in these bounds. One ends with ".", "!" or "?" before white space or the end.

    >>> sentences("It is 3.5 km. Go!", 2, 2), sentences("One. Two.", most=1), sentences("No end", 1)
    (True, False, True)
    """
    parts = [part for part in re.split(r"[.!?]+[\"')\]]*(?:\s+|$)", answer) if re.search(r"\w", part)]
    return least <= len(parts) <= (most or len(answer))


def paragraphs(answer: str, /, count: Count) -> bool:
    """There are exactly `count` paragraphs, parted by empty lines.

    >>> paragraphs("a\\nb\\n\\nc", 2), paragraphs("a", 2)
    (True, False)
    """
    return len([part for part in re.split(r"\n\s*\n", answer) if part.strip()]) == count


def include(answer: str, /, words: Texts) -> bool:
    """Each of these words or phrases is there, in capitals or small.

    >>> include("The Lighthouse stood.", ["lighthouse"]), include("The lighthouses", ["lighthouse"])
    (True, False)
    """
    return all(_occurrences(answer, word) for word in words)


def exclude(answer: str, /, words: Texts) -> bool:
    """An answer is there, and none of these words or phrases is in it.

    >>> exclude("A small boat.", ["big"]), exclude("A BIG boat.", ["big"]), exclude("", ["big"])
    (True, False, False)
    """
    return bool(answer) and not any(_occurrences(answer, word) for word in words)


def times(answer: str, /, word: Text, least: Count) -> bool:
    """The word is there at least so often.

    >>> times("Tea, tea and tea.", "tea", 3), times("Tea and tea.", "tea", 3), times("steam", "tea", 1)
    (True, False, False)
    """
    return _occurrences(answer, word) >= least


def begins(answer: str, /, text: Text) -> bool:
    """The answer begins with exactly this text.

    >>> begins("Dear Ada, hello", "Dear Ada,"), begins("Sure! Dear Ada,", "Dear Ada,")
    (True, False)
    """
    return answer.startswith(text)


def ends(answer: str, /, text: Text) -> bool:
    """The answer ends with exactly this text.

    >>> ends("So be it. The end.", "The end."), ends("The end. Bye", "The end.")
    (True, False)
    """
    return answer.endswith(text)


def no_commas(answer: str, /) -> bool:
    """An answer is there, and no comma is in it.

    >>> no_commas("One and two."), no_commas("One, two."), no_commas("")
    (True, False, False)
    """
    return bool(answer) and "," not in answer


def quoted(answer: str, /) -> bool:
    """The whole answer stands in double quotes.

    >>> quoted('"So it goes."'), quoted('He said "no".')
    (True, False)
    """
    return len(answer) > 2 and answer[0] == answer[-1] == '"' and answer.count('"') == 2


def one_of(answer: str, /, choices: Texts) -> bool:
    """The answer is one of these texts and nothing else, but for a full stop.

    >>> one_of("yes.", ["yes", "no"]), one_of("Yes", ["yes"]), one_of("yes, it is", ["yes"])
    (True, False, False)
    """
    return answer.removesuffix(".") in {choice.removesuffix(".") for choice in choices}


def json_keys(answer: str, /, keys: Texts) -> bool:
    """The answer is a JSON object, alone or in a code fence, with exactly these keys.

    >>> json_keys('{"a": 1, "b": [2]}', ["b", "a"]), json_keys('```json\\n{"a": 1}\\n```', ["a"])
    (True, True)
    >>> json_keys('Here: {"a": 1}', ["a"]), json_keys('{"a": 1, "c": 2}', ["a"]), json_keys('{"a": ', ["a"])
    (False, False, False)
    """
    found = _parsed(answer)
    return isinstance(found, dict) and found.keys() == set(keys)


def tool_call(answer: str, /, name: Text, arguments: Texts, tag: str = "") -> bool:
    """The tool of that name is called with exactly these arguments.

    `tag` is the tag that the chat template puts around a call; a file of instructions does not say it. Without one the
    call is the answer's only JSON object.

    >>> call = '{"name": "weather", "arguments": {"city": "Oslo"}}'
    >>> tool_call(call, "weather", ["city"]), tool_call(f"I will call {call}", "weather", ["city"])
    (True, False)
    >>> tool_call(f"<tool_call>{call}</tool_call>", "weather", ["city"], "<tool_call>")
    True
    >>> tool_call(call, "weather", ["city"], "<tool_call>"), tool_call(call, "weather", ["town"])
    (False, False)
    """
    inside = TAG.search(answer)
    if tag and inside is None:
        return False
    call = _parsed(inside[1] if inside else answer)
    if isinstance(call, list) and len(call) == 1:  # some templates ask for a list of calls
        call = call[0]
    if not isinstance(call, dict) or call.get("name") != name:
        return False
    given = call.get("arguments", call.get("parameters"))
    return isinstance(given, dict) and given.keys() == set(arguments)


def _occurrences(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _parsed(text: str) -> Any:
    """The JSON document that a text is, alone or in a code fence; None where it is none."""
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?\s*```", text.strip(), re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None


CHECKS: dict[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        begins, bullets, ends, exclude, include, json_keys, lowercase, no_commas, numbered, one_of, paragraphs, quoted,
        sentences, times, title, tool_call, uppercase, words,
    )
}  # fmt: skip
