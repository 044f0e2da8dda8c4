"""Decoding for minutes: the figures from blocks and states that are known, and a short run of a real artifact."""

import itertools
import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import write_gguf
from saap_edge.gating import Budget, judge
from saap_edge.measuring.conditions import BenchConditions, Subject
from saap_edge.measuring.sustained import LEAST, Block, State, _decode, bench_sustained, sustained_of
from saap_edge.progress import no_bar
from saap_edge.report.bench import render_bench
from tests.conftest import tiny_model, write_folder

MINUTE = 60.0


def blocks_of(rates, seconds=MINUTE):
    """Blocks of equal length over the time."""
    length = seconds / len(rates)
    return [Block((i + 0.5) * length, 1 / rate, 2 / rate, 0.9) for i, rate in enumerate(rates)]


def states_of(count=60, seconds=MINUTE, **series):
    told = ({name: values[i * len(values) // count] for name, values in series.items()} for i in range(count))
    return [State(i * seconds / count, each) for i, each in enumerate(told)]


def test_a_board_that_slows_down():
    """Clock and speed fall to 60 % in the middle, which is neither in the first nor in the last tenth."""
    found = sustained_of(
        blocks_of([10] * 50 + [6] * 50), states_of(mhz=[2400, 1440], temperature_c=[50, 70, 85]), MINUTE
    )
    assert (found.pct.low, found.pct.median, found.pct.high) == (pytest.approx(60),) * 3
    assert (found.first_tok_s.median, found.last_tok_s.median, found.blocks) == (
        pytest.approx(10),
        pytest.approx(6),
        100,
    )
    assert (found.first_mhz, found.last_mhz, found.throttled) == (2400, 1440, True)
    assert (found.first_temperature_c, found.last_temperature_c, found.hottest_c) == (50, 85, 85)
    assert found.part_s == pytest.approx(6)
    assert [row.decode_tok_s for row in found.course] == [pytest.approx(10)] * 15 + [pytest.approx(6)] * 15
    assert [row.mhz for row in found.course] == [2400] * 15 + [1440] * 15


@pytest.mark.parametrize(("series", "throttled"), [
    ({"mhz": [None]}, None), ({"mhz": [2100]}, None), ({"mhz": [2100, 2150, 2090]}, False),
    ({"mhz": [2100, 1900]}, True), ({"throttled": ["0x0"]}, False), ({"throttled": ["0x50000"]}, False),
    ({"throttled": ["0x0", "0x50005"]}, True), ({"throttled": ["0x4"]}, True), ({"throttled": ["0x1"]}, False),
    ({"throttled": [12]}, False), ({"throttled": [12, 13]}, True),
])  # fmt: skip
def test_whether_it_throttled(series, throttled):
    """By the board's word (a Pi's flags of now, a counter that moved) or its clock; one that never moves is none."""
    assert sustained_of(blocks_of([10] * 20), states_of(**series), MINUTE).throttled is throttled


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 1000), min_size=2 * LEAST, max_size=80), st.floats(1, 4000))
def test_the_interval_holds_the_figure_and_parts_do_not_overlap(rates, seconds):
    found = sustained_of(blocks_of(rates, seconds), [], seconds)
    assert found.pct.low <= found.pct.median <= found.pct.high
    assert found.part_s <= seconds / 2 and found.throttled is None and found.hottest_c is None
    tenth = max(LEAST, len([i for i in range(len(rates)) if (i + 0.5) / len(rates) <= 0.1]))
    assert found.first_tok_s.median == pytest.approx(np.median(rates[:tenth]))
    assert found.last_tok_s.median == pytest.approx(np.median(rates[-tenth:]))
    assert len(found.course) <= 30


@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_how_often_the_interval_misses(ratio):
    """Blocks with heavy tails: in at most 5 % of runs the truth is outside."""
    dice, missed, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        rates = 100 * np.exp(0.05 * dice.standard_t(2, 100))
        rates[50:] *= ratio
        pct = sustained_of(blocks_of(list(rates)), [], MINUTE).pct
        missed += not pct.low <= 100 * ratio <= pct.high
    assert missed <= 0.05 * runs


def test_too_few_rounds_are_refused():
    with pytest.raises(SaapError, match=r"13 rounds in 1 minutes are too few.*at least 14"):
        sustained_of(blocks_of([10] * 13), [], MINUTE)


