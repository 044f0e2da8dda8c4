"""A bank serves plans of all methods: what a uniform one cannot take, a search may."""

from __future__ import annotations

from pathlib import Path

import saap_edge as se
from saap_edge.pruning.bank import Bank
from tests.conftest import tiny_model, write_folder


def test_the_bank_of_a_uniform_plan_holds_the_widths_of_others(tmp_path: Path) -> None:
    """6 heads do not divide the hidden size of 64, so that transformers' plain class takes no layers of 3 KV heads."""
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    recipe = {"score": {"samples": 4, "batches": 2, "window": 16}, "export": {"formats": ["gguf-q4_0"]}}
    found = []
    for method in ("uniform", "search"):
        settings = recipe | {"prune": {"method": method, "ratio": 0.2, "samples": 4}}
        found.append(se.bank(se.score(folder, recipe=settings, out=tmp_path / "out")).folder)
    assert found[0] == found[1]
    assert (3, 2) in Bank(found[0]).widths(0, "attention")
