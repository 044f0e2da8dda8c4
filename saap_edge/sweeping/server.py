"""A process that starts stages as processes of their own: `python -m saap_edge.sweeping.server`.

Importing torch takes longer than many a stage. This process does it once, computes nothing, and forks for every stage.
It speaks JSON lines. In: {"id", "job", "log"} starts a stage; the end of stdin ends all of them. Out, for a stage:
{"id", "bar": [what, total]} and {"id", "steps"} as it goes, then {"id", "seconds"} or {"id", "error", "code"}, with
"unexpected" where the log says more, and last {"id", "status"}, the wait status. A stage is the first process of a
group, which is ended as a whole.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.machine.quiet import quiet_libraries
from saap_edge.progress import Advance

__all__ = ["main"]

# What stages import, which each of them would wait for.
IMPORTED = (
    "saap_edge.sweeping.job", "saap_edge.gguf_input.folder", "saap_edge.pruning.planner", "saap_edge.recovery.run",
    "saap_edge.exporting.write", "saap_edge.exporting.gguf", "saap_edge.exporting.onnx", "saap_edge.evaluation.verify",
    "saap_edge.measuring.folders", "saap_edge.report.write", "saap_edge.report.figures", "saap_edge.report.html",
    "matplotlib.figure", "transformers.models.llama.modeling_llama",
)  # fmt: skip
TICK = 0.1  # seconds from look to look whether a stage has ended


def main() -> None:
    """Serve until stdin ends."""
    quiet_libraries()
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    # Nothing is computed here: threads of torch would not live on in a fork.
    for module in IMPORTED:
        importlib.import_module(module)
    from saap_edge.sweeping.job import identity

    identity()  # which reads the code of all stages, and is remembered
    gc.freeze()  # so that no stage looks through what is here, and copies it by that
    _Server(out).serve()


class _Server:
    def __init__(self, out: int) -> None:
        self._out = out
        self._stages: dict[int, str] = {}  # ids by process

    def serve(self) -> None:
        rest = b""
        try:
            while True:
                if select.select([0], [], [], TICK)[0]:
                    piece = os.read(0, 1 << 20)
                    if not piece:
                        return
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        self._start(json.loads(line))
                self._reap()
        finally:
            for process in self._stages:
                with suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
            for process in self._stages:
                os.waitpid(process, 0)

    def _start(self, request: dict[str, Any]) -> None:
        process = os.fork()
        if process:
            with suppress(OSError):  # the child does it, too: whoever is first
                os.setpgid(process, process)
            self._stages[process] = request["id"]
            return
        status = 1
        try:
            os.setpgid(0, 0)
            status = _child(request, self._out)
        finally:
            os._exit(status)  # nothing of the server is to be cleaned up twice

    def _reap(self) -> None:
        while self._stages:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            with suppress(ProcessLookupError):  # runtimes that it started and left
                os.killpg(process, signal.SIGKILL)
            _tell(self._out, self._stages.pop(process), status=status)


def _child(request: dict[str, Any], out: int) -> int:
    """Do a job in this process; its exit status."""
    from saap_edge.sweeping.job import do_job

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, copy in ((null, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, copy)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name = request["id"]
    try:
        seconds = do_job(request["job"], _Told(out, name).bar)
    except SaapError as error:
        _tell(out, name, error=" ".join(str(error).split()), code=error.exit_code)
    except MemoryError:
        _tell(out, name, error="out of memory", code=SaapError.exit_code)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (see '{Path(request['log']).name}')"
        _tell(out, name, error=said, code=SaapError.exit_code, unexpected=True)
    else:
        _tell(out, name, seconds=round(seconds, 2))
        return 0
    return 1


class _Told:
    """A bar that tells the server's reader, of the outermost bar with a known end only."""

    def __init__(self, out: int, name: str) -> None:
        self._out, self._name, self._open = out, name, False

    @contextmanager
    def bar(self, what: str, total: float | None) -> Iterator[Advance]:
        if total is None or self._open:
            yield lambda steps, note="": None
            return
        self._open, done, told = True, 0.0, 0.0
        _tell(self._out, self._name, bar=[what, total])

        def advance(steps: float, note: str = "") -> None:
            nonlocal done, told
            done += steps
            if done - told >= total / 100:  # a line for every hundredth is enough
                _tell(self._out, self._name, steps=done - told)
                told = done

        try:
            yield advance
        finally:
            self._open = False


def _tell(out: int, name: str, **what: Any) -> None:
    """One line in one piece, which lines of other processes do not break: shorter than a pipe takes at once."""
    line = json.dumps({"id": name, **what})
    if len(line) > select.PIPE_BUF - 1 and "error" in what:
        line = json.dumps({"id": name, **what, "error": what["error"][:1000]})
    with suppress(BrokenPipeError):  # who reads has gone: the server ends soon
        os.write(out, f"{line}\n".encode())


if __name__ == "__main__":
    main()
