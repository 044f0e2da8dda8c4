"""Asking an artifact to follow instructions, in a process of its own; answers may be kept, so that a run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError

from saap_edge.chat.instructions import Instruction, Instructions
from saap_edge.documents.base import fault
from saap_edge.engines.options import AS_IT_IS, EngineOptions
from saap_edge.engines.registry import CHAT
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError

__all__ = ["Answer", "Kept", "Told", "ask", "kept_answers"]


class Answer(BaseModel):
    """What a model answered to one instruction: a line of the file of answers.

    Attributes:
        artifact: name of what answered.
        instruction: the instruction's id.
        conditions: hash of all that decides the answer (`_conditions`).
        text: the answer.
        ended: it ended by itself, not at the limit.
        tokens: how many it has.
        ids: the first of them (engines/chat.py: AGREED).
        followed: whether each check of the instruction holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifact: str
    instruction: str
    conditions: str
    text: str
    ended: bool
    tokens: int
    ids: list[int]
    followed: list[bool]


class Told(BaseModel):
    """How the engine describes what answers; the rest of its description is left out."""

    version: str
    template_sha256: str
    tools: str | None
    dated: bool


class Kept:
    """A file of answers: those that are there, and the place for new ones."""

    def __init__(self, path: Path, out: BinaryIO, answers: list[Answer]) -> None:
        self._path, self._out = path, out
        self._answers = {(answer.artifact, answer.instruction): answer for answer in answers}

    def find(self, artifact: str, instruction: str, conditions: str) -> Answer | None:
        """The answer that is there. Raises SaapError where one is there that other conditions gave."""
        found = self._answers.get((artifact, instruction))
        if found and found.conditions != conditions:
            raise SaapError(
                f"--answers '{self._path}' holds answers of '{artifact}' under other conditions (file, runtime, "
                "threads, limit or instruction): name another file, or delete this one"
            )
        return found

    def add(self, answer: Answer) -> None:
        """Write an answer at once."""
        try:
            self._out.write(answer.model_dump_json().encode() + b"\n")
            self._out.flush()
        except OSError as error:
            raise SaapError(f"cannot write --answers '{self._path}': {error.strerror}") from None


@contextmanager
def kept_answers(path: Path | None) -> Iterator[Kept | None]:
    """Open a file of answers, which may be there already; None without a path.

    A last line that was cut off, as by a kill, is taken away. Raises SaapError when the file cannot be opened, or holds
    other things than answers.
    """
    if path is None:
        yield None
        return
    try:
        out = path.open("a+b")
    except OSError as error:
        raise SaapError(f"cannot open --answers '{path}': {error.strerror}") from None
    with out:
        out.seek(0)
        whole, end, _ = out.read().rpartition(b"\n")
        answers = [_answer(line, f"--answers '{path}', line {n}") for n, line in enumerate(whole.splitlines(), 1)]
        out.truncate(len(whole + end))
        yield Kept(path, out, answers)


def _answer(line: bytes, where: str) -> Answer:
    try:
        return Answer.model_validate_json(line)
    except ValidationError as error:
        raise SaapError(f"{where}: no answer of saap-edge ({fault(error, 'the line')}): name another file") from None


def ask(
    subject: tuple[str, str, Path], instructions: Instructions, count: int, threads: int, context: int,
    advance: Callable[[int], None], kept: Kept | None = None, sha256: str = "", options: EngineOptions = AS_IT_IS,
) -> tuple[Told, list[Answer | None]]:  # fmt: skip
    """Answers to all instructions in their order, greedily, each at most `count` tokens long.

    Args:
        subject: a name, the engine, and what it opens.
        instructions: what is asked.
        count: tokens of an answer at most.
        threads: of the runtime.
        context: tokens of the longest sequence that the artifact holds.
        advance: called with the number of instructions just done.
        kept: a file of answers.
        sha256: of the artifact, for `kept`.
        options: what the runtime is asked for.

    Returns how the engine describes itself, and None in place of an answer where a tool should be called and the chat
    template takes none. Raises SaapError when the artifact does not run, or a prompt does not fit.
    """
    name, engine, path = subject
    answers: list[Answer | None] = []
    more = " ".join([sha256, str(threads), *map(str, options.given().items())])
    with Worker(engine + CHAT, path, threads, min(context, instructions.room + count), options) as worker:
        told = Told.model_validate(worker.loaded)
        for row in instructions.rows:
            answers.append(_one(name, row, worker, count, told, kept, more))
            advance(1)
    return told, answers


def _one(
    name: str, row: Instruction, worker: Worker, count: int, told: Told, kept: Kept | None, more: str
) -> Answer | None:  # fmt: skip
    if row.tools and told.tools is None:
        return None
    conditions = _conditions(told, row, count, more)
    found = kept.find(name, row.id, conditions) if kept else None
    if found:
        return found.model_copy(update={"followed": row.followed(found.text, told.tools)})
    try:
        said: dict[str, Any] = worker.chat(row.messages, row.tool_list, count)
    except SaapError as error:
        raise SaapError(f"{error} (instruction '{row.id}')") from None
    followed = row.followed(said["text"], told.tools)
    answer = Answer(artifact=name, instruction=row.id, conditions=conditions, followed=followed, **said)
    if kept:
        kept.add(answer)
    return answer


def _conditions(told: Told, row: Instruction, count: int, more: str) -> str:
    """A hash of all that decides an answer and its checks."""
    return hashlib.sha256(json.dumps([told.model_dump(), row.model_dump(), count, more]).encode()).hexdigest()[:12]
