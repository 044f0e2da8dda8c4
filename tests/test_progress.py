"""Long work shows how far it is, with a terminal and without."""

import contextlib
import io
import itertools
import os
import re
import threading

import pytest
from rich.console import Console

from saap_edge.progress import FIRST, LONGEST, Bars, duration, intervals


class Clock:
    """A time that stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Log(io.StringIO):
    """A file that is no terminal and can be waited for."""

    def __init__(self):
        super().__init__()
        self.lines = threading.Semaphore(0)

    def write(self, text):
        for _ in range(text.count("\n")):
            self.lines.release()
        return super().write(text)

    def wait(self, lines):
        for _ in range(lines):
            assert self.lines.acquire(timeout=60), "no line came"


def logged(waits=lambda: itertools.repeat(0.001), clock=None, **options):
    log = Log()
    console = Console(file=log, width=120, **options)
    return log, Bars(console, waits, clock or Clock())


def test_a_line_says_share_done_time_and_time_left():
    clock = Clock()
    _, bars = logged(lambda: iter(()), clock)
    assert bars.line() is None
    with bars.bar("plan", 480) as advance:
        clock.now = 5.0
        assert bars.line() == "  plan: 0 of 480 (0 %), 5 s"
        clock.now = 60.0
        advance(12)  # the time until the first step holds what is done once: it tells no speed
        assert bars.line() == "  plan: 12 of 480 (2 %), 60 s"
        clock.now = 120.0
        advance(6, "search")
        assert bars.line() == "  plan (search): 18 of 480 (3 %), 2 min, about 77 min left"
        clock.now = 180.0
        assert bars.line() == "  plan (search): 18 of 480 (3 %), 3 min, about 77 min left, still working"
        clock.now = 181.0
        advance(462)
        assert bars.line() == "  plan: 480 of 480 (100 %), 3 min"


def test_work_of_unknown_length_is_alive():
    clock = Clock()
    _, bars = logged(lambda: iter(()), clock)
    with bars.bar("checking", None):
        clock.now = 200.0
        assert bars.line() == "  checking: 3 min, still working"


def test_a_part_speaks_for_the_whole_while_it_lasts():
    _, bars = logged(lambda: iter(()))
    with bars.bar("score", None):
        assert bars.line().startswith("  score: ")
        with bars.bar("score: batches", 4) as advance:
            advance(1)
            assert bars.line().startswith("  score: batches: 1 of 4 (25 %)")
        assert bars.line().startswith("  score: ")
    assert bars.line() is None
    with bars.bar("bank", 2):
        assert bars.line() == "  bank: 0 of 2 (0 %), 0 s"


def test_lines_come_by_themselves_and_end_with_the_work():
    log, bars = logged()
    with bars.bar("[red]plan[/]", 2) as advance:
        log.wait(1)
        advance(1)
        log.wait(4)  # nothing advances any more
    told = log.getvalue()
    assert "[red]plan[/]: 0 of 2" in told and "1 of 2 (50 %), 0 s, still working\n" in told
    with pytest.raises(ZeroDivisionError), bars.bar("bank", 2):
        log.wait(1)
        raise ZeroDivisionError
    assert not [thread for thread in threading.enumerate() if thread.name == "saap-edge progress"]


def test_short_work_prints_nothing_and_long_work_no_flood():
    log, bars = logged(intervals)
    with bars.bar("gate", 1) as advance:
        advance(1)
    assert log.getvalue() == ""
    seconds = list(itertools.islice(intervals(), 50))
    assert seconds[:6] == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, LONGEST, LONGEST]
    hour = sum(1 for at in itertools.accumulate(itertools.islice(intervals(), 100)) if at <= 3600)
    assert 30 < hour < 70


def test_a_helper_of_a_launch_is_silent():
    log, bars = logged(quiet=True)
    with bars.bar("recover", 2) as advance:
        advance(1)
        threading.Event().wait(0.05)  # some fifty lines
    assert log.getvalue() == ""


def test_a_log_gets_lines_even_where_colour_is_forced():
    """FORCE_COLOR is set by CI systems, whose logs cannot be redrawn."""
    log, bars = logged(force_terminal=True, color_system="standard")
    with bars.bar("score", 2):
        log.wait(3)
    assert set(re.sub(r"[^\x00-\x1f]", "", log.getvalue())) == {"\n"}


def read_all(descriptor, parts):
    with contextlib.suppress(OSError):  # the terminal is closed
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)


def test_a_terminal_gets_a_bar_and_no_lines():
    master, slave = os.openpty()
    parts: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(master, parts))
    reader.start()
    with os.fdopen(slave, "w") as terminal:
        bars = Bars(Console(file=terminal, width=120, force_terminal=True), lambda: itertools.repeat(0.001))
        with bars.bar("score", None), bars.bar("score: batches", 4) as advance:
            advance(3)
    reader.join(60)
    os.close(master)
    shown = b"".join(parts).decode()
    assert "score: batches" in shown and "/4" in shown and "\x1b[" in shown
    assert "still working" not in shown and "of 4" not in shown


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (2.5 * 3600, "2.5 h")]
)
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
