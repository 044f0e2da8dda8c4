"""Commands on a board through the system's ssh, with the user's own configuration and agent.

No password is asked for: a key or an agent must allow the login (BatchMode). An unknown or changed host key is an
error, whatever the user's configuration says, and nothing is added to known_hosts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from saap_edge.errors import SaapError

__all__ = ["PREFIX", "Session", "Ssh", "Unreachable"]

# Every message begins with this, anywhere in a line, because a login script may print text without a final newline. The
# first character is the record separator of JSON text sequences (RFC 7464): it is in no text, JSON escapes it, and a
# shell that echoes commands shows its escape.
PREFIX = "\x1esaap-edge "
_OPTIONS = {
    "BatchMode": "yes", "StrictHostKeyChecking": "yes", "UpdateHostKeys": "no", "ClearAllForwardings": "yes",
    "ForwardAgent": "no", "ConnectTimeout": "15", "ServerAliveInterval": "10", "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",
}  # fmt: skip


class Unreachable(SaapError):
    """There is no connection to the board, or it was cut. What was started there goes on, and can be found again."""


class Ssh:
    """How to reach a board. Raises SaapError for what is no host, and for a host with a password in it.

    >>> Ssh("pi:secret@board")
    Traceback (most recent call last):
    saap_edge.errors.SaapError: --host has a password in it, which every process could read: use a key (ssh-copy-id)
    """

    def __init__(self, host: str, config: Path | None = None) -> None:
        if not host or host.startswith("-") or re.search(r"\s", host):
            raise SaapError(
                f"--host '{host}' is no host: give user@board, a name of ~/.ssh/config, or ssh://user@board:port"
            )
        user, _, board = host.removeprefix("ssh://").rpartition("@")
        if ":" in user:
            raise SaapError("--host has a password in it, which every process could read: use a key (ssh-copy-id)")
        if config is not None and not config.is_file():
            raise SaapError(f"--ssh-config '{config}' is no file")
        self.host, self.board, self._config = host, board, config

    def open(self, command: str) -> Session:
        """Start `command` in the board's login shell."""
        options = [part for name, value in _OPTIONS.items() for part in ("-o", f"{name}={value}")]
        if self._config is not None:
            options += ["-F", str(self._config)]
        return Session(self, ["ssh", "-T", *options, "--", self.host, command])

    def unreachable(self, text: str) -> SaapError:
        """The error for what ssh printed: what it means, and what to do."""
        board, last = self.board, (text.strip().splitlines() or ["the connection was cut"])[-1]
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text or "differs from the key" in text:
            return SaapError(
                f"the host key of '{board}' is not the one in known_hosts: another machine answers, or it was "
                "installed anew. Compare fingerprints on the board (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), "
                f"then ssh-keygen -R {board}"
            )
        if "Host key verification failed" in text or "host key is known for" in text:
            return SaapError(
                f"the host key of '{board}' is unknown: connect once by `ssh {self.host}` and compare the fingerprint, "
                "or get known_hosts from someone who did"
            )
        if "Permission denied" in text or "Too many authentication failures" in text:
            return SaapError(
                f"'{self.host}' refused the login ({last}): put a key there (ssh-copy-id {self.host}) and unlock it "
                "(ssh-add); passwords are not asked for"
            )
        if "onfiguration option" in text or "terminating" in text:
            return SaapError(f"ssh refuses its configuration: {last}")
        return Unreachable(f"no connection to '{board}': {last.removeprefix('ssh: ')}")


class Session:
    """A command that runs on the board. Use it as a context manager; its end ends the connection."""

    def __init__(self, ssh: Ssh, arguments: list[str]) -> None:
        self._ssh, self._stderr = ssh, tempfile.TemporaryFile()  # noqa: SIM115 (closed with the session)
        self.noise = ""  # the last line that was no message
        try:
            # In a session of its own, ssh does not get Ctrl-C: this program does, and stops what runs on the board.
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
                env=os.environ | {"LC_ALL": "C"}, start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            self._stderr.close()
            raise SaapError("ssh is not installed here: install OpenSSH's client (openssh-client)") from None

    def send(self, data: bytes | memoryview) -> bool:
        """Write to the command's input. False when the command has ended; `messages` then says why."""
        assert self._process.stdin
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (BrokenPipeError, ConnectionError):
            return False
        return True

    def end_input(self) -> None:
        """Close the command's input."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self._process.stdin.close()

    def messages(self) -> Iterator[dict[str, Any]]:
        """The command's messages, until it ends.

        Raises Unreachable when the connection was cut, SaapError for errors that ssh or the board reports.
        """
        assert self._process.stdout
        heard = False
        for line in self._process.stdout:
            text = line.decode(errors="replace")
            before, mark, body = text.partition(PREFIX)
            self.noise = _printable(before) or self.noise
            if not mark or not text.endswith("\n"):
                continue
            try:
                message: dict[str, Any] = json.JSONDecoder().raw_decode(body)[0]
            except ValueError:
                raise SaapError(f"'{self._ssh.board}' sent what is no message: {_printable(text)[:80]!r}") from None
            if "error" in message:
                raise SaapError(f"on '{self._ssh.board}': {message['error']}")
            heard = True
            yield message
        code = self._process.wait()
        if code == 255 and heard:  # stderr may hold what a login script printed, not the reason
            raise Unreachable(f"no connection to '{self._ssh.board}': it was cut")
        if code == 255:  # ssh's own code, which no command of client.py has
            raise self._ssh.unreachable(self._complaints())
        if code:
            last = (self._complaints().strip().splitlines() or ["no reason given"])[-1]
            raise SaapError(f"on '{self._ssh.board}': a command ended with exit code {code}: {last[:300]}")

    def _complaints(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.end_input()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._stderr.close()


def _printable(text: str) -> str:
    """The printable part of a line, without escape sequences."""
    plain = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)", "", text)
    return "".join(letter for letter in plain if letter.isprintable()).strip()
