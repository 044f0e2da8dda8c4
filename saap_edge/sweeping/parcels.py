"""Folders and files as one array of bytes each, for machines that do not see one another's disks."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saap_edge.sweeping.combinations import placed

__all__ = ["outside_files", "pack", "unpack", "with_files"]


def pack(path: Path) -> Any:
    """A folder or a file as a tar archive in an array of bytes, uint8 [n]. Symbolic links are followed."""
    import numpy as np

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as archive:
        archive.add(path, path.name)
    return np.frombuffer(buffer.getbuffer(), dtype=np.uint8)


def unpack(parcel: Any, path: Path, replace: bool = False) -> Path:
    """Write what `pack` took as `path`, whole or not at all; returns `path`. What is there already stays, unless it is
    to be replaced. Raises OSError where the disk is full."""
    if path.exists() and not replace:
        return path
    beside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(memoryview(parcel)), mode="r") as archive:
            [first, *_] = archive.getnames()
            archive.extractall(beside, filter="data")
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        try:
            (beside / first).rename(path)
        except OSError:
            if not path.exists():  # another process was first: what it wrote is as good
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return path


def outside_files(recipe: Mapping[str, Any]) -> dict[str, Path]:
    """The files and folders of this machine that a recipe names, by dotted field. Names on the hub are none."""
    return {field: path for field, path in _named(recipe) if path.exists()}


def _named(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    data = recipe["data"]
    calibration = data["calibration"]
    own = calibration[-1] if isinstance(calibration, list | tuple) else calibration
    given = {
        "model": recipe["model"], "recover.teacher": recipe["recover"]["teacher"], "data.calibration": own,
        "data.heldout": data["heldout"], "data.test": data["test"],
    }  # fmt: skip
    for field, value in given.items():
        if value is not None:
            yield field, Path(value)


def with_files(recipe: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    """The recipe with other paths of `outside_files`."""
    values: dict[str, Any] = {field: str(path) for field, path in files.items()}
    calibration = recipe["data"]["calibration"]
    if "data.calibration" in values and isinstance(calibration, list | tuple):
        values["data.calibration"] = [*calibration[:-1], values["data.calibration"]]
    return placed(recipe, values)
