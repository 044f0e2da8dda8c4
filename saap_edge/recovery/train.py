"""Training of adapters with transformers' Trainer: it distils from the dense model and keeps the best evaluation.

A killed run resumes from its last checkpoint. A launch of several processes (torchrun, `accelerate launch`) shares out
the windows of a step; each has a copy of the student, or of its frozen weights a part (sharding.py).
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging as transformers_logging

from saap_edge.errors import SaapError
from saap_edge.machine.memory import give_back
from saap_edge.model.attention import short_attention
from saap_edge.model.checkpointing import checkpointed
from saap_edge.model.head import head_gradient
from saap_edge.recovery.heldout import Heldout
from saap_edge.recovery.sharding import ignore_frozen
from saap_edge.recovery.teacher import Teacher

__all__ = ["Progress", "Recovery", "Training", "steps_of", "train"]

FINISHED = "finished.json"
EVALUATIONS = (2, 8)  # in a whole run, at least and at most; a checkpoint is written with each
JUDGING = 1 / 8  # of the passes of training: how many an evaluation more than the fewest may cost in all
# Called with (step, loss of the last steps, held-out loss): nats per token.
Progress = Callable[[int, float, float], None]


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        tokens: the budget, rounded down to whole batches.
        batch: windows a step, over all devices.
        distillation: the teacher's share of the loss; the rest is next-token cross-entropy.
        patience: stop after so many evaluations without a better one; None: never.
        bfloat16: compute in mixed precision.
        checkpointing: recompute activations layer by layer, to save memory.
    """

    tokens: int
    batch: int
    learning_rate: float
    distillation: float
    seed: int = 0
    patience: int | None = None
    bfloat16: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class Recovery:
    """What training gave. Losses are those of training, on held-out text, in nats per token.

    Attributes:
        start: the loss before training.
        best: the loss at the best evaluation, never above `start`.
        best_step: its step; 0 when nothing was better than `start`.
        steps, tokens: steps that were planned, and tokens that were trained on.
        history: (step, loss) of every evaluation with a finite loss.
        diverged_at: the step at which a loss was not finite and training ended, or None.
    """

    start: float
    best: float
    best_step: int
    steps: int
    tokens: int
    history: list[tuple[int, float]]
    diverged_at: int | None = None


class _Student(nn.Module):
    """The model as the Trainer sees it: it maps token ids to a loss, and its state holds only the adapters."""

    _keys_to_ignore_on_save = None  # the Trainer asks, when it finds no frozen weights in a checkpoint

    def __init__(
        self, model: Any, teacher: Teacher | None, distillation: float, judge: Teacher | None = None
    ) -> None:  # `judge` answers to held-out text, as `teacher` does to training text
        super().__init__()
        self.model, self.distillation = model, distillation
        self._teachers = [judge, teacher]  # a list: no part of the module

    def forward(
        self, input_ids: torch.Tensor, number: torch.Tensor, return_loss: bool = True
    ) -> dict[str, torch.Tensor]:  # `return_loss` tells the Trainer that a batch without labels has a loss
        states = self.model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        wanted = input_ids[:, 1:].flatten()
        teacher = self._teachers[self.training]
        share = self.distillation if teacher else 0.0
        divergence = teacher(input_ids, number) if teacher and share else None

        def loss(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            if divergence and share == 1:
                return divergence(logits, rows)
            text = (1 - share) * nn.functional.cross_entropy(logits.float(), wanted[rows], reduction="sum")
            return text + share * divergence(logits, rows) if divergence else text

        value, gradient = head_gradient(self.model, states, loss, self.training)
        # This sum has the value of the loss, and `gradient` as its gradient.
        carrier = (states * gradient).sum()
        return {"loss": value + (carrier - carrier.detach())}

    def state_dict(self, *args: Any, **keywords: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}


class _Watch(TrainerCallback):
    """Reports progress, and stops when a loss is not finite: training cannot recover from that."""

    def __init__(self, progress: Progress, start: float) -> None:
        self.progress, self.loss, self.heldout = progress, math.nan, start

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        self.loss, self.heldout = logs.get("loss", self.loss), logs.get("eval_loss", self.heldout)
        self.progress(state.global_step, self.loss, self.heldout)
        if not _finite(logs):
            control.should_training_stop = True


def _finite(logs: Mapping[str, float]) -> bool:
    """Whether the losses in an entry of the Trainer's log are finite."""
    return all(math.isfinite(logs[name]) for name in ("loss", "eval_loss") if name in logs)


class _Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, windows: torch.Tensor) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[index], "number": torch.tensor(index)}


def steps_of(training: Training, window: int) -> int:
    """Optimizer steps of a run over windows of `window` tokens.

    >>> steps_of(Training(tokens=10_000, batch=2, learning_rate=1e-3, distillation=1.0), window=256)
    19
    """
    return training.tokens // (training.batch * window)


def evaluations_of(training: Training, windows: int, steps: int) -> int:
    """How often a run is judged on so many held-out windows: less often where that would take as long as training.

    A step takes four passes of each of its windows: forward, twice backward, and the teacher's. Patience needs all.

    >>> short = Training(tokens=65_536, batch=2, learning_rate=1e-4, distillation=1.0)
    >>> [evaluations_of(short, windows=40, steps=steps) for steps in (16, 128, 1000)]
    [2, 3, 8]
    """
    fewest, most = EVALUATIONS
    if training.patience:
        return most
    return min(max(int(JUDGING * 4 * steps * training.batch / windows), fewest), most)


