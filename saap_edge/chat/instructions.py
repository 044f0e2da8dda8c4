"""The instructions that a model is asked to follow: those of the package, or a file of the user's.

JSON Lines; a line is one instruction:

    {"id": text, "prompt": text, "checks": [{"check": name, argument: value, ...}, ...], "tools": [...]}

`tools`, in the form of OpenAI's API, is there only where a tool is to be called. The lines of the package's file take
turns by kind, so that any number of the first ones is a fair part of all.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from saap_edge.chat.checks import CHECKS
from saap_edge.documents.base import fault
from saap_edge.errors import SaapError

__all__ = ["ANSWER_TOKENS", "Instruction", "Instructions", "read_instructions"]

OWN = Path(__file__).with_name("instructions.jsonl")
ANSWER_TOKENS = 160  # of an answer at most: the longest that the package's instructions ask for takes about 100
Model = TypeVar("Model", bound=BaseModel)
TEMPLATE = 1024  # tokens that a template may add to a prompt, with its description of tools


class _Function(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    description: str
    parameters: dict[str, Any]


class _Tool(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: str = Field(pattern="^function$")
    function: _Function


class Instruction(BaseModel):
    """One instruction.

    Attributes:
        id: its name, of which there is no other in the file.
        prompt: what the user says.
        checks: what must hold of the answer, by name, with arguments (chat/checks.py).
        tools: that the model may call; empty: none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    checks: tuple[dict[str, Any], ...] = Field(min_length=1)
    tools: tuple[_Tool, ...] = ()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The chat that the model answers."""
        return [{"role": "user", "content": self.prompt}]

    @property
    def tool_list(self) -> list[dict[str, Any]]:
        """The tools as JSON."""
        return [tool.model_dump() for tool in self.tools]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of its checks."""
        return tuple(check["check"] for check in self.checks)

    def followed(self, answer: str, tag: str | None) -> list[bool]:
        """Whether each check holds of an answer. `tag`: that of the template around tool calls, "" for none."""
        text, found = answer.strip(), []
        for check in self.checks:
            given = {name: value for name, value in check.items() if name != "check"}
            given |= {"tag": tag or ""} if check["check"] == "tool_call" else {}
            found.append(CHECKS[check["check"]](text, **given))
        return found


@dataclass(frozen=True)
class Instructions:
    """A file of instructions: its name, its sha256, and what is asked of it."""

    name: str
    sha256: str
    rows: tuple[Instruction, ...]

    @property
    def room(self) -> int:
        """Tokens that hold the longest prompt: a token is a byte at least."""
        asked = (len(json.dumps([row.messages, row.tool_list]).encode()) for row in self.rows)
        return max(asked) + TEMPLATE


def read_instructions(path: Path | None = None, limit: int | None = None) -> Instructions:
    """The instructions of the package, or of a file; the first `limit` of them.

    Raises SaapError, naming file, line and field, when the file is missing, empty or malformed.

    >>> own = read_instructions(limit=2)
    >>> own.name, len(own.rows), len(own.sha256)
    ('instructions.jsonl', 2, 64)
    """
    file = path or OWN
    try:
        data = file.read_bytes()
        lines = data.decode("utf-8").split("\n")  # splitlines would cut at U+2028, which JSON may hold
    except OSError as error:
        raise SaapError(f"cannot read the instructions '{file}': {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SaapError(
            f"the instructions '{file}' are not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    rows: list[Instruction] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(line, f"'{file}', line {number}")
            if row.id in {other.id for other in rows}:
                raise SaapError(f"'{file}', line {number}: id '{row.id}' is there twice")
            rows.append(row)
    if not rows:
        raise SaapError(f"the instructions '{file}' have no rows")
    return Instructions(file.name, hashlib.sha256(data).hexdigest(), tuple(rows[:limit]))


def _row(line: str, where: str) -> Instruction:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SaapError(f"{where}: not JSON ({error})") from None
    row = _parsed(Instruction, document, where)
    for number, check in enumerate(row.checks, 1):
        name, arguments = check.get("check"), {key: value for key, value in check.items() if key != "check"}
        if name not in CHECKS:
            raise SaapError(f"{where}: check {number} is {json.dumps(name)}: known are {', '.join(CHECKS)}")
        _parsed(_arguments(name), arguments, f"{where}: check {number} ({name})")
        if name == "tool_call" and check["name"] not in [tool.function.name for tool in row.tools]:
            raise SaapError(f"{where}: check {number} (tool_call): the line's tools have no '{check['name']}'")
    return row


def _parsed(model: type[Model], document: Any, where: str) -> Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise SaapError(f"{where}: {fault(error, 'the line')}") from None


@cache
def _arguments(check: str) -> type[BaseModel]:
    """A model of a check's arguments, from the function's own annotations."""
    parameters: Sequence[inspect.Parameter] = list(inspect.signature(CHECKS[check], eval_str=True).parameters.values())
    fields: dict[str, Any] = {
        each.name: (each.annotation, ... if each.default is each.empty else each.default)
        for each in parameters[1:]
        if each.name != "tag"
    }
    return create_model(check, __config__=ConfigDict(extra="forbid", strict=True), **fields)
