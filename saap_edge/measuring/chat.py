"""Chats of the artifacts of a bench document: which instructions each follows, and which answers end by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from saap_edge.artifacts import context_of
from saap_edge.chat.answers import ask
from saap_edge.chat.instructions import ANSWER_TOKENS, read_instructions
from saap_edge.documents.bench import Bench, ChatResult
from saap_edge.measuring.conditions import BenchConditions, Subject
from saap_edge.progress import Bar

__all__ = ["with_chat"]


def with_chat(document: Bench, subjects: Sequence[Subject], conditions: BenchConditions, bar: Bar) -> Bench:
    """Ask every subject the first `conditions.chat` instructions of the package, and return the document with results.

    Answers are greedy and nothing is timed, so that subjects take no turns. Raises SaapError when an artifact does not
    run, or has no chat template.
    """
    if not conditions.chat:
        return document
    instructions = read_instructions(limit=conditions.chat)
    found: dict[Path, ChatResult] = {}  # a dense model that is measured as if it were pruned is asked once
    for subject in subjects:
        if subject.path not in found:
            with bar(f"bench: chat with {subject.name}", len(instructions.rows)) as advance:
                _, answers = ask(
                    (subject.name, subject.engine, subject.path), instructions, ANSWER_TOKENS, conditions.threads,
                    context_of(subject.path), advance, options=conditions.options,
                )  # fmt: skip
            found[subject.path] = ChatResult(
                followed=[None if answer is None else all(answer.followed) for answer in answers],
                ended=[None if answer is None else answer.ended for answer in answers],
            )
    results = {subject.name: found[subject.path] for subject in subjects}
    artifacts = [
        entry.model_copy(update={"metrics": entry.metrics.model_copy(update={"chat": results[entry.name]})})
        for entry in document.artifacts
    ]
    told = {
        "chat_instructions": len(instructions.rows), "chat_sha256": instructions.sha256[:12],
        "chat_answer_tokens": ANSWER_TOKENS,
    }  # fmt: skip
    return document.model_copy(
        update={"artifacts": artifacts, "conditions": document.conditions.model_copy(update=told)}
    )
