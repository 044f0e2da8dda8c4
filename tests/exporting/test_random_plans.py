"""200 random valid plans over all families, in both runtimes; benchmarks/random_plans.py runs 2,000."""

from pathlib import Path

import pytest

from tests.exporting.random_plans import check

BATCH = 20


@pytest.mark.parametrize("batch", range(10))
def test_random_plans_answer_as_torch_does(batch: int, tmp_path: Path) -> None:
    outcome = check(range(batch * BATCH, (batch + 1) * BATCH), tmp_path)
    assert not outcome.faults, "\n".join(outcome.faults)
    assert outcome.counts["gguf-f32"] > BATCH // 2 and outcome.counts["onnx-fp32"] > BATCH // 2
