"""Measuring a bundle on a board over SSH: send the missing files, measure in a detached process, fetch, clean up.

A cut connection loses nothing. The measurement goes on by itself, and the same command finds it again, or continues to
send files where it stopped. client.py runs on the board, which needs Python and saap-edge[device] of the same version.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from saap_edge import __version__
from saap_edge.artifacts import engine_of
from saap_edge.bundle.archive import unpacked
from saap_edge.bundle.schema import BUNDLE_FILE, read_bundle
from saap_edge.documents.bench import Bench
from saap_edge.engines.registry import engine_named
from saap_edge.errors import SaapError
from saap_edge.progress import Bar
from saap_edge.remote.parcel import Parcel
from saap_edge.remote.ssh import PREFIX, Session, Ssh, Unreachable

__all__ = ["FOLDER", "Board", "bench_on_board"]

FOLDER = ".cache/saap-edge"  # of the login's home
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before the connection is tried again
PIECE, KIB, SLACK = 2**16, 2**10, 2**20
Result = TypeVar("Result")


@dataclass(frozen=True)
class Board:
    """Where to measure.

    Attributes:
        host: user@board, or a name in ssh's configuration.
        config: configuration file of ssh; None: the user's own.
        python: Python on the board; None: that of FOLDER/venv, else python3.
        folder: folder on the board for files and runs.
        keep: leave the files there for the next time.
    """

    host: str
    config: Path | None = None
    python: str | None = None
    folder: str = FOLDER
    keep: bool = False


def bench_on_board(
    bundles: Sequence[Path], board: Board, options: dict[str, Any], bar: Bar, say: Callable[[str], None]
) -> Bench:
    """Measure bundles (folders or .tar.zst files) on the board, and return the bench document with the board's facts.

    `options` are those of `bench_bundles`, and a budget and a target as JSON. Raises Unreachable when the connection
    does not come back; the board then keeps everything for the same command. Raises SaapError for all else, after
    cleaning up on the board.
    """
    ssh = Ssh(board.host, board.config)
    with ExitStack() as stack:
        folders = [path if path.is_dir() else stack.enter_context(unpacked(path)) for path in bundles]
        parcels = [Parcel.of(_inside(folder)) for folder in folders]
        engines = sorted({engine_of(read_bundle(parcel.folder).format) for parcel in parcels})
        client = Client(ssh, _python(ssh, board, engines), board, parcels, options)
        try:
            client.send(bar, say)
            document = client.follow(bar, say)
        except Unreachable as error:
            raise Unreachable(f"{error}; the same command goes on where it stopped") from None
        except BaseException:
            client.clean(say)
            raise
        client.clean(say)
    return document.model_copy(update={"machine": document.machine.model_copy(update={"host": ssh.board})})


def _inside(folder: Path) -> Path:
    """The folder with bundle.json: inside an unpacked archive, or the folder itself."""
    return folder if (folder / BUNDLE_FILE).is_file() else next(iter(folder.glob(f"*/{BUNDLE_FILE}")), folder).parent


class Client:
    """This end of a run. Its name is a hash of what is measured, how, and who asks: the same command finds it again."""

    def __init__(self, ssh: Ssh, python: str, board: Board, parcels: Sequence[Parcel], options: dict[str, Any]) -> None:
        self._ssh, self._python, self._board = ssh, python, board
        self._options, self._trees = options, [parcel.tree for parcel in parcels]
        self._sizes = {name: size for parcel in parcels for name, size in parcel.sizes.items()}
        self._paths = {name: parcel.folder / path for parcel in parcels for path, name in parcel.tree.items()}
        asked = [socket.gethostname(), getpass.getuser(), __version__, self._trees, options]
        self._run = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def send(self, bar: Bar, say: Callable[[str], None]) -> None:
        """Send the files that the board lacks. Raises SaapError when it has no room for them, or a file arrives damaged
        twice."""
        total = sum(self._sizes.values())
        with bar(f"sending to {self._ssh.board}: KiB", -(-total // KIB)) as advance:
            shown = 0

            def arrived(done: int) -> None:
                nonlocal shown
                if done > shown:
                    advance(-(-done // KIB) - -(-shown // KIB))
                    shown = done

            damaged = [
                name for _ in range(2) if (name := self._persist(lambda made: self._send_once(arrived, made), say))
            ]
        if len(damaged) == 2:
            raise SaapError(
                f"'{self._paths[damaged[0]]}' arrives at '{self._ssh.board}' with another sha256 than {BUNDLE_FILE} "
                "says: is it whole here (saap-edge verify), is the board's disk failing?"
            )

    def _send_once(self, arrived: Callable[[int], None], made: Callable[[], None]) -> str | None:
        """Send what is missing. Returns the first file that arrived damaged, or None."""
        with self._open("receive", files=list(self._sizes.items())) as session:
            messages = session.messages()
            first = next(messages, None)
            if first is None:
                raise Unreachable(f"'{self._ssh.board}' fell silent")
            have = dict(zip(self._sizes, first["have"], strict=True))
            missing = sum(self._sizes.values()) - sum(have.values())
            if missing and missing + SLACK > first["free"]:
                raise SaapError(
                    f"the disk of '{self._ssh.board}' is full: {missing / 2**20:.1f} MiB have to go to "
                    f"'{self._board.folder}', where {first['free'] / 2**20:.1f} MiB are free: make room, or name "
                    "another place by --remote-dir"
                )
            done = sum(have.values())
            arrived(done)
            for piece in self._pieces(have):
                if not session.send(piece):
                    break
                done += len(piece)
                arrived(done)
                made()
            session.end_input()
            damaged = [message["received"] for message in messages if not message["whole"]]
        return damaged[0] if damaged else None

    def _pieces(self, have: dict[str, int]) -> Iterator[bytes]:
        """The missing bytes of all files, in the order that the board expects."""
        for name, offset in have.items():
            if offset < self._sizes[name]:
                with self._paths[name].open("rb") as file:
                    file.seek(offset)
                    while piece := file.read(PIECE):
                        yield piece

    def follow(self, bar: Bar, say: Callable[[str], None]) -> Bench:
        """Start the measurement, or return to it, and wait for its document."""
        with ExitStack() as stack:
            shown: dict[str, Any] = {"bar": None, "done": 0}
            told: list[bool] = []

            def show(event: dict[str, Any]) -> None:
                if event["bar"] != shown["bar"]:
                    stack.close()
                    advance = stack.enter_context(bar(f"on {self._ssh.board}: {event['bar']}", event["total"]))
                    shown.update(bar=event["bar"], done=0, advance=advance)
                if event["done"] > shown["done"]:
                    shown["advance"](event["done"] - shown["done"])
                    shown["done"] = event["done"]

            def once(made: Callable[[], None]) -> dict[str, Any]:
                with self._open("follow", bundles=self._trees, options=self._options) as session:
                    session.end_input()
                    for message in session.messages():
                        if message.get("reattached") and not told:
                            say("this very measurement had been started before: coming back to it")
                        told.append(True)
                        made()
                        if "bar" in message:
                            show(message)
                        if "end" in message:
                            return message
                raise Unreachable(f"'{self._ssh.board}' fell silent")

            last = self._persist(once, say)
        if last["end"] == "done":
            return Bench.parse(last["document"], f"what '{self._ssh.board}' measured")
        word = "the measurement was ended: " if last["end"] == "killed" else ""
        raise SaapError(f"on '{self._ssh.board}': {word}{last['reason']}")

    def clean(self, say: Callable[[str], None]) -> None:
        """Stop the run and remove its files. Where the board does not answer, say how to do it by hand."""
        names = [] if self._board.keep else list(self._sizes)
        try:
            with self._open("stop", files=names) as session:
                session.end_input()
                for _ in session.messages():
                    pass
        except SaapError as error:
            say(f"cannot clean up: {error}; to do it by hand: ssh {self._ssh.host} rm -r {self._board.folder}/runs")

    def _open(self, command: str, **request: Any) -> Session:
        words = [self._python, "-m", "saap_edge.remote.client", command, _at_home(self._board.folder), self._run]
        session = self._ssh.open(shlex.join(words))
        session.send(json.dumps(request).encode() + b"\n")
        return session

    def _persist(self, once: Callable[[Callable[[], None]], Result], say: Callable[[str], None]) -> Result:
        """Call `once` again after a cut. It gives up after several cuts without any progress, which `once`
        reports by calling its argument."""
        failures = 0

        def made() -> None:
            nonlocal failures
            failures = 0

        while True:
            try:
                return once(made)
            except Unreachable as error:
                if failures == len(WAITS):
                    raise
                say(f"{error}; trying again in {WAITS[failures]:.0f} s")
                time.sleep(WAITS[failures])
                failures += 1


_PROBE = """
import importlib.util as u, json, platform, sys
try:
    import saap_edge, saap_edge.remote.client
    version = saap_edge.__version__
