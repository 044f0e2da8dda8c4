"""Seeing whether a process asks for the network: a library preloaded into it notes every socket and every name."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

__all__ = ["Watched", "bare_environment"]

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what, const char *of) {
    char line[300];
    const char *path = getenv("NETWORK_LOG");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    int length = snprintf(line, sizeof line, "%s %.200s\n", what, of ? of : "");
    if (file >= 0) { if (write(file, line, length) < 0) abort(); close(file); }
}

int socket(int domain, int type, int protocol) {
    note("socket", domain == AF_UNIX ? "unix" : domain == AF_NETLINK ? "netlink" : "internet");
    return ((int (*)(int, int, int))dlsym(RTLD_NEXT, "socket"))(domain, type, protocol);
}

int connect(int file, const struct sockaddr *address, socklen_t length) {
    note("connect", address->sa_family == AF_UNIX ? "unix" : "internet");
    return ((int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect"))(file, address, length);
}

/* The C library opens its own sockets to look a name up, past the function above. */
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    note("name", name);
    return ((int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))
            dlsym(RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
}
"""


def bare_environment(**changes: str) -> dict[str, str]:
    """What a person's shell on a board has, and neither our switch nor what says that this is CI."""
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    return {name: os.environ[name] for name in kept if name in os.environ} | changes


@dataclass
class Watched:
    """A home folder of its own and a log of the network, for processes started with `environment`."""

    root: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        if shutil.which("gcc") is None:
            pytest.skip("needs gcc")
        source, library = self.root / "watch.c", self.root / "watch.so"
        source.write_text(SOURCE)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        (self.root / "home").mkdir()
        self.environment = bare_environment(
            HOME=str(self.root / "home"), LD_PRELOAD=str(library), NETWORK_LOG=str(self.root / "log")
        )

    def network(self) -> list[str]:
        """What was asked for since the last look."""
        log = self.root / "log"
        lines = log.read_text().splitlines() if log.is_file() else []
        log.unlink(missing_ok=True)
        return lines

    def in_home(self) -> list[str]:
        """Names of files that were left in the home folder."""
        return sorted(path.name for path in (self.root / "home").rglob("*") if path.is_file())
