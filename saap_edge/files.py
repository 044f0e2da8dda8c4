"""Files of a run: hashes, and JSON documents."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError

__all__ = ["file_hash", "folder_hash", "read_json", "save_document", "write_json", "write_whole"]


def file_hash(path: Path) -> str:
    """sha256 of a file, read in pieces. Raises SaapError when it cannot be read."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None


def folder_hash(folder: Path) -> str:
    """sha256 over names and contents of a folder's files; hidden files and sub-folders are left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            digest.update(f"{path.name}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file of a stage."""
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of a stage. Raises SaapError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaapError(f"cannot read '{path}': {error}") from None


def save_document(document: dict[str, Any], out: Path) -> None:
    """Write a JSON document that people keep, whole or not at all. Raises ValueError for NaN and infinite numbers."""
    write_whole(out, json.dumps(document, indent=1, allow_nan=False))


def write_whole(out: Path, text: str) -> None:
    """Write a text that people keep, whole or not at all. Raises OSError where it cannot be written."""
    beside = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)
