"""Scoring: one forward and backward pass per calibration batch, reduced to one figure per structure on the fly.

Every parameter's gradient is reduced and freed as soon as it is ready. So memory peaks at weights + activations + one
parameter's gradient, not weights + all gradients. Activation metrics come from the same pass. Logits would be the
largest activation of a model with a large vocabulary, so they exist for a few tokens at a time. docs/scale.md has
figures. A layer's figures are computed on the layer's own device, wherever that is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from saap_edge.errors import SaapError
from saap_edge.machine.memory import give_back
from saap_edge.model.arithmetic import Precision, multiplied, uses_bfloat16
from saap_edge.model.checkpointing import checkpointed
from saap_edge.model.folder import spec_of
from saap_edge.model.head import next_token_gradient
from saap_edge.model.spec import LayerShape
from saap_edge.pruning.importance import column_importance, gradient_sums, per_structure, weight_sums
from saap_edge.pruning.shares import ALONE, Share
from saap_edge.pruning.space import shape_widths
from saap_edge.pruning.surgery import output_projections

__all__ = [
    "KINDS", "SUBLAYERS", "VIEWS", "Scores", "load_scores", "next_token_gradient", "save_scores", "score_model",
]  # fmt: skip

KINDS = ("attention", "slots", "ffn")  # kv groups, query slots, FFN channels
SUBLAYERS = ("attention", "ffn")  # each has one output projection, o_proj or down_proj
VIEWS = ("vector", "element", "wanda", "flap", "magnitude")


@dataclass(frozen=True)
class Scores:
    """Importance per calibration batch. It is saved, so that planning again needs no model.

    Attributes:
        values: `[layer][kind]` float32 [views, B, structures], views in the order of VIEWS.
        shapes: dense widths, one a layer.
        calibration: conditions of the run (text hash, window, ...).
        fisher: `[layer][sublayer]` float32 [hidden], mean over tokens of the squared gradient of the summed loss at the
            output of o_proj or down_proj, in nats^2, of the sublayers that a layer has.
        influence: float32 [layers], ShortGPT's 1 - cos(input, output) of a layer (arXiv 2403.03853).
    """

    values: list[dict[str, np.ndarray]]
    shapes: list[LayerShape]
    hidden: int
    head_dim: int
    calibration: dict[str, Any]
    fisher: list[dict[str, np.ndarray]] = field(default_factory=list)
    influence: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    def view(self, layer: int, kind: str, name: str) -> np.ndarray:
        """One view of one sublayer's structures, [B, structures]."""
        view: np.ndarray = self.values[layer][kind][VIEWS.index(name)]
        return view


def score_model(
    model: Any,
    batches: list[torch.Tensor],
    calibration: dict[str, Any],
    progress: Callable[[], None] = lambda: None,
    *,
    second_order: bool = False,
    running_fisher: bool = False,
    checkpointing: bool = False,
    precision: Precision = "float32",
    share: Share = ALONE,
) -> Scores:
    """Score every KV group, query slot and FFN channel of a dense model.

    Args:
        model: a transformers causal LM of a supported family, in evaluation mode; its weights are not changed.
        batches: token ids, each [sequences, window]; at least 2.
        calibration: conditions kept beside the scores (text hash, window, ...).
        progress: called after every batch of this process.
        second_order: use the second-order term in the vector-wise metric too.
        running_fisher: the diagonal Fisher is the mean over all batches so far, not the batch's own. This costs a
            float32 copy of the projections (4 bytes a parameter, whatever the model's dtype).
        checkpointing: recompute activations in the backward pass: less memory, a fifth more time.
        precision: of matrix products (model/arithmetic.py); sums over gradients are float32.
        share: the batches of this process. All processes get the scores of all batches: figures of a batch as one
            process computes them, sums over batches in another order.

    Raises SaapError, in every process, when the loss is not finite.
    """
    if running_fisher and share.count > 1:
        raise SaapError("score.running_fisher goes from one batch to the next: score in one process")
    spec = spec_of(model)
    values = [
        {kind: np.zeros((len(VIEWS), len(batches), n), dtype=np.float32) for kind, n in shape_widths(shape).items()}
        for shape in spec.layers
    ]
    watch = _Watch(model, spec, values, second_order, running_fisher)
    losses = np.zeros(len(batches))
    decoded, lost = multiplied(precision, model.model), multiplied(precision, next_token_gradient)
    with watch.attached(), checkpointed(model, checkpointing):
        for number in share.of(len(batches)):
            batch = batches[number]
            watch.start(number)
            tokens = batch.to(model.get_input_embeddings().weight.device)
            states = decoded(input_ids=tokens, use_cache=False).last_hidden_state
            watch.finish(batch)
            loss, gradient = lost(model, states.detach(), tokens)
            losses[number] = loss
            if not np.isfinite(loss):
                break
            states.backward(gradient)
            del states, gradient
            if not uses_bfloat16(precision):  # there it would save as much, of less, and take an eighth of the time
                give_back()
            progress()
    _require_finite(share.summed(losses))
    predicted = sum(batch[:, 1:].numel() for batch in batches)
    fisher = [
        {name: share.summed(total.cpu().numpy()) / predicted for name, total in layer.items()} for layer in watch.fisher
    ]
    influence = share.summed(np.array(watch.influence, dtype=np.float32)) / len(batches)
    values = [{kind: _of_all(share, figures) for kind, figures in layer.items()} for layer in values]
    return Scores(values, list(spec.layers), spec.hidden, spec.head_dim, calibration, fisher, influence)


