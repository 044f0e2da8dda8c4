"""What the parts of real.py share: the model with its planner and test texts, and rows that outlive a stopped run."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from saap_edge.api import recipe_of
from saap_edge.cache import ancestors, read_stage
from saap_edge.chain.context import Context, open_context
from saap_edge.chain.stages.plan import planner_of
from saap_edge.chain.texts import calibration
from saap_edge.model.perplexity import Perplexity, text_hash, text_windows
from saap_edge.progress import Progress
from saap_edge.pruning.orders import Values
from saap_edge.pruning.planner import Planner
from saap_edge.pruning.space import Widths

__all__ = ["KNOWN_BY", "Frame", "Rows", "folder_of", "made", "open_frame"]

# Of a file that `recover` wrote; `written` is the share of calibration text that the model wrote itself.
KNOWN_BY = ("ratio", "method", "tokens", "written")


class Rows:
    """Rows of one part, in WORK/NAME.jsonl; each is known by some of its fields."""

    def __init__(self, work: Path, name: str) -> None:
        self.path = work / f"{name}.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def has(self, **fields: Any) -> bool:
        return any(all(row[name] == value for name, value in fields.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print({name: value for name, value in row.items() if name != "losses"}, flush=True)


@dataclass(frozen=True)
class Frame:
    """A model with its planner. `learnt`, calibration text, is [n, window]; `tests` are that by the text's name."""

    context: Context
    planner: Planner
    learnt: torch.Tensor
    tests: dict[str, torch.Tensor]

    @property
    def texts(self) -> torch.Tensor:
        """All test texts, one after the other."""
        return torch.cat(list(self.tests.values()))

    def by_text(self, found: Perplexity) -> dict[str, list[float]]:
        """Losses of each window, from a perplexity over `texts`."""
        parts = torch.tensor(found.by_window).split([len(windows) for windows in self.tests.values()])
        return {name: [round(loss, 4) for loss in part.tolist()] for name, part in zip(self.tests, parts, strict=True)}


@contextmanager
def open_frame(arguments: argparse.Namespace) -> Iterator[Frame]:
    """The frame over the bank that the arguments name."""
    recipe = recipe_of(read_stage(arguments.bank)["recipe"])
    context, inputs = open_context(recipe, None, Progress().bar), ancestors(arguments.bank) | {"bank": arguments.bank}
    tokenizer, window = context.corpus.tokenizer, recipe.score.window
    tests = {
        path.parent.name if path.stem in ("test", "validation") else path.stem: text_windows(
            tokenizer, path.read_text(encoding="utf-8"), window, arguments.windows
        )
        for path in (recipe.data.test, arguments.other)
    }
    with tempfile.TemporaryDirectory() as scratch:
        planner = planner_of(context, inputs, Path(scratch))
        conditions = {
            "model": context.model_name, "window": window, "windows": {name: len(text) for name, text in tests.items()},
            "text_sha256": [text_hash(recipe.data.test), text_hash(arguments.other)],
            "calibration_windows": recipe.score.samples, "repair_windows": recipe.prune.samples,
            "seed": recipe.seed, "effort": recipe.prune.effort,
        }  # fmt: skip
        (arguments.work / "conditions.json").write_text(json.dumps(conditions), encoding="utf-8")
        yield Frame(context, planner, calibration(context, inputs), tests)


def folder_of(work: Path, row: dict[str, Any]) -> Path:
    """Where the files of a row of `recover` are."""
    return work / f"{row['method']}-{row['ratio']:.2f}-{row['written']:g}"


def made(planner: Planner, method: str, ratio: float) -> tuple[Widths, Values, str]:
    """Widths and values of a method, and the plan that it is; `auto` chooses between its own."""
    if method == "auto":
        plan, values = planner.plan("auto", ratio)
        return plan.widths, values, plan.method
    # Block influence removes whole layers: it alone may.
    free = replace(planner, space=replace(planner.space, depth=method == "shortgpt"))
    return *free.made(method, ratio)[0], method
