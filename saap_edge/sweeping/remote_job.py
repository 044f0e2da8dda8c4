"""What runs on a node of a cluster: a look at the node, one stage, and clearing away. Ray calls these functions."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saap_edge.cache import Busy
from saap_edge.errors import SaapError
from saap_edge.machine.facts import machine_facts
from saap_edge.machine.quiet import quiet_libraries
from saap_edge.progress import no_bar
from saap_edge.sweeping.job import do_job, identity
from saap_edge.sweeping.parcels import pack, unpack, with_files
from saap_edge.targets import this_machine

__all__ = ["clear", "look", "make", "name_of_node", "sees"]

PATIENCE = 60.0  # seconds that a stage waits for a process which is about to end with the node that it ran on


def look() -> dict[str, Any]:
    """What this node is: its name, `job.identity`, `machine_facts`, and its description as the target `host`."""
    return {
        "name": socket.gethostname(), "identity": identity(), "facts": machine_facts(),
        "host": this_machine().model_dump(mode="json"),
    }  # fmt: skip


def sees(paths: Sequence[str]) -> list[bool]:
    """Whether this node sees each of these files and folders."""
    return [Path(path).exists() for path in paths]


def make(job: Mapping[str, Any], labels: Sequence[tuple[str, str]], *parcels: Any) -> Any:
    """Make the stage of a job.

    Args:
        job: `job_of`, with "session", the name of this sweep's folder on every node, and "carried": stage folders are
            in there, and not where the sweep has them.
        labels: what each parcel is: ("stage", key); ("file:FIELD", name), what a field of the recipe names; or
            ("seen", key), a stage that is made now and in a folder that this node sees.
        parcels: `pack` of them.

    Returns (seconds, name of this node), and where stages are carried its folder as a parcel, too. Raises what the
    stage refuses, and SaapError that names the node where its disk is full.
    """
    quiet_libraries()
    try:
        return _made(_unpacked(job, labels, parcels))
    except Exception as error:  # libraries have their own classes for it, with the system's words in them
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        place = _folder(job["session"]) if job["carried"] else Path(job["root"])
        raise SaapError(f"node {name_of_node()} has no space left on the disk of '{place}'") from None


def _made(job: Mapping[str, Any]) -> Any:
    """What `make` returns, for a job with paths of this node."""
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            seconds = do_job(job, no_bar)
            break
        except Busy:
            if time.monotonic() > limit:
                raise
            time.sleep(1)
    told = (round(seconds, 2), name_of_node())
    return (told, pack(Path(job["root"]) / job["key"])) if job["carried"] else told


def _unpacked(job: Mapping[str, Any], labels: Sequence[tuple[str, str]], parcels: Sequence[Any]) -> dict[str, Any]:
    """The job with paths of this node, where all parcels are."""
    base = _folder(job["session"])
    root = base / "stages" if job["carried"] else Path(job["root"])
    root.mkdir(parents=True, exist_ok=True)
    files = {}
    for (kind, name), parcel in zip(labels, parcels, strict=True):
        field = kind.removeprefix("file:")
        if kind == "stage":
            unpack(parcel, root / name)
        elif field != kind:  # in a folder of its contents: reports name a model by its own name
            digest = hashlib.sha256(memoryview(parcel)).hexdigest()[:12]
            files[field] = unpack(parcel, base / "files" / digest / name)
    return {**job, "root": str(root), "recipe": with_files(job["recipe"], files)}


def _folder(session: str) -> Path:
    return Path(tempfile.gettempdir()) / f"saap-edge-sweep-{os.getuid()}" / session


def clear(session: str) -> None:
    """Remove what a session left on this node."""
    shutil.rmtree(_folder(session), ignore_errors=True)


def name_of_node() -> str:
    """The name of the machine, and the begin of the node's id: several nodes may be on one machine."""
    import ray

    return f"{socket.gethostname()}-{ray.get_runtime_context().get_node_id()[:6]}"
