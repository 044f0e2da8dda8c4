"""What hidden states of Gemma 4 carry beside them, so that its layers can be run one at a time as those of any model.

A layer reads more than the state before it: an embedding of its own for the token, and maybe the keys and values of an
earlier layer. So a state [windows, window, hidden] is wider here: behind the hidden size come the token's id, as three
digits to the base 256 (which bfloat16 holds exactly), and then, zeros at first, room for the keys and values of the
layers that lend them. Whatever adds to states adds these too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Beside", "is_gemma4", "widened"]

DIGITS, BASE = 3, 256


def is_gemma4(model: Any) -> bool:
    """Whether the model is our own class with Gemma 4's layers."""
    return bool(getattr(model.config, "is_gemma4", False))


def widened(model: Any, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The first layer's input [windows, window, hidden] with the ids of its tokens, and room for keys and values."""
    ids = tokens.to(state.device)
    digits = torch.stack([ids // BASE**power % BASE for power in range(DIGITS)], dim=-1).to(state.dtype)
    room = sum(2 * width for width in _lenders(model).values())
    return torch.cat([state, digits, state.new_zeros(*state.shape[:2], room)], dim=-1)


def _lenders(model: Any) -> dict[int, int]:
    """Layers whose keys and values others read: index -> numbers of a token's keys."""
    modes, layers = model.config.kv_sharing_modes, model.model.layers
    lend = [index for index, mode in enumerate(modes) if mode == "store" and "reuse" in modes]
    return {index: layers[index].self_attn.k_proj.weight.shape[0] for index in lend}


class Beside:
    """One layer of Gemma 4, run on such states. `index` is its place."""

    def __init__(self, model: Any, index: int) -> None:
        self.decoder, self.layer, self.index = model.model, model.model.layers[index], index
        self.hidden, kinds, modes = model.config.hidden_size, model.config.layer_types, model.config.kv_sharing_modes
        self.kind, self.mode = kinds[index], modes[index]
        self._place: tuple[int, int] | None = None  # where the keys that it lends or borrows are, and how many numbers
        start = self.hidden + DIGITS
        for lender, width in _lenders(model).items():
            if kinds[lender] == self.kind and (self.mode == "reuse" or lender == index):
                self._place = start, width
            start += 2 * width

    def attention(self, arguments: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        """As stream.py's `attention_branch`; what is lent is added too."""
        layer = self.layer

        def branch(state: torch.Tensor) -> torch.Tensor:
            shared = {self.kind: self._lent(state)} if self.mode == "reuse" else {}
            normed = layer.input_layernorm(state[..., : self.hidden])
            output = layer.self_attn(hidden_states=normed, shared_kv_states=shared, **arguments)[0]
            rest = torch.zeros_like(state[..., self.hidden :])
            if self.mode == "store" and self._place:
                start, width = self._place[0] - self.hidden, self._place[1]
                for at, part in enumerate(shared[self.kind]):
                    rest[..., start + at * width : start + (at + 1) * width] = part.transpose(1, 2).flatten(2)
            return self.attended(state, output, rest)

        return branch

    def attended(self, state: torch.Tensor, output: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """What attention adds to a state, given what o_proj gives, and what it adds behind the hidden size."""
        return torch.cat([self.layer.post_attention_layernorm(output), rest], dim=-1)

    def ffn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """As stream.py's `ffn_branch`, with what follows in the layer."""

        def branch(state: torch.Tensor) -> torch.Tensor:
            output = self.layer.mlp(self.layer.pre_feedforward_layernorm(state[..., : self.hidden]))
            return self.fed(state, output, torch.zeros_like(state[..., self.hidden :]))

        return branch

    def fed(self, state: torch.Tensor, output: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """What the FFN, the layer's own embedding and the layer's factor change, given what down_proj gives."""
        layer, before = self.layer, state[..., : self.hidden]
        after = before + layer.post_feedforward_layernorm(output)
        if layer.hidden_size_per_layer_input:
            own = layer.act_fn(layer.per_layer_input_gate(after)) * self._own(state)
            after = after + layer.post_per_layer_input_norm(layer.per_layer_projection(own))
        return torch.cat([after * layer.layer_scalar - before, rest], dim=-1)

    def _lent(self, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The keys and values that the layer borrows, each [windows, KV heads, window, numbers of a head]."""
        assert self._place
        start, width = self._place
        both = state[..., start : start + 2 * width].unflatten(-1, (2, -1, self.layer.self_attn.head_dim))
        return tuple(part.transpose(1, 2) for part in both.unbind(2))

    def _own(self, state: torch.Tensor) -> torch.Tensor:
        """The layer's embedding of the states' tokens [windows, window, its size]."""
        decoder, size = self.decoder, self.layer.hidden_size_per_layer_input
        place = slice(self.index * size, (self.index + 1) * size)
        digits = state[..., self.hidden : self.hidden + DIGITS].long()
        ids = sum(digits[..., power] * BASE**power for power in range(DIGITS)).to(decoder.embed_tokens.weight.device)
        table, matrix = decoder.embed_tokens_per_layer, decoder.per_layer_model_projection
        projected = torch.nn.functional.linear(decoder.embed_tokens(ids), matrix.weight[place])
        projected = decoder.per_layer_projection_norm(projected * decoder.per_layer_model_projection_scale)
        own = table.weight[:, place][ids] * table.embed_scale.to(table.weight.dtype)
        result: torch.Tensor = ((projected + own) * decoder.per_layer_input_scale).to(state.device)
        return result
