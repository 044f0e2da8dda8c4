"""Counting instructions, with whatever counts here: few virtual machines let perf, valgrind does anywhere."""

import shutil

import pytest

from saap_edge.engines.environment import child_command
from saap_edge.measuring.conditions import BenchConditions, Subject
from saap_edge.measuring.instructions import _requests, count, find_counter, instructions_per_token

COUNTERS = [name for name in ("perf", "valgrind") if shutil.which(name)]


@pytest.mark.parametrize("counter", COUNTERS)
def test_twice_the_work_is_twice_the_instructions(counter):
    """perf may be there and count nothing: then it says so, and is not taken for a counter."""
    loop = "i=0; while [ $i -lt {} ]; do i=$((i+1)); done"
    idle, once, twice = (count(counter, ["sh", "-c", loop.format(turns)], "") for turns in (0, 2000, 4000))
    if idle is None:
        assert counter == "perf" and find_counter() != "perf"
        return
    assert once - idle > 2000 and twice - idle == pytest.approx(2 * (once - idle), rel=0.02)


@pytest.mark.skipif(not COUNTERS, reason="needs perf or valgrind")
def test_what_fails_has_no_count(tmp_path):
    assert count(COUNTERS[-1], ["false"], "") is None
    assert count("no-such-counter", ["true"], "") is None


def test_instructions_of_an_artifact(made):
    if find_counter() != "perf":
        pytest.skip("needs perf's counters: valgrind takes half a minute")
    subject = Subject("a", "candidate", "llama.cpp", "gguf-q4_0", made["gguf-q4_0"] / "model-q4_0.gguf", 1, 1)
    assert instructions_per_token(subject, BenchConditions(1, 4, 16, 3)) > 10_000
    gone = _requests(Subject("b", "dense", "llama.cpp", "gguf-q4_0", made["gguf-q4_0"] / "none.gguf", 1, 1), 4, 2)
    assert count("perf", child_command(), gone) is None
