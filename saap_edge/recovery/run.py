"""The recover stage: train the weights, put them into blocks, train the blocks, keep the better, write the folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from saap_edge.errors import SaapError
from saap_edge.families import Family
from saap_edge.machine.launch import processes
from saap_edge.machine.memory import give_back
from saap_edge.model.adapters import LoraLinear, SppLinear, WholeLinear, change_projections
from saap_edge.model.arithmetic import uses_bfloat16
from saap_edge.model.blocks import BLOCK_FORMATS
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, save_model
from saap_edge.model.values import FP16_MAX, beyond_fp16
from saap_edge.recovery.heldout import Found, Heldout, with_answers
from saap_edge.recovery.judged import Trained, judged, projections
from saap_edge.recovery.quantiser import GroupLinear
from saap_edge.recovery.settings import SMALL, RecoverSettings
from saap_edge.recovery.sharding import shard, sharded
from saap_edge.recovery.start import in_blocks
from saap_edge.recovery.teacher import DenseTeacher, Teacher, cached_teacher
from saap_edge.recovery.train import Recovery, Training, steps_of, train
from saap_edge.recovery.unchanged import first_changed

__all__ = ["PHASES", "Texts", "recover", "recovery_steps"]

PHASES = ("teacher", "weights", "codes", "blocks", "measuring")
ADAPTERS = {"lora": LoraLinear, "spp": SppLinear, "all": WholeLinear}
MEASURED = 5  # models measured beside those of training; each is a step of the phase "measuring"


@dataclass(frozen=True)
class Texts:
    """Token ids [n, window].

    Attributes:
        calibration: to choose the first codes.
        training: to train the adapters.
        heldout: to decide what is kept. It must not overlap the others.
    """

    calibration: torch.Tensor
    training: torch.Tensor
    heldout: torch.Tensor


def recover(
    dense: Path,
    pruned: Path,
    texts: Texts,
    settings: RecoverSettings,
    *,
    group: int,
    seed: int,
    out: Path,
    work: Path,
    progress: Callable[[str, int, float, float], None] = lambda phase, step, loss, heldout: None,
) -> dict[str, Any]:
    """Tune the model in `pruned`, write `out/model` and `out/recover.json`, and return the latter's content.

    `out/model` holds full-precision weights, for exports to formats that were not tuned, and codes.safetensors, the
    blocks of the tuned format. On `texts.heldout` two things hold, by the loss of training (a share
    `settings.distillation` of the divergence from the dense model, the rest that of the text): the blocks are never
    worse than the untuned weights rounded to nearest, and the full-precision weights are never worse than the untuned.

    In a launch (torchrun, `accelerate launch`) all processes train, the first writes, and the others return an empty
    dict.

    Args:
        dense: the teacher's folder; `pruned` may be the same (tuning without pruning).
        group: inputs that share a scale, 32 or a multiple.
        work: a folder for checkpoints and the teacher's cache. A killed run that is given the same one continues.
        progress: called with the phase (PHASES), its steps so far, and the losses of `train`.

    Raises SaapError when the held-out loss is not finite, where no codes can be found, and where `settings.shard` has
    nothing to share out.
    """
    tell, spec = _counter(progress), read_spec(pruned)
    settings = settings.resolved(spec.layer_parameters(), spec.hidden)
    family, format = spec.family, BLOCK_FORMATS[settings.format]
    _check_shards(settings)
    PartialState(timeout=timedelta(days=7))  # in a launch the others wait while the first writes the teacher's cache
    heldout = _heldout(dense, texts.heldout, settings, work, lambda: tell("teacher"))  # its model leaves memory again
    teacher = _teacher(dense, texts.training, settings, work, lambda: tell("teacher"))
    give_back()
    torch.manual_seed(seed)
    model = load_model(pruned)
    untuned = _measured(heldout, model, settings)
    tell("measuring")
    if not math.isfinite(start := untuned.loss(settings.distillation)):
        raise SaapError(f"'{pruned}': the loss on held-out text is {start}: the model or text is broken")
    first = first_changed(dense, pruned, model) if settings.tokens and settings.distillation == 1 else 0
    weights = _train_weights(
        model, family, first, teacher, texts.training, heldout, start, settings, seed, work, progress
    )
    fp = _measured(heldout, model, settings)
    tell("measuring")
    folder, layers = out / "model", iter(range(len(model.model.layers)))

    def layer_done() -> None:
        if next(layers, None) is not None:  # a second attempt goes over the layers again
            tell("codes")

    def put_into_blocks(model: Any) -> None:
        """Save the model and put it into blocks. Raises SaapError where no codes can be found."""
        if PartialState().is_main_process:
            save_model(model, pruned, folder)  # float32: other formats are quantised from it
        in_blocks(
            model, family, format, group=group, rank=settings.rank, through=settings.through, method=settings.start,
            windows=texts.calibration, progress=layer_done,
        )  # fmt: skip

    better = weights.best_step > 0
    fault = (_beyond_fp16(model, family, pruned) or _refusal(put_into_blocks, model)) if better else None
    if fault or not better:
        del model  # never two in memory
        model, fp = load_model(pruned), untuned
        put_into_blocks(model)
    for parameter in model.parameters():  # a copy: else the mapped file of all weights stays in memory
        parameter.data = parameter.data.clone()
    with sharded(model, settings.shard):
        blocks = train(
            model, teacher, texts.training, heldout, _training(settings, seed, blocks=True), work / "blocks",
            lambda *news: progress("blocks", *news),
        )  # fmt: skip
    if not PartialState().is_main_process:
        return {}
    tuned = {f"{name}.weight": part.blocks() for name, part in model.named_modules() if isinstance(part, GroupLinear)}
    del model, teacher
    give_back()
    trained = Trained(tuned, untuned, fp, better and not fault, first, weights, blocks, fault)
    document = judged(
        dense, pruned, folder, heldout, trained, family=family, format=format, group=group, settings=settings,
        measured=lambda: tell("measuring"),
    )  # fmt: skip
    (out / "recover.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return document


def _check_shards(settings: RecoverSettings) -> None:
    """Raises SaapError, in every process before one waits for another, where nothing of the weights is frozen."""
    if settings.shard and settings.adapter == "all" and settings.weights and processes() > 1:
        raise SaapError(
            f"adapter: all (auto takes it up to {SMALL // 1_000_000} million weights) trains every weight, and only "
            "frozen ones can be shared out: drop --shard, or use recover.adapter: lora"
        )


def _measured(heldout: Heldout, model: Any, settings: RecoverSettings) -> Found:
    """The model on held-out text; in a sharded launch by all processes together."""
    with sharded(model, settings.shard):
        return heldout.measure(model)


def _beyond_fp16(model: Any, family: Family, pruned: Path) -> str | None:
    """Why half precision cannot hold the trained weights, if it could hold those of the folder `pruned`; else None."""
    for name, weight in projections(model, family):
        largest = float(weight.abs().max())
        if largest > FP16_MAX and not beyond_fp16(pruned):
            return f"{name} grew to {largest:.3g}, and half precision holds nothing beyond {FP16_MAX:.0f}"
    return None


def _refusal(act: Callable[[Any], None], model: Any) -> str | None:
    """Why `act` refuses the model, or None. Nothing of the attempt stays in memory."""
    try:
        act(model)
    except SaapError as error:
        return str(error)
    return None


def _train_weights(
    model: Any, family: Family, first: int, teacher: Teacher | None, windows: torch.Tensor, heldout: Heldout,
    start: float, settings: RecoverSettings, seed: int, work: Path, progress: Callable[[str, int, float, float], None],
) -> Recovery:  # fmt: skip
    """Train the projections in full precision, by their adapters or all weights, and merge these, in place.

    `first`: the first layer that is trained.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # Checkpoints that hold other weights are not gone on from, as those of a build that trained every layer.
    adapter, place = ADAPTERS[settings.adapter], work / (f"weights-from-{first}" if first else "weights")
    change_projections(model, family, lambda linear: adapter(linear, settings.rank), first)
    with sharded(model, settings.shard):
        recovery = train(
            model, teacher, windows, heldout, _training(settings, seed, blocks=False), place,
            lambda *news: progress("weights", *news), start,
        )  # fmt: skip
    change_projections(model, family, lambda adapted: adapted.merge(), first)
    return recovery


