"""The board's end of `saap-edge bench --host`: `python -m saap_edge.remote.client COMMAND FOLDER RUN`, started by ssh.

FOLDER (~/.cache/saap-edge) holds `files/`, each under its sha256, and `runs/RUN/`: the request, the unpacked bundles
(hard links), `events.jsonl` and the log of the measuring process. That process is detached and knows of no connection:
`follow` tells its events from the first on, so that a client that was cut off comes back and misses nothing.
One run at a time, by a lock on FOLDER/lock: two would disturb each other.

Messages are JSON, one a line after a prefix. Standard library only: measuring is imported by the measuring process.
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
    return folder / "runs" / run


def tell(**message: Any) -> None:
    """A message to the client; BrokenPipeError when there is none any more."""
    sys.stdout.write(PREFIX + json.dumps(message) + "\n")
    sys.stdout.flush()


def receive(folder: Path, run: str, source: BufferedReader) -> None:
    """Take the files that stdin lists in its first line, {"files": [[sha256, bytes], ...]}, and sends after it.

    Tells how much of each is here and how much room is left; the client sends the rest of each, in order. What came
    before a cut is kept. A file gets its name when its sha256 is right.
    """
    wanted = [(str(name), int(size)) for name, size in json.loads(source.readline())["files"]]
    holder = _holder(folder)
    if _ended(run_folder(folder, run)) or (holder and (holder["run"], holder["what"]) == (run, "job")):
        tell(have=[size for _, size in wanted], free=0)  # it is measured, or was: whoever sent it was cut off
        return
    if holder and holder["run"] == run:  # the other end of a cut connection, which cannot know it yet
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
    """Bytes of a file that are here: `size` only where its sha256 is right, which gives it its name."""
    whole, part = files / name, files / f"{name}.part"
    if whole.exists():
        whole.replace(part)  # looked at again: a card may have lost what it held
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
    """`count` bytes of stdin to the end of `part`. Raises SaapError when they do not come, or find no room."""
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
        part.unlink(missing_ok=True)  # a full disk must not stay full of our half
        raise


def follow(folder: Path, run: str, source: BufferedReader) -> None:
    """Start the run that stdin describes, {"bundles": [{path: sha256}, ...], "options": {...}}, unless it goes on or
    has ended already, and tell its events from the first to the last.

    Ends with the run's own {"end": ...}, or {"end": "killed"} when its process is gone without one.
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
        alive = (_holder(folder) or {}).get("run") == run  # before reading: the last event comes before the end
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
    """Lay out the bundles and detach the measuring process, which takes the lock over from us."""
    from saap_edge.bundle.schema import is_inside  # not above: what only receives need not wait for it

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
    """Why a run's process is gone without a word."""
    first = json.loads((place / EVENTS).open().readline() or "{}")
    if BOOT.is_file() and first.get("boot") not in (None, BOOT.read_text().strip()):
        return "the board restarted meanwhile (a weak power supply does that under load)"
    lines = (place / LOG).read_text(errors="replace").strip().splitlines() if (place / LOG).is_file() else []
    return f"its last words: {lines[-1][:200]}" if lines else "without a word: killed, by hand or for want of memory"


def stop(folder: Path, run: str, source: BufferedReader) -> None:
    """End the run and remove what it had; the files that stdin lists too, {"files": [sha256, ...]}."""
    names = json.loads(source.readline())["files"]
    holder = _holder(folder)
    if holder and holder["run"] == run:
        _end(folder, holder)
    shutil.rmtree(run_folder(folder, run), ignore_errors=True)
    for name in names:
        for path in (folder / "files" / name, folder / "files" / f"{name}.part"):
            path.unlink(missing_ok=True)
    for path in (folder / "files", folder / "runs"):
        with suppress(OSError):  # what else is there is another's
            path.rmdir()
    tell(stopped=True)


def _end(folder: Path, holder: dict[str, Any]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            # The measuring process leads a group of its own, with the engines in it.
            (os.killpg if holder["what"] == "job" else os.kill)(holder["pid"], sign)
        for _ in range(50):
            if _holder(folder) is None:
                return
            time.sleep(0.1)


@contextmanager
def _lock(folder: Path, run: str, what: str) -> Iterator[int]:
    """Hold the board; raises SaapError when another run measures, or sends for more than a few seconds."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for attempt in range(50):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                other = _holder(folder)  # None: somebody only looked who has it
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
        os.close(lock)  # the measuring process, where it was started, holds it still


def _sign(lock: int, run: str, what: str, pid: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"run": run, "what": what, "pid": pid}).encode(), 0)


def _holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock: {"run", "what": "receive" or "job", "pid"}, None where nobody does."""
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
    """Every expected error is a message; the client prints it."""
    command, folder, run = sys.argv[1:]
    place = Path(folder).absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with open(0, "rb", closefd=False) as source:
            {"receive": receive, "follow": follow, "stop": stop}[command](place, run, source)
    except BrokenPipeError:
        os._exit(0)  # nobody listens; the run goes on
    except SaapError as error:
        tell(error=str(error))
    except OSError as error:
        full = f"the disk of '{place}' is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        tell(error=full or f"{error.strerror or error} '{error.filename or place}'")


if __name__ == "__main__":
    main()
