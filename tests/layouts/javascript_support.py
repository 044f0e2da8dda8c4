"""Programs for JavaScript: node, its packages of a fixed lock in a cache folder, and a browser."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from saap_edge.layouts.npm import cache_folder

NODE = Path(__file__).parent / "node"
chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(chromium is None, reason="no Chromium here: .ci/run installs it")
# Without them a browser without network asks its maker's servers for this and that.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@cache
def modules() -> Path | str:
    """The folder with node_modules of the lock, installed once; or why there is none."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "no node and npm here: .ci/run installs them"
    lock = (NODE / "package-lock.json").read_bytes()
    folder = cache_folder().parent / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if (folder / "node_modules").is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(NODE / name, Path(scratch) / name)
        # No scripts: one of them fetches CUDA from elsewhere.
        done = subprocess.run([npm, "ci", "--ignore-scripts"], cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            return f"npm cannot install the packages of the lock: {done.stderr.strip()[:200]}"
        shutil.copytree(scratch, folder, symlinks=True)
    return folder


def node_folder() -> Path:
    """As `modules`; skips the test, saying why, where there is none."""
    found = modules()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@contextmanager
def served(folder: Path, handler: type[SimpleHTTPRequestHandler] = SimpleHTTPRequestHandler) -> Iterator[str]:
    """The address of a folder that a plain server of this machine serves."""

    class Silent(handler):  # type: ignore[misc, valid-type]
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(folder)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