def test_rounds_are_gathered_into_blocks():
    """The time is the clock's; steps and CPU time are those of the rounds."""
    told, steps = [], itertools.count()

    def once():
        return {"decode_s": [0.001 * (1 + next(steps) % 2), 0.004], "decode_cpu_s": [0.001, 0.001]}

    blocks = _decode(once, 0.3, 2, lambda seconds, rate: told.append((seconds, rate)))
    assert sum(seconds for seconds, _ in told) == pytest.approx(0.3, abs=0.01) and len(told) == len(blocks)
    assert all(0.001 <= block.step_s <= 0.004 and block.p95_s <= 0.004 for block in blocks)
    assert all(0.15 < block.cpu_share < 0.21 for block in blocks) and 0 < blocks[0].at < blocks[-1].at < 0.4


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sustained")
    summary = write_gguf(write_folder(tiny_model("llama"), folder / "model"), folder / "model.gguf", "f16")
    sizes = summary["projection_bytes"], summary["file_bytes"]
    return Subject("candidate gguf-f16", "candidate", "llama.cpp", "gguf-f16", folder / "model.gguf", *sizes, 1234, "m")


def test_a_real_run(subject):
    """Three seconds, with the board's answers by a script: its clock falls in the second half."""
    calls = []

    def sense():
        calls.append(time.monotonic())
        late = calls[-1] - calls[min(1, len(calls) - 1)] > 1.5  # the first is before the artifact is loaded
        return {"mhz": 1000 if late else 2000, "temperature_c": 60.0, "throttled": None}

    document = bench_sustained(subject, BenchConditions(1, 8, 4, 3), 0.05, no_bar, sense)
    json.dumps(document.as_dict(), allow_nan=False)
    metrics, [entry] = document.artifacts[0].metrics, document.artifacts
    found = metrics.sustained
    assert found.seconds == pytest.approx(3) and found.throttled is True and found.blocks == document.conditions.rounds
    assert metrics.sustained_pct == found.pct and metrics.sustained_tok_s == found.last_tok_s
    assert len(metrics.decode_tok_s.samples) == found.blocks >= 2 * LEAST and metrics.decode_tok_s.median > 0
    assert 0 < metrics.cpu_share < 1.5 and metrics.kv_bytes_per_token == 3 * 4 * 2 * 16 * 2 and not document.comparisons
    assert document.conditions.minutes == 0.05 and document.machine.after.mhz == 1000 and entry.runtime.own_loop
    lines = [part for part in render_bench(document) if isinstance(part, str)]
    assert any("the board throttled" in line for line in lines) and any("of the first" in line for line in lines)


def document_with(pct):
    low, value, high = pct
    summary = {"median": value, "low": low, "high": high}
    part = {"median": 10, "low": 10, "high": 10}
    sustained = {
        "seconds": 60, "blocks": 20, "part_s": 6, "pct": summary, "first_tok_s": part, "last_tok_s": part,
    }  # fmt: skip
    metrics = {"sustained": sustained, "sustained_pct": summary, "sustained_tok_s": part}
    return {
        "schema": 2, "machine": {"cpu": "A CPU", "cores": 2}, "comparisons": [],
        "conditions": {"prompt_tokens": 8, "decode_tokens": 4},
        "artifacts": [{"name": "a", "role": "candidate", "format": "gguf-q4_0", "metrics": metrics}],
    }  # fmt: skip


@pytest.mark.parametrize(("pct", "on_target", "word"), [
    ((96, 98, 99), True, "pass"), ((60, 62, 65), True, "fail"), ((85, 91, 95), True, "inconclusive"),
    ((96, 98, 99), False, "inconclusive"), ((96, 98, 99), None, "inconclusive"),
])  # fmt: skip
def test_the_gate_judges_it_on_the_target_only(pct, on_target, word):
    budget = Budget.model_validate({"limits": {"sustained_pct": {"min": 90}}})
    [verdict] = judge(document_with(pct), budget, on_target)
    assert verdict.verdict == word and verdict.value == pct[1]


def test_the_gate_says_that_it_was_not_measured():
    document = document_with((96, 98, 99))
    document["artifacts"][0]["metrics"] = {}
    limits = {"sustained_pct": {"min": 90}, "sustained_tok_s": {"min": 5}}
    for verdict in judge(document, Budget.model_validate({"limits": limits}), True):
        assert verdict.verdict == "inconclusive" and "--minutes 30" in verdict.reason
