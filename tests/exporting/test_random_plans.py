"""25 random valid plans of every family, in both runtimes; benchmarks/random_plans.py runs 200."""

from pathlib import Path

import pytest

from saap_edge.families import FAMILIES
from tests.exporting.random_plans import check

PLANS = 25


@pytest.mark.parametrize("family", FAMILIES)
def test_random_plans_answer_as_torch_does(family: str, tmp_path: Path) -> None:
    outcome = check(family, range(PLANS), tmp_path)
    assert not outcome.faults, "\n".join(outcome.faults)
    for file in ("gguf-f32", "onnx-fp32"):  # each plan's file is written, or refused in words
        assert outcome.counts[file] + outcome.counts[f"{file} refused"] == PLANS
        assert outcome.counts[file], f"no {file} could be written"
