"""Which build of its runtime runs an artifact: this environment's, another environment's, or a program by its path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from saap_edge.engines.environment import check_python, find_python
from saap_edge.engines.options import AS_IT_IS, EngineOptions
from saap_edge.engines.registry import engine_named
from saap_edge.engines.worker import Worker
from saap_edge.errors import SaapError
from saap_edge.machine.adb import Phone
from saap_edge.registry import resolve

__all__ = ["Build", "Runner", "build_of"]


class Runner(Protocol):
    """One artifact in one build, ready to be timed. `Worker` is one; the other drives a program (llama_bench.py).

    `loaded` describes it, as `Worker.loaded` does. Its `seconds` are None where loading cannot be told from running:
    then memory is not known either.
    """

    @property
    def loaded(self) -> dict[str, Any]: ...
    def time(self, tokens: list[int], decode_tokens: int) -> dict[str, Any]: ...
    def memory(self) -> dict[str, int | None]: ...
    def pin(self, cpus: set[int]) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Runner: ...
    def __exit__(self, *_: Any) -> None: ...


@dataclass(frozen=True)
class Build:
    """A build of a runtime; as it stands, this environment's.

    Attributes:
        python: interpreter of another environment, in which the engine's child runs.
        program: the runtime's own benchmark program, which runs in place of the engine.
        phone: where the program runs; None: here.
    """

    python: Path | None = None
    program: Path | None = None
    phone: Phone | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether it is not this environment's."""
        return bool(self.python or self.program)

    def open(
        self, engine: str, path: Path, threads: int, context: int, options: EngineOptions = AS_IT_IS
    ) -> Runner:  # fmt: skip
        """Open an artifact. Raises SaapError where it does not run, or not with these options."""
        if self.program:
            made = resolve(engine_named(engine).benchmark or "")
            runner: Runner = made(path, threads, self.program, options, self.phone)
            return runner
        return self.worker(engine, path, threads, context, options)

    def worker(
        self, engine: str, path: Path, threads: int, context: int, options: EngineOptions = AS_IT_IS
    ) -> Worker:  # fmt: skip
        """Open an artifact in the engine's child. Raises SaapError where it does not run."""
        try:
            return Worker(engine, path, threads, context, options, self.python)
        except SaapError as error:
            raise (SaapError(f"in '{self.python}': {error}") if self.python else error) from None


def build_of(place: Mapping[str, str], engine: str, phone: Phone | None = None) -> Build:
    """The build that a side of a comparison names, checked: {"python": environment} or {"program": its path}, or {}.

    A program runs on the phone, where there is one.

    Raises SaapError where the engine's child cannot run in that environment, or the program is not the engine's.
    """
    record = engine_named(engine)
    if python := place.get("python"):
        found = find_python(python)
        check_python(found, record)
        return Build(python=found)
    if program := place.get("program"):
        if record.benchmark is None:
            raise SaapError(f"{record.name} has no benchmark program that saap-edge knows: --llama-bench is for GGUF")
        return Build(program=resolve(record.benchmark).check(program, phone), phone=phone)
    return Build()
