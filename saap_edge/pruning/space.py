"""What a plan may choose: the widths on the target's grid, the protected layers, and the cost of every width."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from saap_edge.documents.plan import Unit, Widths, shape_widths
from saap_edge.errors import SaapError
from saap_edge.formats import FORMATS, of_kind
from saap_edge.model.spec import DeltaNet, LayerShape, ModelSpec, head_width

__all__ = [
    "GRID", "HALF", "Cost", "Space", "Unit", "Widths", "block_grids", "kv_unit", "model_cost", "plain_cost",
    "shape_widths",
    "staying_weights",
]  # fmt: skip

GRID = 32  # block of Q4_0, Q8_0 and MatMulNBits: a tensor of another width would stay unquantised
_PLAIN = LayerShape(0, 0, 0)
HALF = 2  # bytes of a number that is in floats where all else is in blocks
_STATE = 4  # bytes of a number that a DeltaNet or Mamba-2 block remembers
SLACK = 0.002  # of the dense cost: missing a budget by so little beats overshooting it by a step of a coarse grid


def kv_unit(heads_per_group: int, head_dim: int, grid: int = GRID) -> int:
    """The least number of KV groups whose query heads together are a multiple of `grid` wide.

    >>> kv_unit(heads_per_group=3, head_dim=64), kv_unit(heads_per_group=1, head_dim=80, grid=32)
    (1, 2)
    """
    return next(count for count in range(1, grid + 1) if count * heads_per_group * head_dim % grid == 0)


def block_grids(spec: ModelSpec, grid: int, block: int) -> tuple[int, int]:
    """Grids (attention, FFN) on which pruned widths fill whole blocks of `block` (256 in K-quants) wherever dense do.

    A dense width that is not a multiple of the block has no tensor in such blocks anyway; its grid stays `grid`.
    """
    heads, ffn = max(spec.heads_width(layer) for layer in spec.layers), max(layer.ffn for layer in spec.layers)
    coarse = math.lcm(grid, block)
    return tuple(grid if width % block else coarse for width in (heads, ffn))  # type: ignore[return-value]


@dataclass(frozen=True)
class Cost:
    """What a model costs in the budget's unit: a fixed part, and figures per projection weight and per KV head.

    Attributes:
        unit: "parameters": attention and FFN weights. "bytes": of the whole file. "latency": predicted seconds to
            decode one token: bytes read (all weights once, the context's KV cache) over the target's bandwidth.
        queries: q and o shrink with their heads; not so in llama.cpp's files of models with convolutions.
        per_kv_head: of a KV head of the model's usual size.
        per_state: of a number that a DeltaNet remembers.
        gated, delta: as of the model's family and spec.
        matrices: of an FFN: gate, up and down, or the last two.
    """

    unit: Unit = "parameters"
    per_weight: float = 1.0
    per_kv_head: float = 0.0
    fixed: float = 0.0
    queries: bool = True
    per_state: float = 0.0
    gated: bool = False
    delta: DeltaNet | None = None
    matrices: int = 3

    def layer(self, shape: LayerShape, hidden: int, head_dim: int) -> float:
        """Cost of one layer's projections and KV cache.

        >>> Cost().layer(LayerShape(heads=4, kv_heads=2, ffn=128), hidden=64, head_dim=16)
        36864.0
        """
        if shape.linear and self.delta:
            weights = self.delta.weights(shape, hidden) + self.matrices * hidden * shape.ffn
            return self.per_weight * weights + (self.per_state * self.delta.state(shape) if shape.heads else 0.0)
        width, kv_heads = shape.head_dim or head_dim, shape.kv_heads * shape.caches
        rows = 2 * kv_heads + ((2 + self.gated) * shape.heads if self.queries else 0)
        weights = hidden * width * rows + self.matrices * hidden * shape.ffn
        return self.per_weight * weights + self.per_kv_head * kv_heads * width / head_dim


def plain_cost(spec: ModelSpec) -> Cost:
    """What counts weights of attention and FFN."""
    return Cost(gated=spec.family.gated, delta=spec.delta, matrices=2 if spec.family.ungated else 3)


def model_cost(
    spec: ModelSpec, unit: Unit, quantisation: str = "q4_0", context: int = 512, bandwidth: float = 1.0
) -> Cost:
    """The cost function of a unit for one model.

    Args:
        quantisation: type of the projections in GGUF. Embedding and head then have 8.5 bits a weight (16 in f16).
        context: tokens in the KV cache, 16 bits a number.
        bandwidth: of the target's memory, in bytes a second.

    Raises SaapError for an unknown quantisation.
    """
    plain = plain_cost(spec)
    if unit == "parameters":
        return plain
    record = FORMATS.get(f"gguf-{quantisation}")
    if record is None:
        known = ", ".join(format.quantisation for format in of_kind("gguf"))
        raise SaapError(f"quantisation '{quantisation}' is unknown (known: {known})")
    weight, numbers = (bits / 8 for bits in record.weight_bits(GRID))
    table, kept, queries = spec.vocab_size * spec.hidden * numbers, staying_weights(spec) * weight, not spec.taps
    kept += spec.per_layer_projection() * max(numbers, HALF)
    if unit == "bytes":
        fixed = table * (1 if spec.tied else 2) + kept + spec.per_layer_table() * numbers
        return replace(plain, unit="bytes", per_weight=weight, fixed=fixed, queries=queries)
    # Decoding reads the output matrix, and of an untied embedding a single row; and what Mamba-2 blocks remember.
    states = spec.mambas * spec.mamba.state * _STATE if spec.mamba else 0
    return replace(
        plain, unit="latency", per_weight=weight / bandwidth, per_kv_head=2 * spec.head_dim * 2 * context / bandwidth,
        fixed=(table + kept + states) / bandwidth, queries=queries, per_state=_STATE / bandwidth,
    )  # fmt: skip


def staying_weights(spec: ModelSpec, wide: bool = True) -> int:
    """Weights of layers that no pruning takes out of a file: of convolutions and Mamba-2, q and o beside convolutions,
    and what brings embeddings of their own to layers.

    These are so if they are `wide`, in GGUF (formats.py's `Kind.wide_queries`).
    """
    queries = sum(layer.heads > 0 for layer in spec.layers) * 2 * spec.hidden**2 if spec.taps and wide else 0
    return spec.mixer_weights() + queries + spec.per_layer_weights()


@dataclass(frozen=True)
class Space:
    """All plans that may be made of a dense model.

    Attributes:
        shapes: dense widths, one a layer.
        cost: what widths cost.
        grid: FFN widths and heads * head_dim are multiples of it, except a dense width that stays.
        attention_grid: the grid of heads * head_dim, or None if it is `grid`.
        only: "attention" or "ffn": the other sublayers stay dense; None narrows both.
        protect: layers that stay dense; negative numbers count from the end.
        minimum: least share of every sublayer that stays.
        slots: query slots may go, not only KV groups.
        depth: a layer's whole attention or FFN may go.
        trim: bring a dense FFN width off the grid to the grid below, even where nothing else goes.
        uniform_only: reason why all layers must have the same widths, or None.

    >>> space = Space((LayerShape(4, 2, 128),) * 2, hidden=64, head_dim=16)
    >>> space.options(0, "ffn"), space.options(0, "attention")
    ([32, 64, 96, 128], [1, 2])
    >>> round(space.removed([{"attention": 2, "slots": 2, "ffn": 64}] * 2), 3)
    0.333
    """

    shapes: tuple[LayerShape, ...]
    hidden: int
    head_dim: int
    cost: Cost = Cost()
    grid: int = GRID
    protect: tuple[int, ...] = ()
    minimum: float = 0.0
    slots: bool = False
    depth: bool = False
    trim: bool = False
    uniform_only: str | None = None
    attention_grid: int | None = None
    only: str | None = None

    def dense(self) -> Widths:
        """The dense widths."""
        return [shape_widths(shape) for shape in self.shapes]

    def widest(self) -> Widths:
        """The widths at which pruning starts: dense ones, or the grid below for those that `trim` brings there."""
        return [{kind: self.options(i, kind)[-1] for kind in widths} for i, widths in enumerate(self.dense())]

    def step(self, layer: int, kind: str) -> int:
        """How many structures of this kind leave this layer together."""
        shape = self.shapes[layer]
        if kind == "attention":
            return kv_unit(shape.heads // shape.kv_heads, self.head_width(layer), self._heads_grid)
        return self.grid if kind == "ffn" else 1

    def options(self, layer: int, kind: str) -> list[int]:
        """Widths that this kind may have in this layer, ascending. The last is the dense one, or the trimmed one."""
        dense = shape_widths(self.shapes[layer])[kind]
        if not dense:  # a convolution has neither KV groups nor slots
            return [0]
        shared = kind == "attention" and self.shapes[layer].kv
        if layer in self._protected or shared or (kind == "slots" and not self.slots) or not self._touches(kind):
            return [dense]
        step = self.step(layer, kind)
        least = max(step, -(-int(self.minimum * dense + 0.999999) // step) * step)
        inside = list(range(least, dense, step))
        if kind == "ffn" and self.trim and dense % self.grid and inside:
            dense = inside.pop()
        bottom = [0] if self.depth and kind != "slots" and self.minimum == 0 else []
        return bottom + inside + [dense]

    def _touches(self, kind: str) -> bool:
        return self.only is None or (kind == "ffn") == (self.only == "ffn")

    @property
    def _heads_grid(self) -> int:
        return self.attention_grid or self.grid

    @property
    def _protected(self) -> set[int]:
        return {layer % len(self.shapes) for layer in self.protect}

    def head_width(self, layer: int) -> int:
        """Inputs of a layer's output projection that a query head, or a DeltaNet's value head, has."""
        return head_width(self.shapes[layer], self.head_dim, self.cost.delta)

    def shape(self, widths: dict[str, int], dense: LayerShape = _PLAIN) -> LayerShape:
        """The layer of these widths; what else it has is as in `dense`."""
        heads = widths["attention"] * widths["slots"]
        return replace(dense, heads=heads, kv_heads=widths["attention"], ffn=widths["ffn"])

    def fits(self, layer: int, widths: dict[str, int]) -> bool:
        """Whether the heads are together on the grid, or attention is still dense.

        In a family without models of widths per layer (`uniform_only`) the number of query heads must also divide the
        hidden size, because transformers refuses others.
        """
        dense = shape_widths(self.shapes[layer])
        same = all(widths[kind] == dense[kind] for kind in ("attention", "slots"))
        heads = widths["attention"] * widths["slots"]
        linear = self.shapes[layer].linear
        plain = not self.uniform_only or (heads > 0 and (linear or self.hidden % heads == 0))
        return same or (heads * self.head_width(layer) % self._heads_grid == 0 and plain)

    def layer_cost(self, layer: int, widths: dict[str, int]) -> float:
        """Cost of a layer at these widths."""
        return self.cost.layer(self.shape(widths, self.shapes[layer]), self.hidden, self.head_dim)

    def total(self, widths: Widths) -> float:
        """Cost of the whole model at these widths."""
        return self.cost.fixed + sum(self.layer_cost(index, layer) for index, layer in enumerate(widths))

    def removed(self, widths: Widths) -> float:
        """Share of the dense model's cost that these widths save."""
        return 1 - self.total(widths) / self.total(self.dense())

    def structure_cost(self, layer: int, kind: str) -> float:
        """What one structure of this kind costs in the dense layer; a little where it costs nothing."""
        dense = shape_widths(self.shapes[layer])
        less = dense | {kind: dense[kind] - 1}
        whole = self.layer_cost(layer, dense)
        return max(whole - self.layer_cost(layer, less), 1e-9 * whole)

    def sublayers(self) -> Iterator[tuple[int, str]]:
        """Every (layer, kind) that has more than one width."""
        for layer in range(len(self.shapes)):
            for kind in ("attention", "slots", "ffn"):
                if len(self.options(layer, kind)) > 1:
                    yield layer, kind

    def most(self) -> Widths:
        """The widths of the smallest plan there is."""
        widths = self.dense()
        for layer, kinds in enumerate(widths):
            for kind in kinds:
                choices = [width for width in self.options(layer, kind) if self.fits(layer, kinds | {kind: width})]
                kinds[kind] = choices[0]
        return widths

    def met(self, widths: Widths, ratio: float) -> bool:
        """Whether these widths save `ratio` of the dense cost, within SLACK."""
        return self.removed(widths) >= ratio - SLACK

    def check(self, ratio: float) -> None:
        """Raise SaapError when `ratio` of the cost cannot be removed. The shape alone tells, before any scoring."""
        most = self.removed(self.most())
        if not self.met(self.most(), ratio):
            raise SaapError(
                f"ratio {ratio:g} cannot be reached: with the least widths in every layer at most {most:.3f} of the "
                f"{self.cost.unit} can go, on a grid of {self.grid} (prune.grid)"
            )
