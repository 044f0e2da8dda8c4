"""A model of any widths in the bank, without surgery, and how far its answers are from the dense model's.

Only output projections are swapped. Plans that a search compares differ in a layer or two, so states that went into a
layer are kept, and the next plan starts at the first layer in which it differs from one that was run before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from saap_edge.model.arithmetic import Precision, multiplied
from saap_edge.model.head import logits_of
from saap_edge.model.stream import attention_branch, ffn_branch, layer_arguments, layer_inputs
from saap_edge.pruning.bank import Bank
from saap_edge.pruning.settings import GLANCE
from saap_edge.pruning.space import Space, Widths
from saap_edge.pruning.surgery import output_columns, output_projections

__all__ = ["Assembly"]

REFERENCE_ELEMENTS = 1 << 26  # probabilities of the dense model held for comparison
STATES = 1 << 26  # bytes of states that each panel keeps
ROWS = 256  # tokens whose logits are held at a time


class Assembly:
    """The dense model with sublayers swapped for the bank's: any plan in the bank.

    Use as a context; on leaving it the model is dense again. `windows` are token ids [n, window]; as many as keep the
    dense model's probabilities within memory are used. They form two panels, of GLANCE windows and of the rest, so
    that a plan that is bad on the first need not be run on the second.
    """

    def __init__(
        self, model: Any, bank: Bank, space: Space, windows: torch.Tensor, precision: Precision = "float32"
    ) -> None:
        self.model, self.bank, self.space, self.precision = model, bank, space, precision
        vocabulary = model.config.get_text_config().vocab_size
        self.windows = windows[: max(1, REFERENCE_ELEMENTS // (windows.shape[1] * vocabulary))]
        self._dense: dict[tuple[int, str], torch.Tensor] = {}
        self._now: dict[tuple[int, str], tuple[int, ...]] = {}

    def __enter__(self) -> Assembly:
        for index, layer in enumerate(self.model.model.layers):
            for sublayer, module in output_projections(layer).items():
                self._dense[index, sublayer] = module.weight.detach().clone()
        self._arguments = layer_arguments(self.model, self.windows)
        pieces = (self.windows[:GLANCE], self.windows[GLANCE:])
        self._panels = [_Panel(self.model, piece) for piece in pieces if len(piece)]
        for panel in self._panels:
            panel.refer(self._logits(panel, self.space.dense()))
        return self

    def __exit__(self, *error: object) -> None:
        for (index, sublayer), weight in self._dense.items():
            self._module(index, sublayer).weight.data.copy_(weight)

    def _module(self, index: int, sublayer: str) -> Any:
        return output_projections(self.model.model.layers[index])[sublayer]

    def divergence(self, widths: Widths) -> float:
        """KL(dense || plan) in nats per token."""
        return self.rest(widths, self.glance(widths))

    def glance(self, widths: Widths) -> float:
        """The same on the first panel alone."""
        return self._on(self._panels[0], widths)

    def rest(self, widths: Widths, glance: float) -> float:
        """The divergence on all windows, from that on the first panel."""
        first, total = self._panels[0].tokens, sum(panel.tokens for panel in self._panels)
        others = sum(panel.tokens * self._on(panel, widths) for panel in self._panels[1:])
        return (first * glance + others) / total

    def _on(self, panel: _Panel, widths: Widths) -> float:
        value = panel.divergence(self._logits(panel, widths))
        return value if value < float("inf") else float("inf")  # NaN too

    def _logits(self, panel: _Panel, widths: Widths) -> Iterator[torch.Tensor]:
        """Logits of a plan, float32 [tokens, vocabulary], ROWS tokens at a time."""
        head = multiplied(self.precision, logits_of)
        return (head(self.model, rows) for rows in self._states(panel, widths).split(ROWS))

    @torch.no_grad()
    def _states(self, panel: _Panel, widths: Widths) -> torch.Tensor:
        """What the head takes, [tokens, hidden]."""
        plan = [tuple(sorted(layer.items())) for layer in widths]
        first, state = panel.states.longest(plan)
        layers = self.model.model.layers
        for index in range(first, len(layers)):
            for sublayer in output_projections(layers[index]):
                self._set(index, sublayer, widths[index])
            state = state.to(next(layers[index].parameters()).device)
            panel.states.keep(plan[:index], state)
            given = layers[index], self._arguments[index]
            for branch in (attention_branch(*given), ffn_branch(*given)):
                state = state + multiplied(self.precision, branch)(state)
        normed: torch.Tensor = self.model.model.norm(state[..., : self.model.config.get_text_config().hidden_size])
        return normed.flatten(0, 1)

    def _set(self, index: int, sublayer: str, layer: dict[str, int]) -> None:
        width = (layer["ffn"],) if sublayer == "ffn" else (layer["attention"], layer["slots"])
        if self._now.get((index, sublayer)) == width:
            return
        module, dense = self._module(index, sublayer), self._dense[index, sublayer]
        columns = output_columns(self.model.model.layers[index], sublayer, self.bank.kept(index, layer))
        if len(columns) == dense.shape[1]:
            module.weight.data.copy_(dense)
        else:
            module.weight.data.zero_()
            if len(columns):
                stored = self.bank.weight(index, sublayer, width).to(dense.device)
                module.weight.data.index_copy_(1, columns.to(dense.device), stored)
        self._now[index, sublayer] = width


class _Panel:
    """Some windows, the dense model's answers to them, and states that plans left on the way."""

    def __init__(self, model: Any, windows: torch.Tensor) -> None:
        self.tokens = windows.numel()
        self.states = _States(torch.cat(layer_inputs(model, windows)), len(model.model.layers))
        self._probabilities: list[torch.Tensor] = []
        self._negative_entropy = 0.0

    @torch.no_grad()
    def refer(self, logits: Iterable[torch.Tensor]) -> None:
        """Take these as the dense model's answers."""
        for piece in logits:
            logs = piece.log_softmax(-1)
            self._probabilities.append(logs.exp())
            self._negative_entropy += float(torch.linalg.vecdot(self._probabilities[-1], logs).double().sum())

    @torch.no_grad()
    def divergence(self, logits: Iterable[torch.Tensor]) -> float:
        """KL(dense || these) in nats per token: sum p log p - sum p l + log sum exp l."""
        total = self._negative_entropy
        for probabilities, piece in zip(self._probabilities, logits, strict=True):
            row = torch.logsumexp(piece, -1) - torch.linalg.vecdot(probabilities, piece)
            total += float(row.double().sum())
        return total / self.tokens


class _States:
    """States that went into layers, by the widths of the layers before; the least used ones are forgotten."""

    def __init__(self, embedded: torch.Tensor, layers: int) -> None:
        self.embedded = embedded
        size = embedded.numel() * embedded.element_size()
        self.count = max(1, STATES // size)
        self.stride = max(1, -(-4 * layers // self.count))  # a plan may take a quarter of the room
        self._kept: OrderedDict[tuple[Any, ...], torch.Tensor] = OrderedDict()

    def longest(self, plan: list[Any]) -> tuple[int, torch.Tensor]:
        """The layer to begin with, and what goes into it."""
        for index in range(len(plan) - 1, 0, -1):
            key = tuple(plan[:index])
            if key in self._kept:
                self._kept.move_to_end(key)
                return index, self._kept[key]
        return 0, self.embedded

    def keep(self, before: list[Any], state: torch.Tensor) -> None:
        if before and len(before) % self.stride == 0:
            self._kept[tuple(before)] = state
            self._kept.move_to_end(tuple(before))
            while len(self._kept) > self.count:
                self._kept.popitem(last=False)
