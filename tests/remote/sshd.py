"""A board on loopback: a real sshd with keys of its own, and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


class Sshd:
    """sshd as the user who runs the tests. `group`: control groups to put it, and what it starts, into."""

    def __init__(self, folder: Path, groups: tuple[Path, ...] = ()) -> None:
        self.folder, self.port = folder, free_port()
        host, user = make_key(folder / "host_key"), make_key(folder / "user_key")
        shutil.copyfile(f"{user}.pub", folder / "authorized_keys")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its rights to
        # SHLVL: bash then leaves out .bashrc, whatever the login has there.
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {host}\nAuthorizedKeysFile {folder}/authorized_keys\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"PermitRootLogin prohibit-password\nSetEnv PYTHONPATH={ROOT} OMP_NUM_THREADS=1 SHLVL=1\n"
        )
        assert SSHD
        command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
        join = "".join(f"echo $$ > {group}/cgroup.procs && " for group in groups)
        with (folder / "sshd.log").open("wb") as log:
            self._process = subprocess.Popen(["sh", "-c", f'{join}exec "$@"', "sh", *command], stderr=log)
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((folder / "sshd.log").read_text())

    def config(self, port: int | None = None, **changes: str) -> Path:
        """A new file for `ssh -F`, whose host "board" is this sshd, or what is at `port`."""
        port = port or self.port
        known = self.folder / f"known_hosts-{port}"
        known.write_text(f"[127.0.0.1]:{port} {(self.folder / 'host_key.pub').read_text()}")
        values = {
            "HostName": "127.0.0.1", "Port": str(port), "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "user_key"), "IdentitiesOnly": "yes", "IdentityAgent": "none",
            "UserKnownHostsFile": str(known), "GlobalKnownHostsFile": "/dev/null",
        } | changes  # fmt: skip
        path = self.folder / f"ssh_config-{len(list(self.folder.glob('ssh_config-*')))}"
        path.write_text("Host board\n" + "".join(f"  {name} {value}\n" for name, value in values.items()))
        return path

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Wire:
    """Passes connections on to a port.

    `cuts`: bytes from the client after which the first, second... connection is cut (None: never), or, where it is
    given, `at_cut` is called. `carried` are the bytes of every connection.
    """

    def __init__(self, port: int, cuts: list[int | None], at_cut: Callable[[], None] | None = None) -> None:
        self._target, self._cuts, self._at_cut = port, list(cuts), at_cut
        self.carried: list[int] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            number = len(self.carried)
            self.carried.append(0)
            self._open += [client, server]
            threading.Thread(target=self._pass, args=(client, server, number), daemon=True).start()
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket, number: int) -> None:
        limit = self._cuts[number] if number < len(self._cuts) else None
        try:
            while data := client.recv(2**14):
                if limit is not None and self.carried[number] + len(data) > limit:
                    if not self._at_cut:
                        break
                    self._at_cut()
                    limit = None
                server.sendall(data)
                self.carried[number] += len(data)
        except OSError:
            pass
        _shut(client, server)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(2**14):
                client.sendall(data)
        except OSError:
            pass
        _shut(client, server)

    def cut(self) -> None:
        """Cut what is open now."""
        _shut(*self._open)

    def close(self) -> None:
        """Cut what is open, refuse what comes."""
        _shut(self._listener)  # shut first: a thread that waits in accept would take one more
        self.cut()


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
