"""Publishing a run: what is refused, what is laid out, and what is sent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.cache import clean_leftovers
from saap_edge.errors import SaapError
from saap_edge.layouts.document import LAYOUT_FILE, File
from saap_edge.progress import Bar
from saap_edge.publishing.contents import Contents
from saap_edge.publishing.evaluations import Figure
from saap_edge.publishing.hub import Sent, has_token, send
from saap_edge.publishing.licence import check_terms
from saap_edge.publishing.write import lay_out

__all__ = ["Pushed", "push"]


@dataclass(frozen=True)
class Pushed:
    """What was published, or would be.

    Attributes:
        repo: OWNER/NAME.
        licence: its name.
        files: every file, with its bytes.
        notes: lines that the user should read.
        sent: what the hub has now; None: nothing was sent.
    """

    repo: str
    licence: str
    files: tuple[File, ...]
    notes: tuple[str, ...]
    sent: Sent | None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        """The same as a JSON document; `dry_run`: nothing was sent."""
        sent = vars(self.sent) if self.sent else {"url": None, "commit": None, "private": None, "changed": False}
        return {
            "repo": self.repo, "dry_run": self.sent is None, **sent, "licence": self.licence, "bytes": self.bytes,
            "files": [file.as_dict() for file in self.files], "notes": list(self.notes),
        }  # fmt: skip


def push(
    contents: Contents, repo: str, figures: tuple[Figure, ...], scratch: Path, *, private: bool, agreed: bool,
    dry_run: bool, bar: Bar,
) -> Pushed:  # fmt: skip
    """Lay a repository out beside the run, and send it. Without a token, or with `dry_run`, nothing is sent.

    Args:
        contents: what is published.
        repo: OWNER/NAME.
        figures: of zero-shot tasks, for the card.
        scratch: the run's folder: the repository is laid out in a folder of its own there, so that large files need no
            copies; or among the system's temporary files, where the run may not be written to.
        private: make it private; refused where it is public already.
        agreed: the user sees to what the licence demands.
        dry_run: only tell what would be sent.
        bar: shows progress.

    Raises SaapError as `check_terms`, `lay_out` and `send`.
    """
    logged_in, licence = has_token(), contents.licence
    sends = logged_in and not dry_run
    check_terms(licence, repo, agreed or not sends)
    with _room(scratch) as folder:
        try:
            with bar(f"laying out {repo}", len(contents.artifacts) or None) as advance:
                written = lay_out(contents, repo, folder, figures, advance)
        except OSError as error:
            raise SaapError(f"cannot write to '{folder}': {error.strerror or error}") from error
        own = File(path=LAYOUT_FILE, bytes=(folder / LAYOUT_FILE).stat().st_size)
        message = f"Upload {written.format} by saap-edge {written.saap_edge}"
        sent = send(folder, written, repo, private, message, bar) if sends else None
    notes = [*written.notes, *(f"{licence.shown} demands: {demand}" for demand in licence.demands)]
    if not logged_in:
        notes.append("no token, so nothing was sent: log in with `hf auth login`, or set HF_TOKEN")
    return Pushed(repo, licence.shown, (*written.files, own), tuple(notes), sent)


@contextmanager
def _room(run: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards; those of calls that were killed go too."""
    if not os.access(run, os.W_OK):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    clean_leftovers(run)
    own = run / f".tmp-push-{os.getpid()}"
    own.mkdir()
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
