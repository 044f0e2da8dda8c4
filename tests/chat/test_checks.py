"""Checks accept what follows and refuse what does not; the package's instructions can be followed; files are read line
by line; intervals of shares hold what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from saap_edge.chat.checks import CHECKS
from saap_edge.chat.figures import repeats
from saap_edge.chat.instructions import ANSWER_TOKENS, Instruction, read_instructions
from saap_edge.chat.shares import paired_difference, share, wilson
from saap_edge.errors import SaapError
from saap_edge.measuring.settings import BenchSettings

FOLLOWED = json.loads((Path(__file__).parent / "followed.json").read_text(encoding="utf-8"))
OWN = read_instructions()

# check, its arguments, answers that it accepts, answers that it refuses
CASES = [
    ("bullets", {"count": 2}, ["- a\n- b", "Here:\n\n* a\n  • b"],
     ["", "a\nb", "-a\n-b", "- a\n- b\n- c", "1. a\n2. b"]),
    ("numbered", {"count": 2}, ["1. a\n2. b", "So:\n1) a\n\n2) b"],
     ["", "1. a", "2. b\n1. a", "1. a\n2. b\n3. c", "1.a\n2.b"]),
    ("uppercase", {}, ["ÄPFEL 3"], ["", "3!", "Apfel", "APfEL"]),
    ("lowercase", {}, ["äpfel 3"], ["", "3!", "Apfel"]),
    ("title", {}, ["<<A b>>", "x <<T>> y"], ["", "<<>>", "<< >>", "<A>", "<<a\nb>>"]),
    ("words", {"least": 2, "most": 3}, ["a b", "a\nb c"], ["", "a", "a b c d"]),
    ("sentences", {"least": 2, "most": 2}, ["A. B!", 'He said "no." Then he went', "A 1.5? B"],
     ["", "A.", "A. B. C.", "..."]),
    ("paragraphs", {"count": 2}, ["a\n\nb", "a\nb\n \n\nc"], ["", "a\nb", "a\n\nb\n\nc"]),
    ("include", {"words": ["red sea", "oak"]}, ["An OAK by the Red Sea."], ["", "oak", "oaks by the red sea"]),
    ("exclude", {"words": ["red sea", "oak"]}, ["oaks", "a red one"], ["", "Oak!", "the Red sea"]),
    ("times", {"word": "tea", "least": 2}, ["Tea, tea", "tea tea tea"], ["", "tea", "team tea"]),
    ("begins", {"text": "Dear"}, ["Dear me"], ["", "dear me", "Oh Dear"]),
    ("ends", {"text": "end."}, ["The end."], ["", "The end", "end. no"]),
    ("no_commas", {}, ["a; b"], ["", "a, b"]),
    ("quoted", {}, ['"a"'], ["", '"', '""', '"a', 'a "b"', '"a" and "b"', "'a'"]),
    ("one_of", {"choices": ["yes", "no."]}, ["yes", "yes.", "no"], ["", "Yes", "yes no", "maybe"]),
    ("json_keys", {"keys": ["a", "b"]}, ['{"b": [1], "a": null}', '```\n{"a": 1, "b": 2}\n```'],
     ["", "[]", '{"a": 1}', '{"a": 1, "b": 2, "c": 3}', '{"a": 1, "b": 2',
      'It is {"a": 1, "b": 2}', "{'a': 1, 'b': 2}"]),
    ("tool_call", {"name": "t", "arguments": ["x"]},
     ['{"name": "t", "arguments": {"x": 1}}', '[{"name": "t", "parameters": {"x": 1}}]',
      'ok <tool_call>\n{"name": "t", "arguments": {"x": 1}}\n</tool_call>'],
     ["", "t(x=1)", '{"name": "u", "arguments": {"x": 1}}', '{"name": "t", "arguments": {}}',
      '{"name": "t", "arguments": "x"}',
      '[{"name": "t", "arguments": {"x": 1}}, {"name": "t", "arguments": {"x": 2}}]']),
]  # fmt: skip


def test_every_check_has_cases():
    assert {case[0] for case in CASES} == CHECKS.keys()


@pytest.mark.parametrize(("name", "arguments", "accepted", "refused"), CASES)
def test_checks_accept_and_refuse(name, arguments, accepted, refused):
    assert [answer for answer in accepted if not CHECKS[name](answer, **arguments)] == []
    assert [answer for answer in refused if CHECKS[name](answer, **arguments)] == []


@given(st.text(), st.sampled_from(CASES))
def test_no_answer_breaks_a_check(answer, case):
    assert CHECKS[case[0]](answer, **case[1]) in (True, False)


def test_the_own_instructions_can_be_followed_and_are_not_followed_by_chance():
    assert {row.id for row in OWN.rows} == FOLLOWED.keys()
    assert [row.id for row in OWN.rows if not all(row.followed(FOLLOWED[row.id], ""))] == []
    idle = "I am a language model, and I cannot help with that. " * 20
    easy = [row.id for row in OWN.rows if all(row.followed(idle, ""))]
    assert len(easy) <= 0.15 * len(OWN.rows), easy
    assert not any(all(row.followed("", "")) for row in OWN.rows)


def test_the_own_instructions_are_a_fair_part_at_any_length():
    kinds = [row.id.partition("-")[0] for row in OWN.rows]
    for first in (20, 40, 60):
        for kind in set(kinds):
            assert abs(kinds[:first].count(kind) - kinds.count(kind) * first / len(kinds)) <= 1.01, (first, kind)
    assert BenchSettings(chat=len(kinds)).chat == len(kinds) == 80
    longest = max(len(text) for text in FOLLOWED.values())
    assert longest / 2 < ANSWER_TOKENS, "tokens hold two letters at least"
    assert len(read_instructions(limit=7).rows) == 7 and read_instructions(limit=7).sha256 == OWN.sha256


BAD = [
    ("", "have no rows"),
    ("[1]", "line 1: the line: "),
    ("{", "line 1: not JSON"),
    ({"prompt": "p", "checks": [{"check": "title"}]}, "line 1: id: Field required"),
    ({"id": "a", "checks": [{"check": "title"}]}, "line 1: prompt: Field required"),
    ({"id": "a", "prompt": "p", "checks": []}, "line 1: checks: "),
    ({"id": "a", "prompt": "p", "checks": [{"check": "title"}], "more": 1}, "line 1: more: Extra inputs"),
    ({"id": "a", "prompt": "p", "checks": [{"check": "titel"}]},
     'line 1: check 1 is "titel": known are begins, bullets'),
    ({"id": "a", "prompt": "p", "checks": [{"check": "bullets"}]},
     r"line 1: check 1 \(bullets\): count: Field required"),
    ({"id": "a", "prompt": "p", "checks": [{"check": "bullets", "count": "3"}]},
     "count: Input should be a valid integer"),
    ({"id": "a", "prompt": "p", "checks": [{"check": "words", "most": 0}]}, "most: Input should be greater"),
    ({"id": "a", "prompt": "p", "checks": [{"check": "title", "tag": "x"}]}, "tag: Extra inputs"),
    ({"id": "a", "prompt": "p", "checks": [{"check": "tool_call", "name": "t", "arguments": ["x"], "tag": ""}]},
     "tag: Ext"),
    ({"id": "a", "prompt": "p", "checks": [{"check": "tool_call", "name": "t", "arguments": ["x"]}]},
     "tools have no 't'"),
    ({"id": "a", "prompt": "p", "checks": [{"check": "title"}], "tools": [{"type": "x"}]}, r"tools\.0\.type: "),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_files_are_checked_line_by_line(row, reason, tmp_path):
    (tmp_path / "own.jsonl").write_text(row if isinstance(row, str) else json.dumps(row))
    with pytest.raises(SaapError, match=reason) as caught:
        read_instructions(tmp_path / "own.jsonl")
    assert "own.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SaapError, match=r"cannot read the instructions .*No such file"):
        read_instructions(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(SaapError, match="not UTF-8"):
        read_instructions(tmp_path / "latin.jsonl")
    row = json.dumps({"id": "a", "prompt": "p", "checks": [{"check": "title"}]})
    (tmp_path / "twice.jsonl").write_text(f"{row}\n\n{row}\n")
    with pytest.raises(SaapError, match="line 3: id 'a' is there twice"):
        read_instructions(tmp_path / "twice.jsonl")


def test_a_call_stands_in_the_tag_of_the_template():
    [row] = [row for row in OWN.rows if row.id == "tool-1"]
    call = FOLLOWED["tool-1"]
    assert row.followed(call, "") == [True] and row.followed(call, "<tool_call>") == [False]
    assert row.followed(f" <tool_call>\n{call}\n</tool_call>\n", "<tool_call>") == [True]
    assert isinstance(row, Instruction) and row.tool_list[0]["function"]["name"] == "get_weather"


@pytest.mark.parametrize(("text", "expected"), [
    ("no " * 6, True), ("no " * 5, False), ("a b c d x a b c d y A b c D", True), ("a b c d " * 2, False), ("", False),
])  # fmt: skip
def test_what_repeats_itself(text, expected):
    assert repeats(text) is expected


@settings(deadline=None)  # scipy is slow the first time
@given(st.integers(0, 80), st.integers(1, 80))
def test_wilson_is_that_of_scipy(count, n):
    count = min(count, n)
    found = binomtest(count, n).proportion_ci(method="wilson")
    assert wilson(count, n) == pytest.approx((found.low, found.high), abs=1e-9)
    cases = [True] * count + [False] * (n - count)
    assert share(cases)["stderr"] == pytest.approx(np.sqrt(count / n * (1 - count / n) / n))


@pytest.mark.parametrize("n", [40, 80])
@pytest.mark.parametrize(
    ("lost", "won"), [(0.0, 0.0), (0.05, 0.0), (0.1, 0.0), (0.2, 0.0), (0.1, 0.05), (0.3, 0.3), (0.02, 0.2)]
)
def test_the_paired_interval_holds_the_truth(n, lost, won):
    """By simulation: it misses in about 5 % of cases at most. Whole numbers let no interval do so exactly."""
    cells = np.random.default_rng(0).multinomial(n, [lost, won, 1 - lost - won], size=4000)
    missed = 0
    for only_before, only_after, _ in cells:
        before = [True] * only_before + [False] * (n - only_before)
        after = [False] * (n - only_after) + [True] * only_after
        _, low, high = paired_difference(before, after)
        missed += not low <= lost - won <= high
    assert missed / 4000 <= 0.06


def test_shares_without_cases():
    assert share([])["share"] is None
    for call in (lambda: wilson(0, 0), lambda: paired_difference([], [])):
        with pytest.raises(ValueError, match="needs a case"):
            call()
