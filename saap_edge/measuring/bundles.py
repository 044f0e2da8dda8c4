"""Measuring one bundle alone, or two by turns in the same run. Needs no torch, so that a board can do it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from saap_edge.artifacts import context_of, engine_of
from saap_edge.bundle.archive import unpacked
from saap_edge.bundle.check import file_problems
from saap_edge.bundle.schema import Bundle, read_bundle
from saap_edge.documents.bench import Bench, Machine
from saap_edge.engines.options import check_options
from saap_edge.errors import SaapError
from saap_edge.machine.adb import Phone
from saap_edge.measuring.builds import build_of
from saap_edge.measuring.conditions import longest_sequence
from saap_edge.measuring.measure import BenchConditions, Subject, measure, steps_of
from saap_edge.measuring.sustained import bench_sustained
from saap_edge.prediction.cost import artifact_cost
from saap_edge.progress import Bar

__all__ = ["bench_bundles"]

ROLES = ("candidate", "baseline")


def bench_bundles(
    paths: Sequence[Path], bar: Bar, *, threads: int | None = None, prompt_tokens: int = 64, decode_tokens: int = 32,
    rounds: int = 7, contexts: Sequence[int] = (), max_rounds: int | None = None, kv: str | None = None,
    ubatch: int | None = None, instructions: bool = False, builds: Sequence[Mapping[str, str]] = (),
    minutes: float | None = None, adb: str | None = None, decided: Callable[[Bench], bool] = lambda document: True,
) -> Bench:  # fmt: skip
    """Measure one bundle, or one against another, and return the bench document.

    Args:
        paths: the bundle, and the one to compare it with, if any: folders or .tar.zst files.
        bar: shows progress.
        threads: threads of the runtime; those of the first bundle's board where None, as far as this machine has them.
        prompt_tokens, decode_tokens: tokens of the prompt, and tokens decoded in a round.
        rounds, max_rounds: rounds that count, and most rounds while `decided` says no.
        contexts: further depths, in tokens, at which decoding is measured.
        kv: type of the KV cache; that of the bundles where None, which must then be the same in both.
        ubatch: tokens of a prompt that are computed at once; that of the first bundle where None.
        instructions: count instructions, too.
        builds: which build of the runtime runs each bundle (builds.py); this environment's where there is none.
        minutes: decode one bundle without a pause for so long, in place of rounds (sustained.py).
        adb: serial number of a phone, on which the programs of `builds` run.
        decided: as in `measuring.measure`.

    Raises SaapError when a bundle is damaged (every file's sha256 is checked first), when the two are of different
    models or made for different caches, when one does not run, holds fewer tokens than are asked for, or cannot have
    such a cache, and when a build cannot be measured.
    """
    with ExitStack() as stack:
        folders = [path if path.is_dir() else stack.enter_context(unpacked(path)) for path in paths]
        bundles = [_checked(path, folder) for path, folder in zip(paths, folders, strict=True)]
        places = [*builds, *({} for _ in bundles)][: len(bundles)]
        phone = stack.enter_context(Phone(adb)) if adb else None
        subjects = [_subject(*each, phone) for each in zip(ROLES, folders, bundles, places, strict=False)]
        if len(bundles) > 1:
            _check_same_model(paths, bundles)
        threads = threads or min(bundles[0].board.threads, phone.cores if phone else os.cpu_count() or 1)
        conditions = BenchConditions(
            threads, prompt_tokens, decode_tokens, rounds, contexts=tuple(sorted(set(contexts))),
            max_rounds=max_rounds, instructions=instructions, kv=kv or _kv(paths, bundles),
            ubatch=ubatch or bundles[0].ubatch, fresh=any(each.build.elsewhere for each in subjects),
        )  # fmt: skip
        for path, subject in zip(paths, subjects, strict=True):
            check_options(subject.engine, conditions.options)
            _check_room(path, subject, conditions)
        if minutes is not None:
            return bench_sustained(subjects[0], conditions, minutes, bar)
        comparisons = [(subjects[1].name, subjects[0].name)] if len(subjects) > 1 else []
        there = _on_phone(phone) if phone else _here
        # In the order people read: baseline => candidate.
        with bar("bench: rounds", steps_of(len(subjects), conditions)) as advance:
            found = measure(subjects[::-1], comparisons, conditions, advance, lambda document: decided(there(document)))
        return there(found)


def _here(document: Bench) -> Bench:
    return document


def _on_phone(phone: Phone) -> Callable[[Bench], Bench]:
    """A function that puts the phone's facts and state in the place of this machine's."""
    facts, before = phone.facts(), phone.sensors()

    def told(document: Bench) -> Bench:
        machine = Machine.model_validate(facts | {"before": before, "after": phone.sensors()})
        conditions = document.conditions.model_copy(update={"cores": None})  # the phone placed the threads
        return document.model_copy(update={"machine": machine, "conditions": conditions})

    return told


def _checked(path: Path, folder: Path) -> Bundle:
    """Read bundle.json and check the sha256 of every file. Raises SaapError where one differs."""
    bundle = read_bundle(folder)
    problems = file_problems(folder, bundle)
    if problems:
        more = f" (and {len(problems) - 1} more: saap-edge verify)" if len(problems) > 1 else ""
        raise SaapError(f"'{path}' is damaged: {problems[0]}{more}")
    return bundle


def _subject(role: str, folder: Path, bundle: Bundle, place: Mapping[str, str], phone: Phone | None) -> Subject:
    cost, engine = artifact_cost(folder / bundle.model, bundle.format), engine_of(bundle.format)
    return Subject(
        name=f"{role} {bundle.format}", role=role, engine=engine, format=bundle.format,
        path=folder / bundle.model, projection_bytes=cost.projection_bytes, file_bytes=cost.file_bytes,
        parameters=cost.parameters, model=bundle.lineage.get("model"), build=build_of(place, engine, phone),
    )  # fmt: skip


def _check_same_model(paths: Sequence[Path], bundles: Sequence[Bundle]) -> None:
    """Raises SaapError when the two bundles were made from different models.

    Where a lineage does not name the model, the tokenizers decide: different models split the same text otherwise.
    """
    first, second = bundles
    models = [bundle.lineage.get("model") for bundle in bundles]
    if all(models):
        differ = models[0] != models[1]
    else:
        differ = (first.vocab_size, first.tokenizer) != (second.vocab_size, second.tokenizer.model_copy(
            update={"file": first.tokenizer.file}
        ))  # fmt: skip
    if differ:
        told = [(model or "of another tokenizer")[:12] for model in models]
        raise SaapError(
            f"'{paths[0]}' and '{paths[1]}' were made from different models ({told[0]}, {told[1]}): their speeds say "
            "nothing about each other"
        )


def _kv(paths: Sequence[Path], bundles: Sequence[Bundle]) -> str | None:
    """The type of KV cache that the bundles were made for. Raises SaapError where they differ."""
    asked = [bundle.kv for bundle in bundles]
    if len(set(asked)) > 1:
        told = [name or "the runtime's own" for name in asked]
        raise SaapError(
            f"'{paths[0]}' is for a KV cache in {told[0]}, '{paths[1]}' for {told[1]}: say --kv, to measure both alike"
        )
    return asked[0]


def _check_room(path: Path, subject: Subject, conditions: BenchConditions) -> None:
    longest = context_of(subject.path)
    needed = longest_sequence(conditions.prompt_tokens, conditions.contexts, conditions.decode_tokens)
    if needed > longest:
        raise SaapError(
            f"'{path}' holds sequences of {longest} tokens, {needed} are asked for: take a smaller prompt, context or "
            "number of decoded tokens"
        )
