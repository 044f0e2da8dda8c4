"""What several tests of measuring on a board share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from saap_edge.bundle.write import write_bundle
from saap_edge.model.folder import build_pruned
from tests.bundle.conftest import write_run
from tests.conftest import WIDTHS, randomise_projections, tiny_model, write_folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("remote-bundle")
    dense = tiny_model("llama", max_position_embeddings=2**21)  # as many tokens as it takes to fill a board's memory
    base = write_folder(dense, root / "base")
    pruned = write_folder(randomise_projections(build_pruned(dense, WIDTHS)), root / "pruned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        run = write_run(root / "out", base, pruned, ("gguf-q4_0",))
        write_bundle(run, root / "bundle", "gguf-q4_0")
    return root / "bundle"
