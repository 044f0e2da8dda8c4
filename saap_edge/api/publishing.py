"""Results that travel: the model card of a run, and its repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saap_edge.api.results import Place, folder_of
from saap_edge.progress import Listener, progress_of

if TYPE_CHECKING:
    from saap_edge.publishing.contents import Contents
    from saap_edge.publishing.evaluations import Figure
    from saap_edge.publishing.push import Pushed
    from saap_edge.publishing.write import CardFiles

__all__ = ["card", "push"]


def card(
    place: Place, *, out: str | Path | None = None, repo: str | None = None, formats: Sequence[str] = (),
    with_model: bool = True, license: str | None = None, base_model: str | None = None,
    evaluations: Sequence[str | Path] = (),
) -> CardFiles:  # fmt: skip
    """Write the model card of a finished run, as `saap-edge card` does (docs/publishing.md).

    Args:
        place: a finished run, its `out` folder, or the folder of its report stage.
        out: file to write, with the picture of widths beside it; README.md in the run's folder where absent.
        repo: OWNER/NAME of the repository that the card's lines name.
        formats: artifacts that the card is about; all that a runtime takes from a repository where empty.
        with_model: the repository has the Hugging Face folder too.
        license: the hub's identifier of the licence, where the base model states none.
        base_model: OWNER/NAME of the base model, where the run does not know it.
        evaluations: files with what `saap-edge evaluate --json` printed of the run's export folder, for zero-shot
            figures.

    Returns where it is, the metadata at its head, and lines that the user should read. Raises SaapError for a run that
    is not finished, artifacts that are missing or were changed, a bad name, another licence than the base model's, and
    a file at `out` that saap-edge did not write.

    Examples:
        >>> made = se.card(run, out="card/README.md", repo="me/small", license="apache-2.0")
        >>> made.metadata["license"], made.metadata["pipeline_tag"]
        ('apache-2.0', 'text-generation')
        >>> made.path.name, made.picture.name
        ('README.md', 'widths.png')
    """
    from saap_edge.publishing.names import check_repo
    from saap_edge.publishing.write import write_card

    name = check_repo(repo) if repo else None
    contents, figures = _contents(place, formats, with_model, license, base_model, evaluations)
    return write_card(contents, name, figures, Path(out) if out else _run_folder(place) / "README.md")


def push(
    place: Place, repo: str, *, private: bool = False, formats: Sequence[str] = (), with_model: bool = True,
    license: str | None = None, base_model: str | None = None, evaluations: Sequence[str | Path] = (),
    agreed: bool = False, dry_run: bool = False, progress: Listener = None,
) -> Pushed:  # fmt: skip
    """Publish a finished run on the hub in one commit, as `saap-edge push` does (docs/publishing.md).

    Args:
        place: a finished run, its `out` folder, or the folder of its report stage.
        repo: OWNER/NAME; it is made where it is not there.
        private: make it private.
        formats: artifacts to publish; all that a runtime takes from a repository where empty.
        with_model: publish the Hugging Face folder too.
        license: as of `card`.
        base_model: as of `card`.
        evaluations: as of `card`.
        agreed: you see to what the base model's licence demands, where it demands more than a command can do.
        dry_run: send nothing, and only tell what would be sent. Without a token it is always so.
        progress: as of `compile`.

    Returns the files with their bytes, the licence, lines that the user should read, and `sent`: address and commit, or
    None where nothing was sent. Raises SaapError as `card`, where no licence is known or the known one forbids it, and
    for whatever the hub refuses; the repository is then as it was, or made and empty.

    Examples:
        >>> found = se.push(run, "me/small", license="apache-2.0", dry_run=True)
        >>> found.sent, [file.path for file in found.files if file.path.endswith(".gguf")]
        (None, ['small-Q4_0.gguf'])
    """
    from saap_edge.publishing.names import check_repo
    from saap_edge.publishing.push import push as publish

    name, listener = check_repo(repo), progress_of(progress)
    contents, figures = _contents(place, formats, with_model, license, base_model, evaluations)
    return publish(
        contents, name, figures, _run_folder(place), private=private, agreed=agreed, dry_run=dry_run, bar=listener.bar
    )


def _contents(
    place: Place, formats: Sequence[str], with_model: bool, license: str | None, base_model: str | None,
    evaluations: Sequence[str | Path],
) -> tuple[Contents, tuple[Figure, ...]]:  # fmt: skip
    from saap_edge.publishing.contents import find_contents
    from saap_edge.publishing.evaluations import read_figures
    from saap_edge.publishing.names import check_repo

    base = check_repo(base_model, "--base-model") if base_model else None
    contents = find_contents(folder_of(place), tuple(formats), with_model, license, base)
    names = [shipped.record.name for shipped in contents.artifacts]
    return contents, read_figures(map(Path, evaluations), contents.report.lineage["export"], names)


def _run_folder(place: Place) -> Path:
    """The --out folder of a run: that of a run, a folder that has links, or the one that a stage's folder is in."""
    folder = folder_of(place)
    return folder.resolve().parents[1] if (folder / "stage.json").is_file() else folder
