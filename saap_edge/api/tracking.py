"""Figures of many runs, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saap_edge.errors import SaapError

if TYPE_CHECKING:
    from saap_edge.documents.history import History

__all__ = ["history"]


def history(places: Sequence[str | Path] | str | Path, *, out: str | Path | None = None) -> History:
    """Ratios, memory, quality and verdicts of many runs over time (docs/history.md).

    Args:
        places: report.json and bench.json files, and folders that hold such at any depth; LABEL=PATH names a run.
        out: page to write (HTML), whole or not at all. It needs no network.

    Raises SaapError where there is no run, a document is damaged, or `out` cannot be written.

    Examples:
        >>> found = se.history(["first=out", "second=out"], out="history.html")
        >>> [run.label for run in found.runs]
        ['first', 'second']
    """
    from saap_edge.files import write_whole
    from saap_edge.report.history import history_page
    from saap_edge.tracking.collect import collect

    found = collect([places] if isinstance(places, str | Path) else places)
    if out is not None:
        try:
            write_whole(Path(out), history_page(found))
        except OSError as error:
            raise SaapError(f"cannot write '{out}': {error.strerror}") from None
    return found
