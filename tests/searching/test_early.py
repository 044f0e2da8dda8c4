"""Predictions leave what cannot keep a budget, and nothing that can: beside files that were made and measured."""

import json
from pathlib import Path

import pytest

from saap_edge.api.recipes import recipe_of
from saap_edge.chain.context import Known
from saap_edge.progress import no_bar
from saap_edge.searching.early import hopeless
from saap_edge.worth.frontier import open_at

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "frontier.json"
POINTS = json.loads(RESULT.read_text())["points"]
KNOWN = Known()


def reason(row, limits, target="host"):
    recipe = recipe_of(budget={"limits": limits}, formats=[row["format"]], target=target)
    return hopeless(open_at(recipe, row["ratio"], no_bar, KNOWN), row["format"], row["ratio"])


@pytest.mark.parametrize("row", POINTS, ids=lambda row: row["name"])
def test_nothing_is_left_that_keeps_its_budget(row):
    figures = {"file_mib": row["file_bytes"] / 2**20, "parameters": row["parameters"]}
    figures["bytes_per_token"] = row["bytes_per_token"]
    for metric, figure in figures.items():
        assert reason(row, {metric: {"max": figure}}) is None
        assert "at best, predicted" in reason(row, {metric: {"max": 0.75 * figure}})
    dense = next(each for each in POINTS if each["format"] == row["format"] and not each["ratio"])
    measured = row["speed"]["ratio"] / dense["speed"]["ratio"]
    assert reason(row, {"speedup_vs_dense": {"min": measured}}) is None
    assert "speedup_vs_dense >= 3 is out of reach" in reason(row, {"speedup_vs_dense": {"min": 3}})


def test_speed_and_memory_of_another_board():
    row = POINTS[0]
    for limits, left in (
        ({"decode_tok_s": {"min": 1}}, False), ({"decode_tok_s": {"min": 1e6}}, True),
        ({"predicted_decode_tok_s": {"min": 1e6}}, True), ({"peak_rss_mib": {"max": 1}}, True),
        ({"predicted_ram_mib": {"max": 8000}}, False), ({"ttft_ms": {"max": 1e-6}}, True),
        ({"perplexity": {"max": 1}}, False),
    ):  # fmt: skip
        assert bool(reason(row, limits, "rpi5")) is left, limits


def test_a_format_whose_size_the_shape_does_not_tell_is_tried():
    context = open_at(
        recipe_of(formats=["gguf-q4_0"], budget={"limits": {"file_mib": {"max": 0.01}}}), 0, no_bar, KNOWN
    )
    assert hopeless(context, "onnx-optimum", 0) is None and hopeless(context, "gguf-q4_0", 0)
