"""A parent's own answers to the prompts, and what a draft would have said in the place of each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from saap_edge.drafting.acceptance import Answer
from saap_edge.drafting.prompts import CHATS, Prompt
from saap_edge.engines.chat import template_of
from saap_edge.engines.registry import DRAFT
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError

__all__ = ["known_to", "parent_answers", "prompt_ids"]


def prompt_ids(
    worker: Worker, model: Path, prompts: Sequence[Prompt], room: int
) -> tuple[list[tuple[Prompt, list[int]]], list[str]]:
    """Prompts as token ids, and what was left out, in words. `room`: most tokens of a prompt.

    Chats are left out where the file has no template. Raises SaapError where a prompt is longer than `room`.
    """
    template, notes = template_of(model), []
    if template is None and any(prompt.kind == CHATS for prompt in prompts):
        notes.append(f"'{model.name}' has no chat template: no chats were drafted")
        prompts = [prompt for prompt in prompts if prompt.kind != CHATS]
    found = []
    for prompt in prompts:
        if prompt.kind == CHATS:
            ids = worker.rendered([{"role": "user", "content": prompt.prompt}])
        else:
            ids = worker.tokenize(prompt.prompt, True, False)
        if len(ids) > room:
            raise SaapError(
                f"'{model.name}': prompt {prompt.id} has {len(ids)} tokens, and {room} fit beside the answer: take a "
                "smaller --tokens"
            )
        found.append((prompt, ids))
    return found, notes


def parent_answers(
    worker: Worker, prompts: Sequence[tuple[Prompt, list[int]]], tokens: int, advance: Callable[[int], None]
) -> list[Answer]:
    """The parent's greedy answers of at most `tokens` tokens, up to its own end token.

    `worker` runs the parent alone in its runtime's own loop. Answers of one token are left out: nothing is drafted.
    """
    ends, answers = set(worker.ends()), []
    for prompt, ids in prompts:
        said: list[int] = worker.speculate(ids, tokens, 0)["ids"]
        last = next((index for index, token in enumerate(said) if token in ends), len(said) - 1)
        if last > 0:
            answers.append(Answer(prompt.id, prompt.kind, ids, said[: last + 1]))
        advance(1)
    return answers


def known_to(
    draft: Path, engine: str, answers: Sequence[Answer], threads: int, context: int, advance: Callable[[int], None]
) -> list[Answer]:
    """The answers with what the draft in the file knew: its greedy token after the parent's tokens up to there."""
    found = []
    with Worker(engine.removesuffix(DRAFT), draft, threads, context) as worker:
        for answer in answers:
            [(_, known)] = worker.score([(answer.prompt + answer.ids, len(answer.prompt) + 1)])
            found.append(replace(answer, known=tuple(map(bool, known))))
            advance(1)
    return found
