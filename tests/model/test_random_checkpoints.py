"""66 random valid checkpoints and 200 damaged ones; benchmarks/random_checkpoints.py runs as many as one likes."""

from pathlib import Path

import pytest
from transformers.utils import logging

from saap_edge.model.classes import TRANSFORMERS_4
from tests.model.checkpoint_cases import check_damaged, check_valid

pytestmark = pytest.mark.skipif(TRANSFORMERS_4, reason="what a layout means is as in transformers 5")


@pytest.fixture(autouse=True)
def quiet():
    """transformers says much of configs that it does not like: as commands have it."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


@pytest.mark.parametrize("batch", range(3))
def test_valid_checkpoints_answer_as_in_transformers(batch: int, tmp_path: Path) -> None:
    outcome = check_valid(range(22 * batch, 22 * (batch + 1)), tmp_path)
    assert not outcome.faults, "\n".join(outcome.faults)
    assert outcome.counts["files run"] == 22


@pytest.mark.parametrize("batch", range(4))
def test_damaged_checkpoints_are_refused_in_a_line_or_answer_as_in_transformers(batch: int, tmp_path: Path) -> None:
    outcome = check_damaged(range(50 * batch, 50 * (batch + 1)), tmp_path, variety=22, by_command=batch % 2)
    assert not outcome.faults, "\n".join(outcome.faults)
    assert outcome.counts["damaged, refused"] > 10 and outcome.counts["commands run"] == batch % 2