def _training(settings: RecoverSettings, seed: int, blocks: bool) -> Training:
    """Settings of one of the two phases, which share the tokens."""
    share = 1 - settings.weights if blocks else settings.weights
    rate = settings.learning_rate if blocks else settings.weights_learning_rate
    assert rate is not None  # settings that are resolved have one
    return Training(
        tokens=round(settings.tokens * share), batch=settings.batch,
        learning_rate=rate,
        distillation=settings.distillation, seed=seed, patience=settings.patience,
        bfloat16=uses_bfloat16(settings.precision), checkpointing=settings.checkpointing,
    )  # fmt: skip


def _teacher(
    dense: Path, windows: torch.Tensor, settings: RecoverSettings, work: Path, progress: Callable[[], None]
) -> Teacher | None:
    """The teacher: the dense model, or a file of its answers, which needs no model in memory; None where unused."""
    if not settings.distillation or not settings.tokens:
        return None
    if settings.top is None:
        halved, sharing = uses_bfloat16(settings.precision), settings.shard and PartialState().num_processes > 1
        again = settings.tokens > windows.numel() and not sharing  # for sharing, all take part in every pass
        teacher = DenseTeacher(load_model(dense).requires_grad_(False), halved, again)
        if sharing:
            shard(teacher.model)
        return teacher
    with PartialState().main_process_first():
        return cached_teacher(lambda: load_model(dense), windows, settings.top, work / "teacher.safetensors", progress)