def train(
    model: Any,
    teacher: Teacher | None,
    windows: torch.Tensor,
    heldout: Heldout,
    training: Training,
    work: Path,
    progress: Progress = lambda step, loss, heldout: None,
    start: float | None = None,
) -> Recovery:
    """Train the parameters of `model` that require gradients, in place, and leave them at their best held-out loss.

    Args:
        model: a transformers causal LM.
        teacher: for the share `training.distillation` of the loss; None where that is 0.
        windows: token ids [n, window]; reused over epochs when `tokens` asks for more.
        heldout: decides what is kept, by the loss of training. Its windows must not be in `windows`.
        work: folder of checkpoints. A run that finds its own checkpoints there goes on from the last.
        progress: called after every step.
        start: the held-out loss of `model` as it is, where that is known already.

    The held-out loss at the end is never above that at the start. If the latter is not finite, nothing is trained.
    Raises SaapError when `batch` cannot be shared out over the processes of a launch.
    """
    start = heldout.measure(model).loss(training.distillation) if start is None else start
    steps = steps_of(training, windows.shape[1])
    if steps == 0 or not math.isfinite(start):
        return Recovery(start, start, 0, 0, 0, [(0, start)])
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    finished = work / FINISHED
    if not finished.is_file():
        _run(model, teacher, windows, heldout, training, steps, _Watch(progress, start), work)
        gc.collect()  # mixed precision leaves the student, and so the model, in a cycle with its own forward
        give_back()
    state = TrainerState.load_from_json(str(finished))
    return _judge(model, state, start, before, windows.shape[1] * training.batch, steps)


def _run(
    model: Any, teacher: Teacher | None, windows: torch.Tensor, heldout: Heldout, training: Training, steps: int,
    watch: TrainerCallback, work: Path,
) -> None:  # fmt: skip
    """Train to the end, from the last checkpoint if there is one, and write the Trainer's state to FINISHED."""
    student = _Student(model, teacher, training.distillation, heldout.answers)
    ignore_frozen(student)
    callbacks = [watch, *([EarlyStoppingCallback(training.patience)] if training.patience else [])]
    transformers_logging.set_verbosity_error()
    every = -(-steps // evaluations_of(training, len(heldout.windows), steps))  # the last step is judged anyhow
    trainer = Trainer(
        model=student, args=_arguments(training, steps, every, work), train_dataset=_Windows(windows),
        eval_dataset=_Windows(heldout.windows), callbacks=callbacks,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    with checkpointed(model, training.checkpointing), short_attention(model):
        trainer.train(resume_from_checkpoint=_last_whole(work))
    model.eval()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(work / FINISHED))
    trainer.accelerator.wait_for_everyone()  # the others read the file that the first process writes


def _judge(
    model: Any, state: Any, start: float, before: Mapping[str, torch.Tensor], tokens_a_step: int, steps: int
) -> Recovery:
    """Put back the best parameters, or those of the start if nothing was better."""
    logs = state.log_history
    history = [(int(log["step"]), float(log["eval_loss"])) for log in logs if "eval_loss" in log and _finite(log)]
    diverged_at = next((int(log["step"]) for log in logs if not _finite(log)), None)
    best, step = state.best_metric, int(state.best_global_step or 0)
    if best is None or not best < start:
        best, step = start, 0
    kept = load_file(Path(state.best_model_checkpoint) / "model.safetensors") if step else before
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(kept[f"model.{name}" if step else name])
    tokens = state.global_step * tokens_a_step
    return Recovery(start, best, step, steps, tokens, [(0, start), *history], diverged_at)


def _arguments(training: Training, steps: int, every: int, work: Path) -> TrainingArguments:
    """Settings of transformers' Trainer, which evaluates and writes a checkpoint `every` so many steps."""
    gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(work), max_steps=steps, learning_rate=training.learning_rate, lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20), max_grad_norm=1.0, weight_decay=0.0, seed=training.seed,
        bf16=training.bfloat16, logging_strategy="steps", logging_steps=1, logging_nan_inf_filter=False,
        eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=2,
        metric_for_best_model="eval_loss", greater_is_better=False, prediction_loss_only=True, label_names=[],
        report_to=[], disable_tqdm=True, use_cpu=not gpu, remove_unused_columns=False, dataloader_num_workers=0,
        dataloader_pin_memory=gpu, ddp_broadcast_buffers=False, ddp_find_unused_parameters=False,
    )  # fmt: skip
    processes = arguments.world_size
    if training.batch % processes:
        raise SaapError(f"recover.batch {training.batch} cannot be shared out over {processes} processes")
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = training.batch // processes
    # Several GPUs in one process would be nn.DataParallel: use them through `accelerate launch`.
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


def _last_whole(work: Path) -> str | None:
    """The last complete checkpoint (its state file is written last); incomplete ones are removed."""
    for path in work.glob("checkpoint-*"):
        if not (path / "trainer_state.json").is_file():
            shutil.rmtree(path, ignore_errors=True)
    return get_last_checkpoint(str(work)) if work.is_dir() else None
