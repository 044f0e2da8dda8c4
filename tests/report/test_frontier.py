"""The frontier's table, page and picture, and what a fit says."""

import json

import pytest
from rich.console import Console

from saap_edge.report.frontier import render_fit, render_frontier, worth, write_frontier
from saap_edge.worth.frontier import mark_front


def row(name, ratio, speed, size, perplexity, **changes):
    kind = name.split()[-1]
    return {
        "name": name, "role": "pruned" if ratio else "dense", "ratio": ratio, "removed": ratio, "format": kind,
        "speed": {"ratio": speed, "low": speed * 0.98, "high": speed * 1.02}, "ideal_speed": speed,
        "decode_tok_s": 100 * speed, "perplexity": perplexity, "file_bytes": size * 2**20, "peak_rss_mib": 50,
        "predicted_decode_tok_s": None, **changes,
    }  # fmt: skip


def document(on_target=True):
    rows = [
        row("dense gguf-q8_0", 0, 0.7, 8, 10.0), row("dense gguf-q4_0", 0, 1.0, 4, 10.2),
        row("dense gguf-q2_k", 0, 0.9, 3, 11.0), row("pruned 35% gguf-q4_0", 0.35, 1.4, 3, 10.9),
        row("pruned 35% onnx-int4", 0.35, 0.8, 5, None, predicted_decode_tok_s={"value": 9, "low": 7, "high": 12}),
    ]  # fmt: skip
    return {
        "schema": 1, "model": "<b>model</b>", "target": "rpi5", "on_target": on_target, "anchor": "dense gguf-q4_0",
        "machine": {"cpu": "A CPU", "cores": 2}, "points": mark_front(rows),
        "conditions": {"threads": 1, "prompt_tokens": 64, "decode_tokens": 32, "perplexity_window": 256,
                       "perplexity_tokens": 4080, "perplexity_text_sha256": "abc", "versions": {"numpy": "2"}},
    }  # fmt: skip


def shown(parts):
    console = Console(width=170, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in parts:
        console.print(part)
    return console.export_text()


@pytest.mark.parametrize("on_target", [True, False])
def test_files_and_table(tmp_path, on_target):
    made = document(on_target)
    files = write_frontier(made, tmp_path)
    assert [path.name for path in files] == ["frontier.json", "frontier.html", "frontier.png"]
    assert sorted(tmp_path.iterdir()) == sorted(files), "nothing half-written stays"
    assert json.loads(files[0].read_text()) == made
    page, text = files[1].read_text(), shown(render_frontier(made))
    assert page.count("<svg") == 2 and "<b>model" not in page and files[2].read_bytes().startswith(b"\x89PNG")
    for there in (page, text):
        assert "pruned 35% gguf-q4_0" in there and "1.40 [1.37, 1.43]" in there
        assert ("9.0 [7.0, 12.0]" in there) is not on_target, "predicted only for another board"


def test_what_is_worth_it():
    said = worth(document())
    assert "in speed: pruned 35% gguf-q4_0; in bytes: pruned 35% gguf-q4_0" in said
    made = document()
    made["points"] = mark_front([point for point in made["points"] if point["role"] == "dense"])
    assert "not worth it" in worth(made)


def verdict(word):
    return {"metric": "decode_tok_s", "limit": ">= 10", "verdict": word, "reason": "9, predicted", "predicted": True}


@pytest.mark.parametrize(("found", "expected"), [
    (None, "no pruning of this model meets the budget"),
    ({"ratio": 0, "format": "gguf-q4_0", "predicted": False}, "do not prune"),
    ({"ratio": 35, "format": "gguf-q4_0", "predicted": True}, "35 %, as gguf-q4_0"),
])  # fmt: skip
def test_what_a_fit_says(found, expected):
    tries = [{"ratio": 35, "format": "gguf-q4_0", "outcome": "more", "verdicts": [verdict("fail")]}]
    text = shown(render_fit({"tries": tries, "found": found}))
    assert expected in text and "too slow or large" in text and "9, predicted" in text
    assert ("measure on the board" in text) is bool(found and found["predicted"])
