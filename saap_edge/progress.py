"""How far long work is: a bar where there is a terminal, a plain line now and then where there is none (a log, nohup).

A stage opens one bar for all it does, and its parts open bars inside it: the inner bar is shown while it lasts. Lines
come FIRST seconds after the outer bar began, then at doubling intervals up to LONGEST. Work that ends before the first
line prints nothing. The lines come from a thread of their own, which shows that work which does not advance is alive.
Needs no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Display
from rich.text import Text

__all__ = [
    "FIRST", "LONGEST", "Advance", "Bar", "Bars", "Listener", "Progress", "duration", "intervals", "no_bar",
    "progress_of",
]  # fmt: skip

FIRST, LONGEST = 5.0, 60.0
RATE_SECONDS = 600.0  # the time left follows the speed of the last ten minutes: parts of a stage differ

# advance(steps, note=""): so many more steps are done; the note says how it goes.
Advance = Callable[..., None]


class Bar(Protocol):
    """bar(what, total): a context manager. Its value is called with a number of steps when these are done. `total` is
    the number of all steps; None: not known."""

    def __call__(self, what: str, total: float | None, /) -> AbstractContextManager[Advance]: ...


@contextmanager
def no_bar(what: str, total: float | None) -> Iterator[Advance]:
    """A bar that shows nothing."""
    yield lambda steps, note="": None


class Progress:
    """What a caller hears of long work. This class keeps silent: override the methods that you want to hear.

    Examples:
        >>> import saap_edge as se
        >>> class Loud(se.Progress):
        ...     def note(self, text):
        ...         print(text)
        >>> Loud().note("the tokenizer was corrected")
        the tokenizer was corrected
    """

    def bar(self, what: str, total: float | None) -> AbstractContextManager[Advance]:
        """Work begins. Returns a context manager, as a `Bar` does."""
        return no_bar(what, total)

    def note(self, text: str) -> None:
        """Something was corrected, or will differ from what one might expect."""

    def say(self, text: str) -> None:
        """Something happens that needs no action, as a connection that is tried again."""

    def ahead(self, lines: list[str]) -> None:
        """A run is about to begin: lines on what it will do, with time and memory."""

    def stage(self, result: Any) -> None:
        """A stage is done; `result` has `name`, `folder`, `cached` and `seconds`."""


class _Called(Progress):
    """Calls a function at every step."""

    def __init__(self, call: Callable[[str, float, float | None], object]) -> None:
        self._call = call

    @contextmanager
    def bar(self, what: str, total: float | None) -> Iterator[Advance]:
        done = 0.0
        self._call(what, done, total)

        def advance(steps: float, note: str = "") -> None:
            nonlocal done
            done += steps
            self._call(what, done, total)

        yield advance


# A function is called with (what, steps done, steps in all or None).
Listener = Progress | Callable[[str, float, float | None], object] | None


def progress_of(listener: Listener) -> Progress:
    """The `Progress` for what a caller gave: itself, one that calls a function, or a silent one for None."""
    if listener is None:
        return Progress()
    return listener if isinstance(listener, Progress) else _Called(listener)


def intervals() -> Iterator[float]:
    """Seconds from line to line.

    >>> from itertools import islice
    >>> list(islice(intervals(), 6))
    [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]
    """
    seconds = FIRST
    while True:
        yield seconds
        seconds = min(2 * seconds, LONGEST)


class Bars:
    """Shows on `console` what is going on. `waits` gives the seconds from line to line, `clock` the time in seconds."""

    def __init__(
        self, console: Console, waits: Callable[[], Iterator[float]] = intervals,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.waits = waits
        self._console, self._clock = console, clock
        self._progress: Display | None = None
        self._open: list[TaskID] = []
        self._told: object = None

    @contextmanager
    def bar(self, what: str, total: float | None) -> Iterator[Advance]:
        """A `Bar`."""
        with self._shown() as progress:
            if self._open:
                progress.update(self._open[-1], visible=False)
            task = progress.add_task(what, total=total)
            self._open.append(task)

            def advance(steps: float, note: str = "") -> None:
                progress.update(task, advance=steps, description=f"{what} ({note})" if note else what)

            try:
                yield advance
            finally:
                self._open.pop()
                progress.remove_task(task)
                if self._open:
                    progress.update(self._open[-1], visible=True)

    @contextmanager
    def _shown(self) -> Iterator[Display]:
        """The display, which the outermost bar opens and closes."""
        if self._progress is not None:
            yield self._progress
            return
        # FORCE_COLOR, which CI systems set, makes any log a terminal to rich: a bar would be redrawn into it.
        drawn = self._console.is_interactive and self._console.file.isatty()
        self._progress = Display(
            TextColumn("  {task.description}", markup=False), BarColumn(), _Count(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=self._console, transient=True, disable=not drawn,
            get_time=self._clock, speed_estimate_period=RATE_SECONDS,
        )  # fmt: skip
        try:
            with self._progress if drawn else self._lines():
                yield self._progress
        finally:
            self._progress = None

    @contextmanager
    def _lines(self) -> Iterator[None]:
        ended = threading.Event()
        teller = threading.Thread(target=self._tell, args=(ended,), name="saap-edge progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()

    def _tell(self, ended: threading.Event) -> None:
        for seconds in self.waits():
            if ended.wait(seconds):
                return
            line = self.line()
            if line and not ended.is_set():
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def line(self) -> str | None:
        """What is going on, in words; None where no bar is open."""
        shown = {task.id: task for task in self._progress.tasks} if self._progress else {}
        task = next((shown[number] for number in self._open[::-1] if number in shown), None)
        if task is None:
            return None
        now = (task.id, task.completed, task.description)
        moved, self._told = now != self._told, now
        return f"  {_words(task, moved)}"


class _Count(MofNCompleteColumn):
    """Steps done, of how many; nothing where that is not known."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


def _words(task: Task, moved: bool) -> str:
    parts = [duration(task.elapsed or 0)]
    left = task.time_remaining
    if left:
        parts.append(f"about {duration(left)} left")
    if not moved or task.total is None:
        parts.append("still working")
    if task.total is None:
        return f"{task.description}: {', '.join(parts)}"
    share = f"{int(task.completed)} of {int(task.total)} ({int(task.percentage)} %)"
    return f"{task.description}: {share}, {', '.join(parts)}"


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(45), duration(700), duration(9000)
    ('45 s', '12 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
