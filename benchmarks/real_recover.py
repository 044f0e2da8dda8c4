"""real.py recover: some plans trained with the same tokens, as Q4_0 files, each measured in llama.cpp."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from real_frame import KNOWN_BY, Frame, Rows, folder_of, made, open_frame

from saap_edge.chain.texts import HELDOUT_WINDOWS
from saap_edge.engines.worker import Worker
from saap_edge.exporting.gguf import write_gguf
from saap_edge.model.folder import save_model
from saap_edge.pruning.kept import kept_structures
from saap_edge.pruning.repair import repair, restored
from saap_edge.pruning.surgery import cut
from saap_edge.recovery.run import Texts, recover

DENSE = "dense"


def recovered(arguments: argparse.Namespace) -> None:
    """A row for the dense model as it is, and one for every method and ratio: they get the same training."""
    rows, tokens = Rows(arguments.work, "recovered"), arguments.tokens
    with open_frame(arguments) as frame:
        written = frame.context.recipe.data.written
        wanted = [(0.0, DENSE, 0, 0.0)]
        wanted += [(ratio, name, tokens, written) for ratio in arguments.ratios for name in arguments.methods]
        if arguments.control:
            wanted.append((0.0, DENSE, tokens, written))
        for known in (dict(zip(KNOWN_BY, one, strict=True)) for one in wanted):
            if rows.has(**known):
                continue
            folder, name = folder_of(arguments.work, known), known["method"]
            pruned = frame.context.model if name == DENSE else write_pruned(frame, name, known["ratio"], folder)
            rows.add(known | train(frame, pruned, folder, known["tokens"]))


def write_pruned(frame: Frame, name: str, ratio: float, folder: Path) -> Path:
    """The method's plan, cut and repaired, as a folder; made once."""
    out, planner = folder / "pruned", frame.planner
    if not out.is_dir():
        widths, values, _ = made(planner, name, ratio)
        kept = kept_structures(values, widths)
        partial = folder / "partial"
        partial.mkdir(parents=True, exist_ok=True)
        with restored(planner.model):
            repair(planner.model, kept, planner.calibration, planner.mix or 0.0, precision=planner.precision)
            save_model(cut(planner.model, kept), frame.context.model, partial)
        partial.rename(out)
    return out


def train(frame: Frame, pruned: Path, folder: Path, tokens: int) -> dict[str, Any]:
    """Recover the folder, write its Q4_0 file, and measure that."""
    recipe = frame.context.recipe
    out, file = folder / f"recovered-{tokens}", folder / f"{folder.name}-{tokens}-q4_0.gguf"
    heldout = frame.context.corpus.windows("heldout", HELDOUT_WINDOWS)
    texts = Texts(frame.learnt[: recipe.score.samples], frame.learnt, heldout)
    settings = recipe.recover.model_copy(update={"tokens": tokens})
    if not (out / "recover.json").is_file():
        out.mkdir(parents=True, exist_ok=True)
        recover(
            frame.context.model, pruned, texts, settings, group=recipe.export.group, seed=recipe.seed, out=out,
            work=folder / f"work-{tokens}",
        )  # fmt: skip
    document = json.loads((out / "recover.json").read_text(encoding="utf-8"))
    size = write_gguf(out / "model", file, settings.format)["file_bytes"]
    with Worker("llama.cpp", file, torch.get_num_threads(), recipe.score.window) as worker:
        losses = {name: [nll(worker, window) for window in text.tolist()] for name, text in frame.tests.items()}
    kept = {name: document[name] for name in ("before", "after", "dense", "format")}
    # Whole batches only: a few tokens less than were asked for, by which the row is known.
    return {"file": file.name, "file_bytes": size, "losses": losses, "trained_tokens": document["tokens"]} | kept


def nll(worker: Worker, window: list[int]) -> float:
    total, count = worker.nll([window])
    return round(total / count, 4)