def _heldout(
    dense: Path, windows: torch.Tensor, settings: RecoverSettings, work: Path, progress: Callable[[], None]
) -> Heldout:
    """The held-out windows; with the dense model's answers to them, where training learns from it."""
    heldout = Heldout(windows, precision=settings.precision)
    if not settings.distillation or not settings.tokens:
        return heldout
    with PartialState().main_process_first():
        return with_answers(heldout, lambda: load_model(dense), work / "heldout.safetensors", progress)


def recovery_steps(settings: RecoverSettings, texts: Texts, layers: int) -> dict[str, tuple[int, float]]:
    """For every phase of `recover`: the steps that it reports, and the cost of a step, in forward passes of a window.

    `layers` is the number of layers of the pruned model.

    >>> texts = Texts(torch.zeros(8, 64), torch.zeros(100, 64), torch.zeros(4, 64))
    >>> recovery_steps(RecoverSettings(tokens=6400, batch=2), texts, layers=4)["weights"]
    (50, 8)
    """
    window, held = texts.training.shape[1], len(texts.heldout)
    settings = settings.resolved(0, 1)  # steps are the same for every adapter
    weights, blocks = (steps_of(_training(settings, 0, blocks), window) for blocks in (False, True))
    taught = settings.tokens and settings.distillation
    answers = (held + (len(texts.training) if settings.top else 0)) if taught else 0
    looked_at = 2 * len(texts.calibration) if settings.start != "nearest" else 1
    # A training step takes four passes: student forward, backward to inputs and to adapters, teacher forward.
    return {
        "teacher": (answers, 1), "weights": (weights, 4 * settings.batch), "codes": (layers, looked_at / layers),
        "blocks": (blocks, 4 * settings.batch), "measuring": (MEASURED, held),
    }  # fmt: skip


def _counter(progress: Callable[[str, int, float, float], None]) -> Callable[[str], None]:
    """A function that counts and reports the steps of phases without training."""
    done: Counter[str] = Counter()

    def tell(phase: str) -> None:
        done[phase] += 1
        progress(phase, done[phase], math.nan, math.nan)

    return tell
