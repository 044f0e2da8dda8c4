"""Calibration text that the dense model writes itself: text.txt, its tokens, and write.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.cache import alone, work_folder
from saap_edge.chain.rule import WRITE, Inputs, Rule
from saap_edge.errors import SaapError
from saap_edge.machine.launch import processes

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE"]


def _settings(context: Context) -> dict[str, Any]:
    from saap_edge.chain.amounts import written_tokens

    return {"seed": context.recipe.seed, "tokens": written_tokens(context.recipe)}


def _write(context: Context, inputs: Inputs, out: Path) -> None:
    import torch

    from saap_edge.chain.amounts import written_tokens
    from saap_edge.writing.write import write_text

    if processes() > 1:
        raise SaapError("several processes cannot write the calibration text: run `saap-edge write` first, alone")
    tokens, work = written_tokens(context.recipe), work_folder(out)
    with alone(work), context.bar("write: tokens", tokens) as advance:
        write_text(
            context.teacher, out, work, tokens=tokens, seed=context.recipe.seed, threads=torch.get_num_threads(),
            progress=advance,
        )  # fmt: skip


# The teacher is the dense model itself where the recipe names no other. What is learnt from it, it writes.
RULE = Rule(WRITE, (), _write, reads=("teacher",), settings=_settings)
