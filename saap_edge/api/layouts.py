"""Layouts: a model of a run, laid out so that one runtime takes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saap_edge.api.results import Place, folder_of
from saap_edge.progress import Listener, progress_of

if TYPE_CHECKING:
    from saap_edge.layouts.document import Written

__all__ = ["export_for"]


def export_for(
    place: Place, layout: str, *, out: str | Path, format: str | None = None, packages: str | Path | None = None,
    progress: Listener = None,
) -> Written:  # fmt: skip
    """Lay out one verified artifact of a run for a runtime, as `saap-edge export --for` does (docs/usage.md).

    Args:
        place: a finished run, its `out` folder, or the folder of its export stage or of a later one.
        layout: name of the layout, "ollama" for example.
        out: folder to write; it appears whole or not at all, and only one that this function wrote is replaced.
        format: which artifact; the layout's usual one where absent.
        packages: folder with the npm packages that a page needs; they are fetched where absent.
        progress: as of `compile`.

    Returns what was written: `files` with their bytes, and `notes` that the user should read. Raises SaapError where
    the layout is unknown, an artifact is missing or was never verified, or something else is at `out`.

    Examples:
        >>> made = se.export_for(run, "ollama", out="ollama")
        >>> made.format, [file.path for file in made.files]
        ('gguf-q4_0', ['Modelfile', 'model-q4_0.gguf'])
    """
    from saap_edge.layouts.write import write_layout

    listener = progress_of(progress)
    folder = None if packages is None else Path(packages)
    return write_layout(folder_of(place), layout, Path(out), format, folder, listener.bar)
