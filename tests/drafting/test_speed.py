"""The arithmetic of speculative decoding against a simulation that is written another way, and intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saap_edge.drafting.acceptance import Answer, sample_of
from saap_edge.drafting.prompts import KINDS, MOST, read_prompts
from saap_edge.drafting.speed import expected_tokens, passes, speed_up, survival, verification


def decoded(parent, draft, gamma):
    """Speculative decoding itself: the text, number of passes, and calls of the draft. `parent` and `draft` are lists
    of the token that each says after as many tokens of the text."""
    text, rounds, calls = [], 0, 0
    while len(text) < len(parent):
        rounds += 1
        said = []
        for place in range(len(text), len(text) + gamma):
            calls += 1
            said.append(draft[place] if place < len(draft) else None)
        for token in said:
            if len(text) == len(parent) or token != parent[len(text)]:
                break
            text.append(token)
        if len(text) < len(parent):
            text.append(parent[len(text)])
    return text, rounds, calls


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 6))
def test_passes_are_those_of_the_loop(flags, gamma):
    """Tokens that are known leave a pass room for one token more: the parent's own."""
    parent = list(range(len(flags)))
    draft = [token if known else -1 for token, known in zip(parent, flags, strict=True)]
    text, rounds, _ = decoded(parent, draft, gamma)
    assert text == parent and passes(flags, gamma) == rounds


@pytest.mark.parametrize(("alpha", "gamma"), [(0.3, 1), (0.6, 2), (0.8, 4), (0.95, 7)])
def test_the_formula_is_what_chance_gives(alpha, gamma):
    """Tokens a pass, and the speed-up, of 200,000 independent tokens."""
    flags = (np.random.default_rng(1).random(200_000) < alpha).tolist()
    parent = list(range(len(flags)))
    _, rounds, calls = decoded(parent, [t if known else -1 for t, known in zip(parent, flags, strict=True)], gamma)
    assert len(flags) / rounds == pytest.approx(expected_tokens(alpha, gamma), rel=0.01)
    seconds = calls * 0.1 + rounds * 1.5
    assert len(flags) / seconds == pytest.approx(speed_up(expected_tokens(alpha, gamma), gamma, 0.1, 1.5), rel=0.01)
    reached = survival([flags], gamma)
    assert reached == pytest.approx([alpha**n for n in range(1, gamma + 1)], abs=0.02)


def test_a_draft_as_slow_as_its_parent_never_pays():
    for gamma in range(1, 9):
        assert speed_up(gamma + 1, gamma, draft=1.0, verified=verification(gamma + 1, 0.0)) == 1
        assert speed_up(gamma + 1, gamma, draft=1.0, verified=verification(gamma + 1, 0.1)) < 1
    assert verification(5, 3.0) == 5 == verification(5, 1.0)


def test_runs_that_the_end_cuts_off():
    """They tell that they reached so far, and nothing beyond."""
    assert survival([[True, True]], 3)[:2] == [1, 1] and np.isnan(survival([[True, True]], 3)[2])
    assert survival([[False, True, True]], 2) == [0.5, 0.5]


def answers(shares, tokens, seed):
    dice = np.random.default_rng(seed)
    return [
        Answer(f"{n}", "text", [1], [0] * (tokens + 1), tuple((dice.random(tokens) < share).tolist()))
        for n, share in enumerate(shares)
    ]


def test_the_interval_is_that_of_other_prompts():
    """Of independent tokens the binomial's; wider where prompts differ, which tokens alone would not tell."""
    even = sample_of(answers([0.6] * 40, 100, 3), 3).share()
    assert even.high - even.low == pytest.approx(2 * 1.96 * (0.6 * 0.4 / 4000) ** 0.5, rel=0.25)
    apart = sample_of(answers([0.2, 1.0] * 20, 100, 3), 3).share()
    assert apart.high - apart.low > 5 * (even.high - even.low) and apart.low < apart.value < apart.high
    tokens = sample_of(answers([1.0] * 4, 11, 0), 3).tokens_per_pass(3)
    assert tokens.value == tokens.low == tokens.high == pytest.approx(11 / 3)


def test_the_prompts_take_turns():
    prompts = read_prompts(MOST)
    assert [each.kind for each in prompts] == list(KINDS) * MOST and len({each.id for each in prompts}) == len(prompts)
    assert all(each.prompt.strip() for each in prompts)
