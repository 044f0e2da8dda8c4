"""The search for a ratio: it finds the least that meets, whatever the prediction said, in few tries."""

from hypothesis import given
from hypothesis import strategies as st

from saap_edge.worth.next_ratio import STEP, least_met, next_try

MOST = 80
ratios = st.integers(0, MOST // STEP).map(lambda number: number * STEP)


@given(st.integers(0, 100), st.integers(-STEP, 100), ratios)
def test_the_least_ratio_that_meets_is_found(enough, too_much, first):
    """`enough`: pruned by as much it is fast enough; pruned by more than `too_much` it is too bad."""
    tries = {}
    while (ratio := next_try(tries, first, MOST)) is not None:
        assert ratio not in tries and ratio % STEP == 0 and 0 <= ratio <= MOST
        good, fast = ratio <= too_much, ratio >= enough
        tries[ratio] = "meets" if good and fast else "more" if good else "less" if fast else "both"
    truth = [ratio for ratio in range(0, MOST + 1, STEP) if enough <= ratio <= too_much]
    assert least_met(tries) == (truth[0] if truth else None)
    assert len(tries) <= 8


@given(ratios.filter(lambda ratio: STEP <= ratio < MOST))
def test_a_right_prediction_takes_two_tries(first):
    assert next_try({first: "meets"}, first, MOST) == first - STEP
    assert next_try({first: "meets", first - STEP: "more"}, first, MOST) is None
