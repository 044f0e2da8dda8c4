"""What stands in the place of attention in some models, and remembers a text in states of one size."""

from __future__ import annotations

from dataclasses import dataclass

from saap_edge.documents.plan import LayerShape

__all__ = ["DeltaNet", "Mamba", "head_width"]


@dataclass(frozen=True)
class DeltaNet:
    """What all gated DeltaNets of a model have: the sizes of a head's keys and values, and the taps of a convolution.

    Queries, keys and values pass a short convolution, each channel alone. A value head has a state of keys x values.
    """

    keys: int
    values: int
    taps: int

    def state(self, layer: LayerShape) -> int:
        """Numbers that a layer remembers of a text of any length: the last `taps` - 1 tokens, and the states of heads.

        >>> DeltaNet(keys=128, values=128, taps=4).state(LayerShape(heads=32, kv_heads=16, ffn=9216, linear=True))
        548864
        """
        channels = 2 * layer.kv_heads * self.keys + layer.heads * self.values
        return (self.taps - 1) * channels + layer.heads * self.keys * self.values

    def weights(self, layer: LayerShape, hidden: int) -> int:
        """Weights of a layer's projections."""
        return hidden * (2 * layer.kv_heads * self.keys + layer.heads * (3 * self.values + 2))


@dataclass(frozen=True)
class Mamba:
    """What all Mamba-2 blocks of a model have, which no pruning cuts.

    A head has `width` channels and a state of `width` x `states`. Each of the `groups` of heads shares what is written
    to its states and read from them; both pass a short convolution with the channels.
    """

    heads: int
    width: int
    states: int
    groups: int
    taps: int
    conv_bias: bool

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.heads * self.width

    @property
    def convolved(self) -> int:
        """Channels that pass the convolution."""
        return self.inner + 2 * self.groups * self.states

    @property
    def rows(self) -> int:
        """Rows of the projection that takes the block's input: gates, what is convolved, time steps of heads."""
        return self.inner + self.convolved + self.heads

    @property
    def state(self) -> int:
        """Numbers that a block remembers of a text of any length: the last `taps` - 1 tokens, and the states of heads.

        >>> Mamba(heads=128, width=64, states=128, groups=8, taps=4, conv_bias=True).state
        1079296
        """
        return (self.taps - 1) * self.convolved + self.inner * self.states

    def weights(self, hidden: int) -> int:
        """Weights of a block's projections."""
        return hidden * (self.rows + self.inner)


def head_width(layer: LayerShape, head_dim: int, delta: DeltaNet | None) -> int:
    """Inputs of a layer's output projection that a query head, or a DeltaNet's value head, has."""
    return delta.values if layer.linear and delta else layer.head_dim or head_dim
