"""The Pareto front by brute force, and a frontier of a tiny model by the command line."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from saap_edge.worth.frontier import mark_front


def row(speed, size, perplexity):
    return {"speed": {"ratio": speed}, "file_bytes": size, "perplexity": perplexity}


few = st.integers(1, 4)


@given(st.lists(st.builds(row, few, few, st.one_of(st.none(), few)), max_size=8))
def test_the_front_is_what_nothing_beats(rows):
    marked = mark_front(rows)
    for one, other in itertools.product(marked, marked):
        if None in (one["perplexity"], other["perplexity"]):
            continue
        no_worse = other["perplexity"] <= one["perplexity"] and other["speed"]["ratio"] >= one["speed"]["ratio"]
        better = other["perplexity"] < one["perplexity"] or other["speed"]["ratio"] > one["speed"]["ratio"]
        if no_worse and better:
            assert "speed" not in one["front"]
    known = [entry for entry in marked if entry["perplexity"] is not None]
    for axis in ("speed", "bytes"):  # somebody is always on it: the best in quality, or one as good and better
        assert not known or any(axis in entry["front"] for entry in known)
    assert all(entry["front"] == [] for entry in marked if entry["perplexity"] is None)
