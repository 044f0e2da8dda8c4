"""Which documents are fit to learn from: the filters against counting by hand, on any text."""

import random

from hypothesis import given
from hypothesis import strategies as st

from saap_edge.writing.filters import GRAM, LEAST, LOOPING, RUN, SHARED, Seen, repetition, runs_of

IDS = st.lists(st.integers(0, 5), max_size=60)
FRESH = st.integers(LEAST, 200).map(lambda size: list(range(size)))


@given(IDS)
def test_repetition_counts_the_pieces_that_were_there_before(ids):
    before, again, count = [], 0, 0
    for start in range(len(ids) - GRAM + 1):
        piece = ids[start : start + GRAM]
        again, count = again + (piece in before), count + 1
        before.append(piece)
    assert abs(repetition(ids) - (again / count if count else 0)) < 1e-12


@given(FRESH, st.integers(2, 9))
def test_text_said_again_is_repetition_and_text_without_repeats_has_none(ids, times):
    assert repetition(ids) == 0
    assert repetition(ids * times) >= 1 - 1 / times - GRAM / len(ids * times)


@given(IDS)
def test_runs_are_those_of_a_window_that_slides(ids):
    found = runs_of(ids)
    joined = "".join(map(str, ids))
    assert all("".join(map(str, run)) in joined for run in found)
    assert len(found) <= max(1, len(ids) - RUN + 1) and all(len(run) == min(RUN, len(ids)) for run in found)


@given(FRESH)
def test_what_is_kept_is_never_kept_again(ids):
    seen = Seen()
    assert seen.refusal(ids) is None
    assert seen.refusal(ids) == "duplicate"


@given(st.integers(0, 1000), st.integers(30, 200), st.floats(0, 1))
def test_a_shared_part_is_a_near_duplicate_from_a_share_of_its_runs_on(seed, size, share):
    dice, seen = random.Random(seed), Seen()
    first = dice.sample(range(100_000), size)
    common = round(share * size)
    second = first[:common] + dice.sample(range(100_000, 200_000), size - common)
    seen.refusal(first)
    shared = max(0, common - RUN + 1) / (size - RUN + 1)
    expected = "duplicate" if common == size else "near duplicate" if shared > SHARED else None
    assert seen.refusal(second) == expected


def test_short_and_looping_documents_are_dropped_and_leave_nothing_behind():
    seen = Seen()
    short, looping = list(range(LEAST - 1)), [1, 2, 3] * 20
    assert seen.refusal(short) == "short" and repetition(looping) > LOOPING
    assert [seen.refusal(looping) for _ in range(2)] == ["repetition"] * 2
    assert seen.refusal(list(range(LEAST))) is None  # though the short one was its beginning
