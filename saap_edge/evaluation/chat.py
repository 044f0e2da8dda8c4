"""Chat quality: instructions with answers that can be checked, through each runtime's own chat entry point."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.artifacts import size_and_hash
from saap_edge.chat.answers import Answer, Kept, ask, kept_answers
from saap_edge.chat.figures import figures
from saap_edge.chat.instructions import ANSWER_TOKENS, Instructions, read_instructions
from saap_edge.engines.chat import check_chat
from saap_edge.engines.registry import engine_named
from saap_edge.errors import SaapError
from saap_edge.progress import Bar

if TYPE_CHECKING:
    from saap_edge.evaluation.subjects import Subject

__all__ = ["ChatRun", "ChatSettings", "open_chat"]


@dataclass(frozen=True)
class ChatSettings:
    """How chats are evaluated.

    Attributes:
        instructions: file of instructions; None: those of the package.
        answers: file that keeps the answers, and that a run goes on from; None: they are not kept.
        answer_tokens: tokens of an answer at most.
    """

    instructions: Path | None = None
    answers: Path | None = None
    answer_tokens: int = ANSWER_TOKENS


@dataclass(frozen=True)
class ChatRun:
    """Chats that can be asked: all that can be refused beforehand has been.

    Attributes:
        settings: how.
        instructions: what is asked.
        subjects: whom.
        dense: for each of them, what it is compared with; empty: nothing.
        threads: of the runtimes.
    """

    settings: ChatSettings
    instructions: Instructions
    subjects: list[Subject]
    dense: list[Subject]
    threads: int

    def run(self, bar: Bar) -> list[dict[str, Any]]:
        """The figures of every subject, as JSON; those of the dense models come first.

        Raises SaapError when an artifact does not run, or the file of answers is of other conditions.
        """
        with kept_answers(self.settings.answers) as kept:
            before = {
                subject.folder: self._ask(subject, f"dense {subject.name}", bar, kept)
                for subject in dict((each.folder, each) for each in self.dense).values()
            }
            found = [self._figures(document, answers) for document, answers in before.values()]
            for number, subject in enumerate(self.subjects):
                document, answers = self._ask(subject, subject.name, bar, kept)
                against = before[self.dense[number].folder] if self.dense else None
                found.append(self._figures(document, answers, against))
        return found

    def _ask(
        self, subject: Subject, name: str, bar: Bar, kept: Kept | None
    ) -> tuple[dict[str, Any], list[Answer | None]]:  # fmt: skip
        start, limit = time.perf_counter(), self.settings.answer_tokens
        context = _context(subject)
        sha256 = size_and_hash(subject.folder)[1] if kept else ""
        with bar(f"{name}: chat", len(self.instructions.rows)) as advance:
            told, answers = ask(
                (name, subject.engine, subject.folder), self.instructions, limit, self.threads, context, advance, kept,
                sha256, subject.options,
            )  # fmt: skip
        document = {
            "artifact": name, "engine": subject.engine, "version": told.version, "threads": self.threads,
            "kv": subject.options.kv,
            "instructions": self.instructions.name, "instructions_sha256": self.instructions.sha256,
            "answer_tokens": limit, "template_sha256": told.template_sha256,
            "template_takes_tools": told.tools is not None, "template_writes_date": told.dated,
            "seconds": round(time.perf_counter() - start, 2),
        }  # fmt: skip
        return document, answers

    def _figures(
        self, document: dict[str, Any], answers: list[Answer | None],
        dense: tuple[dict[str, Any], list[Answer | None]] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        found = figures(self.instructions, answers, dense and dense[1])
        return document | {"dense": dense and dense[0]["artifact"]} | found


def open_chat(
    subjects: list[Subject], dense: list[Subject], settings: ChatSettings, limit: int | None, threads: int
) -> ChatRun:  # fmt: skip
    """Chats with `subjects`, compared with `dense`: one model, or one for each of them under the same name.

    Raises SaapError for instructions or answers that cannot be read, an artifact without a chat template or without a
    runtime that chats, and a subject that `dense` has nothing for.
    """
    instructions = read_instructions(settings.instructions, limit)
    with kept_answers(settings.answers):
        pass  # a file that cannot be gone on from is refused now, not after other measurements
    for subject in (*subjects, *dense):
        check_chat(subject.engine, subject.folder)
        if _context(subject) <= settings.answer_tokens:
            raise SaapError(
                f"--answer-tokens {settings.answer_tokens}: '{subject.folder}' holds {_context(subject)} tokens, "
                "prompt and answer together"
            )
    partners = []
    for subject in subjects if dense else ():
        same = [each for each in dense if each.name == subject.name] or (dense if len(dense) == 1 else [])
        if not same:
            raise SaapError(f"--dense has no {subject.name}: it has {', '.join(each.name for each in dense)}")
        partners.append(same[0])
    return ChatRun(settings, instructions, subjects, partners, threads)


def _context(subject: Subject) -> int:
    """Tokens of the longest sequence of a subject. Raises SaapError when it does not say."""
    context = engine_named(subject.engine).context(subject.folder)
    if context is None:
        raise SaapError(f"'{subject.folder}' does not say how long its context is: export the model again")
    return context