def _require_finite(losses: np.ndarray) -> None:
    for number, loss in enumerate(losses):
        if not np.isfinite(loss):
            raise SaapError(f"the loss on calibration batch {number} is {loss}: the model or text is broken")


def _of_all(share: Share, figures: np.ndarray) -> np.ndarray:
    """Figures [views, B, structures] of the batches of all processes. Magnitude, which no batch changes, each has."""
    summed = share.summed(figures)
    magnitude = VIEWS.index("magnitude")
    summed[magnitude] = figures[magnitude]
    return summed


class _Watch:
    """The hooks of one scoring run and what they collect."""

    def __init__(
        self, model: Any, spec: Any, values: list[dict[str, np.ndarray]], second_order: bool, running_fisher: bool
    ) -> None:
        self.model, self.spec, self.values = model, spec, values
        self.second_order, self.running_fisher = second_order, running_fisher
        self.curvature: dict[int, torch.Tensor] = {}
        self.fisher = [
            {
                name: torch.zeros(spec.hidden, device=module.weight.device)
                for name, module in output_projections(layer).items()
            }
            for layer in model.model.layers
        ]
        self.influence = [0.0 for _ in spec.layers]
        self.number, self.forward, self.predicted = 0, False, 1
        self.sums: dict[tuple[int, str], torch.Tensor] = {}
        self.columns: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]] = {}
        self._weigh()

    @torch.no_grad()
    def _weigh(self) -> None:
        """Compute what depends on weights alone: magnitude, equal for every batch, and sums over output columns."""
        for index, layer in enumerate(self.model.model.layers):
            for sublayer, parameter, columns, shared in _coupled(layer, self.spec):
                absolute, square = weight_sums(parameter, columns)
                self._add(index, sublayer, "magnitude", absolute, slice(None), shared=shared)
                if columns:
                    self.columns[index, sublayer] = absolute, square

    def start(self, number: int) -> None:
        """Begin a batch: forward hooks count until `finish`, as checkpointing runs them again in the backward pass."""
        self.number, self.forward, self.sums = number, True, {}

    def finish(self, batch: torch.Tensor) -> None:
        """End the forward pass: compute the batch's activation metrics."""
        self.forward, self.predicted = False, batch[:, 1:].numel()
        for (index, sublayer), sums in self.sums.items():
            mean, square = sums / batch.numel()
            columns = column_importance(*self.columns[index, sublayer], mean, square)
            for view, figures in columns.items():
                self._add(index, sublayer, view, figures, self.number)
        self.sums = {}

    def _add(
        self, index: int, sublayer: str, view: str, sums: torch.Tensor, batch: int | slice,
        signed: bool = False, shared: bool = False,
    ) -> None:  # fmt: skip
        """Add sums over the rows or columns of a module to its structures: `signed` ones by absolute value."""
        shape = self.spec.layers[index]
        for kind, outer in _slicing(sublayer, shape, shared):
            figure = per_structure(sums, shape_widths(shape)[kind], outer)
            figure = figure.abs() if signed else figure
            self.values[index][kind][VIEWS.index(view), batch] += figure.cpu().numpy()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Let only coupled parameters have gradients, each reduced and then dropped. Leaving undoes all hooks."""
        wanted = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        with ExitStack() as handles:
            for parameter in self.model.parameters():
                parameter.requires_grad_(False)
            for index, layer in enumerate(self.model.model.layers):
                handles.callback(layer.register_forward_hook(self._influence(index)).remove)
                for name, module in output_projections(layer).items():
                    handles.callback(module.register_forward_hook(self._activation(index, name)).remove)
                for sublayer, parameter, columns, shared in _coupled(layer, self.spec):
                    parameter.requires_grad_(True)
                    hook = self._gradient(index, sublayer, columns, shared)
                    handles.callback(parameter.register_post_accumulate_grad_hook(hook).remove)
            try:
                yield
            finally:
                for name, parameter in self.model.named_parameters():
                    parameter.requires_grad_(wanted[name])

    def _gradient(self, index: int, sublayer: str, columns: bool, shared: bool) -> Callable[[torch.Tensor], None]:
        def reduce(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            parameter.grad = None
            fisher = self._running(parameter, gradient)
            vector, element = gradient_sums(parameter.detach(), gradient, columns, fisher, self.second_order)
            self._add(index, sublayer, "vector", vector, self.number, signed=True, shared=shared)
            self._add(index, sublayer, "element", element, self.number, shared=shared)

        return reduce

    def _running(self, parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor | None:
        if not self.running_fisher:
            return None
        if id(parameter) not in self.curvature:
            self.curvature[id(parameter)] = torch.zeros_like(gradient, dtype=torch.float32)
        wide, count = gradient.float(), self.number + 1
        return self.curvature[id(parameter)].mul_(self.number / count).addcmul_(wide, wide, value=1 / count)

    def _activation(self, index: int, name: str) -> Callable[..., None]:
        def collect(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not self.forward:
                return
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            square = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float32).square()
            self.sums[index, name] = torch.stack([rows.sum(0, dtype=torch.float32), square])
            output.register_hook(self._output_gradient(index, name))

        return collect

    def _output_gradient(self, index: int, name: str) -> Callable[[torch.Tensor], None]:
        def collect(gradient: torch.Tensor) -> None:
            # The loss is a mean over predicted tokens; the curvature is that of their sum.
            norm = torch.linalg.vector_norm(gradient.reshape(-1, gradient.shape[-1]), dim=0, dtype=torch.float32)
            self.fisher[index][name] += (norm * self.predicted).square()

        return collect

    def _influence(self, index: int) -> Callable[..., None]:
        def collect(module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            if self.forward:
                after = output[0] if isinstance(output, tuple) else output
                # With layers spread over GPUs, the input may still be on the GPU of the layer before.
                before = inputs[0].detach().to(after.device)
                similar = torch.nn.functional.cosine_similarity(before, after.detach(), dim=-1)
                self.influence[index] += float(1 - similar.float().mean())

        return collect


def _coupled(layer: Any, spec: Any) -> Iterator[tuple[str, torch.nn.Parameter, bool, bool]]:
    """(sublayer, parameter, sliced by columns, shared) for the projections that surgery cuts in a layer.

    Biases are rows. `shared`: one part a KV group or key head (`Coupling.shared`).
    """
    for coupling, name in spec.family.projections(layer):
        sublayer = "ffn" if coupling == spec.family.ffn else "attention"
        module, columns, shared = layer.get_submodule(name), name in coupling.columns, name in coupling.shared
        yield sublayer, module.weight, columns, shared
        if module.bias is not None and not columns:
            yield sublayer, module.bias, columns, shared


def _slicing(sublayer: str, shape: LayerShape, shared: bool) -> list[tuple[str, int]]:
    """Kinds of structures on an axis, with their `outer` for `per_structure`: what is not shared holds slots too."""
    if sublayer == "ffn":
        return [("ffn", 1)]
    return [("attention", 1)] if shared else [("attention", 1), ("slots", shape.kv_heads)]


def save_scores(scores: Scores, folder: Path) -> None:
    """Write scores.safetensors (layers.N.kind, [views, B, structures]) and scores.json (shapes and conditions)."""
    arrays = {f"layers.{i}.{kind}": layer[kind] for i, layer in enumerate(scores.values) for kind in KINDS}
    arrays |= {
        f"fisher.{i}.{name}": figures for i, layer in enumerate(scores.fisher) for name, figures in layer.items()
    }
    save_file(arrays | {"influence": scores.influence}, folder / "scores.safetensors")
    document = {
        "views": VIEWS,
        "hidden": scores.hidden,
        "head_dim": scores.head_dim,
        "layers": [asdict(shape) for shape in scores.shapes],
        "calibration": scores.calibration,
    }
    (folder / "scores.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def load_scores(folder: Path) -> Scores:
    """Read what `save_scores` wrote. Raises SaapError when it is missing or damaged."""
    try:
        document = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "scores.safetensors")
        shapes = [LayerShape(**layer) for layer in document["layers"]]
        layers = range(len(shapes))
        values = [{kind: arrays[f"layers.{i}.{kind}"] for kind in KINDS} for i in layers]
        names = [[name for name in SUBLAYERS if (shape.ffn if name == "ffn" else shape.heads)] for shape in shapes]
        fisher = [{name: arrays[f"fisher.{i}.{name}"] for name in names[i]} for i in layers]
        hidden, head_dim, conditions = document["hidden"], document["head_dim"], document["calibration"]
        return Scores(values, shapes, hidden, head_dim, conditions, fisher, arrays["influence"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise SaapError(f"'{folder}' holds no readable scores ({error}): run `saap-edge score` first") from None
