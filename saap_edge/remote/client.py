"""The board's end of `saap-edge bench --host`: `python -m saap_edge.remote.client COMMAND FOLDER RUN`, started by ssh.

FOLDER (~/.cache/saap-edge) holds `files/`, where each file has its sha256 as name, and `runs/RUN/`: the request, the
unpacked bundles (hard links), `events.jsonl` and the log of the measuring process. That process is detached, so that a
cut connection does not end it. `follow` sends its events from the first on: a caller that was cut off misses nothing.
A lock on FOLDER/lock allows one run at a time, because two would disturb each other.

Messages are JSON, one a line after a prefix. This module imports only the standard library; the measuring process
imports the rest.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.remote.ssh import PREFIX

__all__ = ["BOOT", "EVENTS", "LOG", "REQUEST", "main", "reason_of", "run_folder"]

EVENTS, LOG, REQUEST = "events.jsonl", "log", "request.json"
BOOT = Path("/proc/sys/kernel/random/boot_id")
PIECE = 2**18
POLL, BEAT = 0.3, 5.0  # seconds between looks at the events, and between signs of life to the client


def run_folder(folder: Path, run: str) -> Path:
    """The folder of a run."""
    return folder / "runs" / run


def tell(**message: Any) -> None:
    """Send a message to the caller. Raises BrokenPipeError when the caller has gone."""
    sys.stdout.write(PREFIX + json.dumps(message) + "\n")
    sys.stdout.flush()


def receive(folder: Path, run: str, source: BufferedReader) -> None:
    """Receive files. The first line of stdin lists them, {"files": [[sha256, bytes], ...]}.

    The answer says how many bytes of each are here, and how much room is left. Then the caller sends the rest of each
    file, in order. What came before a cut is kept. A file gets its name when its sha256 is right.
    """
    wanted = [(str(name), int(size)) for name, size in json.loads(source.readline())["files"]]
    holder = _holder(folder)
    if _ended(run_folder(folder, run)) or (holder and (holder["run"], holder["what"]) == (run, "job")):
        tell(have=[size for _, size in wanted], free=0)  # the run was started before the caller was cut off
        return
    if holder and holder["run"] == run:  # a process of a connection that was cut, which does not know that yet
        with suppress(ProcessLookupError):
            os.kill(holder["pid"], signal.SIGKILL)
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    with _lock(folder, run, "receive"):
        have = [_held(files, name, size) for name, size in wanted]
        tell(have=have, free=shutil.disk_usage(folder).free)
        for (name, size), offset in zip(wanted, have, strict=True):
            if offset < size:
                _append(files / f"{name}.part", size - offset, source)
                tell(received=name, whole=_held(files, name, size) == size)


def _held(files: Path, name: str, size: int) -> int:
    """Bytes of a file that are here. It is `size` only if the sha256 is right; then the file gets its name."""
    whole, part = files / name, files / f"{name}.part"
    if whole.exists():
        whole.replace(part)  # checked again below: a memory card may have lost data
    part.touch()
    held = part.stat().st_size
    if held == size and _sha256(part) == name:
        part.replace(whole)
        return size
    if held >= size:
        part.unlink()
        return 0
    return held


def _append(part: Path, count: int, source: BufferedReader) -> None:
    """Append `count` bytes of stdin to `part`. Raises SaapError when fewer come, OSError when the disk is full."""
    try:
        with part.open("ab") as target:
            while count:
                piece = source.read1(min(PIECE, count))
                if not piece:
                    raise SaapError("the connection was cut")
                target.write(piece)
                count -= len(piece)
            target.flush()
            os.fsync(target.fileno())
    except OSError:
        part.unlink(missing_ok=True)  # else the disk would stay full
        raise


def follow(folder: Path, run: str, source: BufferedReader) -> None:
    """Send the events of a run, from the first to the last. If the run was not started before, start it.

    stdin describes the run: {"bundles": [{path: sha256}, ...], "options": {...}}. The last message is the run's own
    {"end": ...}, or {"end": "killed"} when its process ended without one.
    """
    place, request = run_folder(folder, run), json.loads(source.readline())
    holder = _holder(folder)
    going_on = holder is not None and (holder["run"], holder["what"]) == (run, "job")
    again = going_on or (place / EVENTS).is_file()
    if not again:
        _start(folder, run, place, request)
    tell(reattached=again)
    at, beat = 0, time.monotonic()
    while True:
        alive = (_holder(folder) or {}).get("run") == run  # asked before reading, so that no last event is missed
        with (place / EVENTS).open("rb") as file:
            file.seek(at)
            for line in file:
                if line.endswith(b"\n"):
                    at += len(line)
                    event = json.loads(line)
                    tell(**event)
                    if "end" in event:
                        return
        if not alive:
            tell(end="killed", reason=reason_of(place))
            return
        if time.monotonic() - beat > BEAT:
            tell()
            beat = time.monotonic()
        time.sleep(POLL)


def _start(folder: Path, run: str, place: Path, request: dict[str, Any]) -> None:
    """Lay out the bundles, and start the detached measuring process, which takes over the lock."""
    from saap_edge.bundle.schema import is_inside  # not above: `receive` need not wait for this import

    with _lock(folder, run, "job") as lock:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for number, tree in enumerate(request["bundles"]):
            for path, name in tree.items():
                if not is_inside(path):
                    raise SaapError(f"'{path}' is no path inside a bundle")
                target = place / f"bundle-{number}" / path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(folder / "files" / name, target)
                except OSError:  # a file system without hard links
                    shutil.copyfile(folder / "files" / name, target)
        (place / REQUEST).write_text(json.dumps(request))
        boot = BOOT.read_text().strip() if BOOT.is_file() else None
        (place / EVENTS).write_text(json.dumps({"boot": boot}) + "\n")
        with (place / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "saap_edge.remote.worker", str(place)], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True, pass_fds=(lock,),
            )  # fmt: skip
        _sign(lock, run, "job", process.pid)


def reason_of(place: Path) -> str:
    """Why a run's process ended without its last event, in words."""
    first = json.loads((place / EVENTS).open().readline() or "{}")
    if BOOT.is_file() and first.get("boot") not in (None, BOOT.read_text().strip()):
        return "the board restarted meanwhile (a weak power supply does that under load)"
    lines = (place / LOG).read_text(errors="replace").strip().splitlines() if (place / LOG).is_file() else []
    return f"its last words: {lines[-1][:200]}" if lines else "without a word: killed, by hand or for want of memory"


