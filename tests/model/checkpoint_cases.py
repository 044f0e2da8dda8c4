"""Random checkpoints, valid and damaged, given to every part of the program and judged.

A valid one: every entry point that takes it answers as transformers does, and so do its float32 files in llama.cpp and
ONNX Runtime. A damaged one: refused in one line that names what is wrong, before work begins, or answered as
transformers answers; the files of those that are answered are run too. Never a traceback, nothing left behind.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from saap_edge.errors import EXIT_INPUT
from saap_edge.model.spec import PRUNED_TYPE
from tests.model.checkpoint_judge import Judged, judge, other_formats, run_files, texts, truth
from tests.model.damage import HARMLESS, damage
from tests.model.random_checkpoints import KINDS, Draft, write_valid

__all__ = ["Outcome", "Undamaged", "check_damaged", "check_valid", "undamaged"]


@dataclass
class Outcome:
    """Faults in words, and how many cases of each kind ended how."""

    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, case: str, judged: Judged, files: dict[Path, str]) -> None:
        self.faults += [f"{case}: {fault}" for fault in judged.faults]
        if not judged.faults:
            files |= dict.fromkeys(judged.files, case)

    def run(self, files: dict[Path, str], scratch: Path) -> None:
        """Run exported files; one that kills the process is named, and those after it run anew."""
        left = list(files)
        while left:
            faults = run_files(left, scratch)
            self.faults += [f"{files[path]}: {fault}" for path, fault in faults.items()]
            killed = [path for path, fault in faults.items() if "ended the process" in fault]
            left = left[left.index(killed[0]) + 1 :] if killed else []
        self.counts["files run"] += len(files)


@dataclass(frozen=True)
class Undamaged:
    """A valid checkpoint that others are made of: its answers, and a float32 format that it can go to."""

    folder: Path
    made: Draft
    answers: torch.Tensor
    artifact_format: str

    @property
    def pruned(self) -> bool:
        return self.made.kind.startswith(PRUNED_TYPE)


def undamaged(number: int, scratch: Path) -> Undamaged:
    """The valid checkpoint of a number, written. Raises AssertionError when transformers cannot load it."""
    folder = scratch / f"valid-{number}"
    made = write_valid(number, folder)
    answers = truth(folder)
    assert not isinstance(answers, str), f"{made.words} is not valid: {answers}"
    formats = other_formats(folder)
    return Undamaged(folder, made, answers, formats[number % len(formats)])


def check_valid(numbers: Iterable[int], scratch: Path) -> Outcome:
    """Valid checkpoints: nothing may refuse them."""
    outcome, files = Outcome(), dict[Path, str]()
    for number in numbers:
        valid = undamaged(number, scratch)
        judged = judge(
            valid.folder, scratch, scratch / f"out-{number}", valid.artifact_format, valid.pruned,
            expected=valid.answers,
        )  # fmt: skip
        judged.faults += [f"valid, and refused: {line}" for line in judged.refusals]
        outcome.take(", ".join(valid.made.words), judged, files)
        outcome.counts[f"valid {valid.made.kind}"] += 1
        shutil.rmtree(valid.folder)
    outcome.run(files, scratch)
    return outcome


def check_damaged(
    numbers: Iterable[int], scratch: Path, seed: int = 0, variety: int = 2 * len(KINDS), by_command: int = 0
) -> Outcome:
    """Damaged checkpoints, made of `variety` valid ones; the first `by_command` that are refused by commands too."""
    outcome, files = Outcome(), dict[Path, str]()
    pool: dict[int, Undamaged] = {}
    for number in numbers:
        of = random.Random(f"{seed} {number}").randrange(variety) + seed * variety
        valid = pool[of] = pool.get(of) or undamaged(of, scratch)
        folder = scratch / f"damaged-{number}"
        shutil.copytree(valid.folder, folder)
        done, words = damage(number, folder)
        expected = valid.answers if HARMLESS.issuperset(done) else None
        judged = judge(
            folder, scratch, scratch / f"out-{number}", valid.artifact_format, valid.pruned, words, expected
        )  # fmt: skip
        case = f"{number}: {' and '.join(done)}, of {', '.join(valid.made.words)}"
        outcome.take(case, judged, files)
        ended = "wrong" if judged.faults else "refused" if judged.refused_by("compile") else "answered"
        outcome.counts[f"damaged, {ended}"] += 1
        if ended == "refused" and by_command > 0 and not valid.pruned:
            by_command -= 1
            outcome.counts["commands run"] += 1
            outcome.faults += [f"{case}: {fault}" for fault in _by_command(folder, scratch, valid.artifact_format)]
        shutil.rmtree(folder)
    outcome.run(files, scratch)
    return outcome


def _by_command(folder: Path, scratch: Path, artifact_format: str) -> list[str]:
    """What `saap-edge compile` does wrong with a folder that has to be refused."""
    out, recipe = scratch / "command-out", scratch / "recipe.yaml"
    recipe.write_text(
        f"score: {{window: 32}}\nprune: {{method: uniform, ratio: 0.1}}\nexport: {{formats: [{artifact_format}]}}\n"
        f"bench: {{prompt_tokens: 16, decode_tokens: 8}}\n"
        f"data: {{{', '.join(f'{role}: {path}' for role, path in texts(scratch).items())}}}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "saap_edge", "compile", str(recipe), "--model", str(folder), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True)
    # On a busy machine a line of progress may come before.
    lines, faults = [line for line in result.stderr.splitlines() if not line.endswith("still working")], []
    if result.returncode != EXIT_INPUT:
        faults.append(f"compile exits {result.returncode}")
    if len(lines) != 1 or not lines[0].startswith("error: "):
        faults.append(f"compile prints {result.stderr!r}")
    if out.exists() or result.stdout:
        faults.append("compile leaves something behind")
    return faults
