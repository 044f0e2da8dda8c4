"""What `make test-fast` (pytest -m "not slow") runs: under a minute on 2 cores.

A file that is not named here is slow as a whole, and is not even imported for a fast run, so that a new file of tests
never makes it longer by itself. In a file that is named, `@pytest.mark.slow` takes single tests out. To choose: pytest
--durations=20 FILE.
"""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent

FAST = (
    "chain/test_code.py", "chat/test_checks.py", "drafting/test_speed.py", "families/test_families.py",
    "gating/test_command.py", "gating/test_judge.py", "gating/test_rerun.py", "machine/test_sensors.py",
    "measuring/test_statistics.py", "model/test_adapters.py", "model/test_blocks.py", "model/test_checkpoint.py",
    "model/test_tensors.py", "pruning/test_fusion.py", "pruning/test_iterate.py", "pruning/test_kept.py",
    "pruning/test_surgery.py", "publishing/test_names.py", "recovery/test_quantiser.py", "searching/test_space.py",
    "sweeping/test_document.py",
    "test_adding.py",
    "test_cache.py", "test_docs.py", "test_examples.py", "test_imports.py", "test_names.py", "test_progress.py",
    "test_releases.py", "test_structure.py", "test_targets.py", "test_yaml_lines.py", "worth/test_frontier.py",
    "worth/test_narrow.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not is_fast(item.path):
            item.add_marker(pytest.mark.slow)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that a fast run would leave out anyway are not imported."""
    leave = config.option.markexpr == "not slow" and collection_path.name.startswith("test_")
    return True if leave and collection_path.is_file() and not is_fast(collection_path) else None


def is_fast(path: Path) -> bool:
    return path.is_relative_to(FOLDER) and str(path.relative_to(FOLDER)) in FAST
