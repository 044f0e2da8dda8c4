"""Group fine-tuning: train adapters through the export's own blocks, distilling from the dense model; keep the best."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from saap_edge.evaluate.perplexity import perplexity
from saap_edge.families import Family
from saap_edge.recover.quantiser import GroupLinear

__all__ = ["Recovery", "in_blocks", "merge", "train_adapters"]


@dataclass(frozen=True)
class Recovery:
    """What training gave. Losses are held-out negative log-likelihoods in nats per token.

    `student` is the model in 4-bit blocks, at its best; `start` and `best` are its losses before training and at the
    best evaluation (never above `start`); `best_step` is 0 when nothing better was found.
    """

    student: Any
    start: float
    best: float
    best_step: int
    steps: int
    tokens: int
    history: list[tuple[int, float]]


def in_blocks(model: Any, family: Family, rank: int = 1) -> Any:
    """A copy of `model` whose projections run in 4-bit blocks (untrained: round to nearest), all else frozen."""
    student = copy.deepcopy(model)
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for layer in student.model.layers:
        for _, name in family.projections(layer):
            parent, _, leaf = name.rpartition(".")
            owner = layer.get_submodule(parent)
            setattr(owner, leaf, GroupLinear(getattr(owner, leaf), rank))
    return student


@torch.no_grad()
def merge(student: Any, model: Any) -> None:
    """Write the adapters' full-precision weights w0 + B A into `model`, in place."""
    for name, module in student.named_modules():
        if isinstance(module, GroupLinear):
            weight = module.merged()[:, : module.inputs]
            target = model.get_submodule(name).weight
            target.copy_(weight.to(target.dtype))


class _Distiller(Trainer):
    """Cross-entropy mixed with the divergence from the dense model's next-token distribution."""

    def __init__(self, *args: Any, teacher: Any, distillation: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.distillation = teacher, distillation

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
    ) -> Any:
        ids = inputs["input_ids"]
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
        loss = (1 - self.distillation) * nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        if self.distillation > 0:
            with torch.no_grad():
                target = self.teacher(input_ids=ids, use_cache=False).logits[:, :-1].float().flatten(0, 1)
            divergence = nn.functional.kl_div(
                logits.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean"
            )
            loss = loss + self.distillation * divergence
        return (loss, None) if return_outputs else loss


class _KeepBest(TrainerCallback):
    """Measures held-out loss at intervals and holds the best adapters in memory; stops when the loss is not finite."""

    def __init__(self, student: Any, heldout: torch.Tensor, every: int, progress: Callable[[int, float], None]) -> None:
        self.student, self.heldout, self.every, self.progress = student, heldout, every, progress
        self.start = self.best = perplexity(student, heldout).nll
        self.best_step, self.history = 0, [(0, self.start)]
        self.adapters = self._adapters()

    def _adapters(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.student.named_parameters() if p.requires_grad}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            loss = perplexity(self.student, self.heldout).nll
            self.history.append((state.global_step, loss))
            if loss < self.best:
                self.best, self.best_step, self.adapters = loss, state.global_step, self._adapters()
            if not math.isfinite(loss):
                control.should_training_stop = True
        self.progress(state.global_step, self.history[-1][1])

    @torch.no_grad()
    def restore(self) -> None:
        for name, parameter in self.student.named_parameters():
            if name in self.adapters:
                parameter.copy_(self.adapters[name])


class _Windows(torch.utils.data.Dataset):
    def __init__(self, windows: torch.Tensor) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[index]}


def train_adapters(
    dense: Any,
    student: Any,
    windows: torch.Tensor,
    heldout: torch.Tensor,
    *,
    tokens: int,
    batch: int,
    learning_rate: float,
    distillation: float,
    seed: int,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Recovery:
    """Train `student` (from `in_blocks`) in place and leave it at its best held-out loss.

    Args:
        dense: the teacher, evaluation mode.
        windows: training token ids [n, window]; reused over epochs when `tokens` asks for more.
        heldout: token ids [m, window] that decide what is kept. They must not be in `windows`.
        tokens: training budget; rounded down to whole batches.
        distillation: share of the divergence from `dense` in the loss, 0 to 1; the rest is cross-entropy.
        progress: called with (step, latest held-out loss).

    The returned held-out loss is never above the start's.
    """
    steps = tokens // (batch * windows.shape[1])
    watcher = _KeepBest(student, heldout, max(1, steps // 8), progress)
    if steps > 0:
        with tempfile.TemporaryDirectory() as scratch:
            arguments = TrainingArguments(
                output_dir=scratch, max_steps=steps, per_device_train_batch_size=batch, learning_rate=learning_rate,
                lr_scheduler_type="cosine", warmup_steps=max(1, steps // 20), max_grad_norm=1.0, weight_decay=0.0,
                logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True, seed=seed,
                use_cpu=not torch.cuda.is_available(), remove_unused_columns=False, dataloader_num_workers=0,
                dataloader_pin_memory=torch.cuda.is_available(),
            )  # fmt: skip
            transformers_logging.set_verbosity_error()
            trainer = _Distiller(
                model=student, args=arguments, train_dataset=_Windows(windows), callbacks=[watcher],
                teacher=dense, distillation=distillation,
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    watcher.restore()
    student.eval()
    done = watcher.history[-1][0]
    return Recovery(
        student, watcher.start, watcher.best, watcher.best_step, steps, done * batch * windows.shape[1], watcher.history
    )
