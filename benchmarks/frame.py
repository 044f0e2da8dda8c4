"""What the pruning benchmarks share: texts split so that nothing is judged on what it learnt from, and planners.

Calibration windows are drawn by seed from the training text; the search compares plans on further windows of it;
`heldout` chooses between plans, and the test texts are only reported.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from saap_edge.model.folder import load_model, spec_of
from saap_edge.model.perplexity import text_windows
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.pruning.bank import Bank, build_bank
from saap_edge.pruning.planner import Planner
from saap_edge.pruning.score import Scores, score_model
from saap_edge.pruning.settings import EFFORTS
from saap_edge.pruning.space import GRID, Space
from saap_edge.recipe import bundled_text

WINDOW, SAMPLES, BATCHES, SEARCH, HELDOUT, TEST = 256, 64, 16, 8, 32, 32
POOL_CHARACTERS = 2_000_000  # of the training text that calibration windows are drawn from


@dataclass(frozen=True)
class Frame:
    """A model with its texts: token ids [n, WINDOW]. `tests` are reported, by name."""

    name: str
    model: Any
    folder: Path
    space: Space
    pool: torch.Tensor
    heldout: torch.Tensor
    tests: dict[str, torch.Tensor]

    def order(self, seed: int) -> torch.Tensor:
        """The pool's windows in the order of a seed."""
        return self.pool[torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(seed))]

    @contextmanager
    def planner(self, seed: int, space: Space | None = None, evaluations: int = 200) -> Iterator[Planner]:
        """A planner whose calibration windows are drawn by `seed`; its bank lives as long as the context."""
        windows, space = self.order(seed), space or self.space
        with tempfile.TemporaryDirectory() as folder:
            scores, bank = self.look(windows[:SAMPLES], space, Path(folder))
            yield Planner(
                self.model, scores, bank, space, windows[:SAMPLES], windows[SAMPLES : SAMPLES + SEARCH], self.heldout,
                effort=replace(EFFORTS["thorough"], evaluations=evaluations), seed=seed,
            )  # fmt: skip

    def look(self, windows: torch.Tensor, space: Space, folder: Path) -> tuple[Scores, Bank]:
        """Scores and bank of the model as it is now."""
        scores = score_model(self.model, list(torch.tensor_split(windows, BATCHES)), {})
        return scores, build_bank(self.model, scores, space, windows, folder)


def load_frame(model: Path, data: Path, other: Path | None) -> Frame:
    """The model in folder `model` with the texts in folder `data`, and text `other` as a second test.

    `data` holds train.txt (or calibration.txt), valid.txt (or heldout.txt) and test.txt, or a single text file that
    is then split 60 : 20 : 20. `other` is the bundled test text where absent.
    """
    dense, tokenizer = load_model(model), load_tokenizer(model)
    train, heldout, test = texts_of(data)
    other = other or bundled_text("test")
    spec = spec_of(dense)
    # Off-grid widths are trimmed in all plans alike: in a file they are padded, and budgets would not be equal bytes.
    trim = any(layer.ffn % GRID for layer in spec.layers)
    return Frame(
        model.resolve().name, dense, model, Space(spec.layers, spec.hidden, spec.head_dim, trim=trim),
        text_windows(tokenizer, train[:POOL_CHARACTERS], WINDOW), text_windows(tokenizer, heldout, WINDOW, HELDOUT),
        {
            data.name: text_windows(tokenizer, test, WINDOW, TEST),
            other.parent.name: text_windows(tokenizer, other.read_text(encoding="utf-8"), WINDOW, TEST),
        },
    )  # fmt: skip


def texts_of(folder: Path) -> tuple[str, str, str]:
    """Training, held-out and test text of a folder."""
    names = (("train", "calibration"), ("valid", "heldout"), ("test",))
    found = [next((p for n in group if (p := folder / f"{n}.txt").is_file()), None) for group in names]
    if all(found):
        train, heldout, test = (path.read_text(encoding="utf-8") for path in found if path)
        return train, heldout, test
    files = sorted(folder.glob("*.txt"))
    if len(files) != 1:
        raise SystemExit(f"'{folder}' must hold train.txt, valid.txt and test.txt, or one text file")
    text = files[0].read_text(encoding="utf-8")
    first, second = len(text) * 3 // 5, len(text) * 4 // 5
    return text[:first], text[first:second], text[second:]
