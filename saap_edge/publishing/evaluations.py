"""Figures of zero-shot tasks for a card: from documents that `saap-edge evaluate --json` printed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.files import read_json

__all__ = ["Figure", "read_figures"]

SCHEMA = 1


@dataclass(frozen=True)
class Figure:
    """A figure of one task.

    Attributes:
        artifact: format of the artifact it was measured of.
        task, metric, value: as lm-eval names them.
        stderr: its standard error; None: not told.
        rows: rows of the task that were answered; None: not told.
        sha256: of the task's file; None: a task of lm-eval by name.
    """

    artifact: str
    task: str
    metric: str
    value: float
    stderr: float | None
    rows: int | None
    sha256: str | None

    @property
    def arguments(self) -> dict[str, Any] | None:
        """What the figure depends on, for the hub."""
        told = {"rows": self.rows, "sha256": self.sha256}
        return {name: value for name, value in told.items() if value is not None} or None


def read_figures(paths: Iterable[Path], export: str, formats: Iterable[str]) -> tuple[Figure, ...]:
    """The figures of published artifacts in evaluation documents.

    Args:
        paths: files that hold what `saap-edge evaluate EXPORT --task ... --json` printed.
        export: name of the run's export folder.
        formats: the published artifacts; figures of others are left out.

    Raises SaapError where a file is no such document, is of another run, or tells of none of the artifacts.
    """
    names, found = set(formats), list[Figure]()
    for path in paths:
        document = read_json(path)
        try:
            if document["schema"] != SCHEMA:
                raise ValueError("another version of evaluation documents")
            evaluated, figures = Path(document["evaluated"]).name, [_figure(row) for row in document["tasks"]]
        except (KeyError, TypeError, ValueError) as error:
            raise SaapError(f"--evaluation '{path}' is not what `saap-edge evaluate --json` prints: {error}") from None
        if evaluated != export:
            raise SaapError(f"--evaluation '{path}' is of '{evaluated}', this run's artifacts are in '{export}'")
        of_these = [one for one in figures if one.artifact in names and math.isfinite(one.value)]
        if not of_these:
            raise SaapError(
                f"--evaluation '{path}' has no task of {', '.join(sorted(names))}: give what `saap-edge evaluate` "
                "prints of the run's export folder, with --task and --json"
            )
        found += of_these
    return tuple(found)


def _figure(row: Any) -> Figure:
    return Figure(
        str(row["artifact"]), str(row["task"]), str(row["metric"]), float(row["value"]), row.get("stderr"),
        row.get("n"), row.get("sha256"),
    )  # fmt: skip
