"""Group fine-tuning in the export's blocks: a Hugging Face folder with the trained codes, and recover.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.cache import alone, work_folder
from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.texts import HELDOUT_WINDOWS, calibration, windows

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["ALONE", "RULE"]

_READS = ("model", "heldout", "teacher")


def _settings(context: Context) -> dict[str, Any]:
    recipe = context.recipe
    settings = recipe.recover.model_dump(mode="json", exclude={"teacher", "shard"})  # the same result either way
    shared = {"group": recipe.export.group, "samples": recipe.score.samples}
    return settings | shared | {"window": recipe.score.window, "seed": recipe.seed}


def _recover(context: Context, inputs: Inputs, out: Path) -> None:
    _recover_folder(context, inputs, inputs["prune"] / "model", out)


def _recover_model(context: Context, inputs: Inputs, out: Path) -> None:
    _recover_folder(context, inputs, context.model, out)


def _recover_folder(context: Context, inputs: Inputs, folder: Path, out: Path) -> None:
    from saap_edge.recovery.run import PHASES, Texts, recover, recovery_steps

    settings, samples = context.recipe.recover, context.recipe.score.samples
    learnt = calibration(context, inputs)
    texts = Texts(learnt[:samples], learnt, windows(context, "heldout", HELDOUT_WINDOWS))
    steps, done = recovery_steps(settings, texts, len(context.spec.layers)), dict.fromkeys(PHASES, 0)

    def news(phase: str, step: int, loss: float, heldout: float) -> None:
        note = f"{phase}: loss {loss:.3f}, held-out {heldout:.3f}" if math.isfinite(heldout) else phase
        advance((step - done[phase]) * steps[phase][1], note)
        done[phase] = step

    group, seed, work = context.recipe.export.group, context.recipe.seed, work_folder(out)
    total = sum(number * passes for number, passes in steps.values())
    with alone(work), context.bar("recover", total) as advance:
        recover(context.teacher, folder, texts, settings, group=group, seed=seed, out=out, work=work, progress=news)


RULE = Rule("recover", ("prune",), _recover, reads=_READS, settings=_settings, learns=True)
ALONE = Rule(
    "recover", (), _recover_model, reads=_READS, settings=_settings, learns=True
)  # for a model as it came, pruned or not