except Exception:  # a Python too old for it, too
    version = None
missing = [name for name in sys.argv[1:] if not u.find_spec(name)]
print({prefix} + json.dumps(dict(version=version, missing=missing, python=platform.python_version())))
"""


_HELLO = PREFIX.replace("\x1e", r"\036") + '{"shell": true}'  # for the shell's printf


def _python(ssh: Ssh, board: Board, engines: Sequence[str]) -> str:
    """The Python on the board that has this version of saap-edge, and the engines.

    Raises SaapError with the command that installs them where there is none.
    """
    modules = sorted({engine_named(engine).module for engine in engines})
    candidates = [board.python] if board.python else [f"{FOLDER}/venv/bin/python", "python3"]
    found: list[tuple[str, dict[str, Any]]] = []
    for python in map(_at_home, candidates):
        script = shlex.join([python, "-c", _PROBE.replace("{prefix}", ascii(PREFIX)), *modules])
        # Read by sh, whatever the login shell is.
        with ssh.open("sh -s") as session:
            session.send(
                f"printf '{_HELLO}\\n'\ncommand -v {shlex.quote(python)} >/dev/null 2>&1 || exit 0\n"
                f"LC_ALL=C {script} </dev/null\n".encode()
            )
            session.end_input()
            messages = list(session.messages())
            if not messages:
                raise SaapError(
                    f"'{ssh.board}' let us in and did not run our command; it says {session.noise[:200]!r}: what does "
                    f"`ssh {ssh.host} 'echo hello'` print?"
                )
            found += [(python, message) for message in messages if "version" in message]
    for python, facts in found:
        if facts["version"] == __version__ and not facts["missing"]:
            return python
    raise SaapError(_not_installed(ssh, board, found, candidates))


def _not_installed(ssh: Ssh, board: Board, found: Sequence[tuple[str, dict[str, Any]]], asked: Sequence[str]) -> str:
    there = [
        f"'{python}' (Python {facts['python']}) "
        + (
            "has no saap-edge"
            if facts["version"] is None
            else f"has saap-edge {facts['version']}, not {__version__}"
            if facts["version"] != __version__
            else f"lacks {' and '.join(facts['missing'])}"
        )
        for python, facts in found
    ]
    given = _at_home(board.python or "")
    place = given.removesuffix("/bin/python") if given.endswith("/bin/python") else f"{FOLDER}/venv"
    return (
        f"'{ssh.board}' cannot measure: {'; '.join(there) or 'there is no ' + ' and no '.join(asked)}. Install there: "
        f"python3 -m venv {place} && {place}/bin/python -m pip install 'saap-edge[device]=={__version__}'"
    )


def _at_home(path: str) -> str:
    """A path on the board without ~/: ssh starts in the home folder, and a shell does not expand a quoted ~."""
    return path.removeprefix("~/")