def stop(folder: Path, run: str, source: BufferedReader) -> None:
    """End a run and remove its folder, and the files that stdin lists: {"files": [sha256, ...]}."""
    names = json.loads(source.readline())["files"]
    holder = _holder(folder)
    if holder and holder["run"] == run:
        _end(folder, holder)
    shutil.rmtree(run_folder(folder, run), ignore_errors=True)
    for name in names:
        for path in (folder / "files" / name, folder / "files" / f"{name}.part"):
            path.unlink(missing_ok=True)
    for path in (folder / "files", folder / "runs"):
        with suppress(OSError):  # not empty: the rest belongs to other runs
            path.rmdir()
    tell(stopped=True)


def _end(folder: Path, holder: dict[str, Any]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            # The measuring process leads a process group, which the engines belong to.
            (os.killpg if holder["what"] == "job" else os.kill)(holder["pid"], sign)
        for _ in range(50):
            if _holder(folder) is None:
                return
            time.sleep(0.1)


@contextmanager
def _lock(folder: Path, run: str, what: str) -> Iterator[int]:
    """Lock the board for a run. Raises SaapError when another run measures, or sends files for more than seconds."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for attempt in range(50):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                other = _holder(folder)  # None: another process only asked who holds the lock
                if other and (other["what"] == "job" or attempt == 49):
                    raise SaapError(
                        f"another measurement has the board (process {other['pid']}): wait for its end"
                    ) from None
                time.sleep(0.1)
        else:
            raise SaapError("the board's lock cannot be had: try again")
        _sign(lock, run, what, os.getpid())
        yield lock
    finally:
        os.close(lock)  # a measuring process that was started still holds it


def _sign(lock: int, run: str, what: str, pid: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"run": run, "what": what, "pid": pid}).encode(), 0)


def _holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock: {"run", "what": "receive" or "job", "pid"}; None: nobody."""
    path = folder / "lock"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            with suppress(ValueError):
                return dict(json.loads(file.read()))
            return {"run": "", "what": "", "pid": "?"}
    return None


def _ended(place: Path) -> bool:
    events = place / EVENTS
    return events.is_file() and b'"end"' in events.read_bytes()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Run a command. Every expected error becomes a message, which the caller prints."""
    command, folder, run = sys.argv[1:]
    place = Path(folder).absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with open(0, "rb", closefd=False) as source:
            {"receive": receive, "follow": follow, "stop": stop}[command](place, run, source)
    except BrokenPipeError:
        os._exit(0)  # the caller has gone; the run goes on
    except SaapError as error:
        tell(error=str(error))
    except OSError as error:
        full = f"the disk of '{place}' is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        tell(error=full or f"{error.strerror or error} '{error.filename or place}'")


if __name__ == "__main__":
    main()
