"""25 random valid plans of every family, in both runtimes; benchmarks/random_plans.py runs 200."""

from pathlib import Path

import pytest

from saap_edge.families import FAMILIES
from tests.exporting.random_plans import check

BATCH = 25


@pytest.mark.parametrize("batch", range(len(FAMILIES)))
def test_random_plans_answer_as_torch_does(batch: int, tmp_path: Path) -> None:
    outcome = check(range(batch * BATCH, (batch + 1) * BATCH), tmp_path)
    assert not outcome.faults, "\n".join(outcome.faults)
    assert outcome.counts["gguf-f32"] > BATCH // 2 and outcome.counts["onnx-fp32"] > BATCH // 2
