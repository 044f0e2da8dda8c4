"""The file of a study: whether it is one, and a last line that was not written to its end."""

from __future__ import annotations

import json
import os
from pathlib import Path

from saap_edge.errors import SaapError

__all__ = ["check_journal", "mend"]


def check_journal(path: Path) -> None:
    """Raise SaapError where a file is there that is no journal: Optuna would write at its end."""
    if not path.exists():
        if not path.parent.is_dir():
            raise SaapError(f"--study '{path}': there is no folder '{path.parent}'")
        return
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 16)
    except OSError as error:
        raise SaapError(f"--study '{path}': {error.strerror}") from None
    if first.endswith(b"\n") and not _is_entry(first):
        raise SaapError(f"--study '{path}' is no journal of Optuna: choose another file")
    if not first.endswith(b"\n") and not b'{"op_code":'.startswith(first[:11]):
        raise SaapError(f"--study '{path}' is no journal of Optuna: choose another file")


def _is_entry(line: bytes) -> bool:
    try:
        return "op_code" in json.loads(line)
    except (ValueError, TypeError):
        return False


def mend(path: Path) -> None:
    """Take away a last line that has no end: a full disk, or a process that died, cut it off, and it says nothing yet.
    Optuna would write the next line behind it, and could read none of the study after that."""
    from optuna.storages.journal import JournalFileSymlinkLock
    from optuna.storages.journal._file import get_lock_file

    if not path.exists():
        return
    with get_lock_file(JournalFileSymlinkLock(str(path))), path.open("rb+") as file:
        whole = file.read()
        if whole and not whole.endswith(b"\n"):
            file.truncate(whole.rfind(b"\n") + 1)
            os.fsync(file.fileno())
