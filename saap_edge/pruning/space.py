"""What a plan may choose: widths on the target's grid, what is protected, and what every width costs in the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from saap_edge.documents.plan import Unit, Widths, shape_widths
from saap_edge.errors import SaapError
from saap_edge.formats import FORMATS, of_kind
from saap_edge.model.spec import LayerShape, ModelSpec

__all__ = ["GRID", "Cost", "Space", "Unit", "Widths", "block_grids", "kv_unit", "model_cost", "shape_widths"]

GRID = 32  # the quantisation block of Q4_0, Q8_0 and MatMulNBits: narrower steps would leave a tensor unquantised
SLACK = 0.002  # of the dense cost: on a coarse grid, just missing a budget beats overshooting it by a whole step


def kv_unit(heads_per_group: int, head_dim: int, grid: int = GRID) -> int:
    """The least number of KV groups whose query heads together are a multiple of `grid` wide."""
    return next(count for count in range(1, grid + 1) if count * heads_per_group * head_dim % grid == 0)


def block_grids(spec: ModelSpec, grid: int, block: int) -> tuple[int, int]:
    """Grids (attention, FFN) on which pruned widths also fill whole blocks of `block`, as the dense ones do.

    A dense width that is no multiple of the block has no such tensor to keep: there the grid stays as it is.
    """
    heads, ffn = max(layer.heads for layer in spec.layers), max(layer.ffn for layer in spec.layers)
    coarse = math.lcm(grid, block)
    return tuple(grid if width % block else coarse for width in (heads * spec.head_dim, ffn))  # type: ignore[return-value]


@dataclass(frozen=True)
class Cost:
    """What a model costs in the budget's unit: a fixed part, and figures per projection weight and per KV head.

    unit "parameters": attention and FFN weights. "bytes": of the whole file. "latency": predicted seconds to decode
    one token, bytes read (weights once, KV cache of the context) over the target's bandwidth.
    """

    unit: Unit = "parameters"
    per_weight: float = 1.0
    per_kv_head: float = 0.0
    fixed: float = 0.0

    def layer(self, shape: LayerShape, hidden: int, head_dim: int) -> float:
        """Cost of one layer's projections and KV cache."""
        weights = 2 * hidden * head_dim * (shape.heads + shape.kv_heads) + 3 * hidden * shape.ffn
        return self.per_weight * weights + self.per_kv_head * shape.kv_heads


def model_cost(
    spec: ModelSpec, unit: Unit, quantisation: str = "q4_0", context: int = 512, bandwidth: float = 1.0
) -> Cost:
    """The cost function of a unit for one model.

    `quantisation` is that of the projections in GGUF, embedding and head then take 8.5 bits (16 in f16); `context`
    tokens of KV cache in 16 bits; `bandwidth` in bytes a second. Raises SaapError for an unknown quantisation.
    """
    if unit == "parameters":
        return Cost()
    record = FORMATS.get(f"gguf-{quantisation}")
    if record is None:
        known = ", ".join(format.quantisation for format in of_kind("gguf"))
        raise SaapError(f"quantisation '{quantisation}' is unknown (known: {known})")
    weight, numbers = (bits / 8 for bits in record.weight_bits(GRID))
    table = spec.vocab_size * spec.hidden * numbers
    if unit == "bytes":
        return Cost("bytes", weight, 0.0, table * (1 if spec.tied else 2))
    # Decoding reads the output matrix, and of an untied embedding a single row.
    return Cost("latency", weight / bandwidth, 2 * spec.head_dim * 2 * context / bandwidth, table / bandwidth)


@dataclass(frozen=True)
class Space:
    """All plans that may be made of a dense model.

    Attributes:
        shapes: dense widths, one a layer.
        cost: what widths cost.
        grid: FFN widths and heads * head_dim are multiples of it, but for a dense width that stays.
        attention_grid: that of heads * head_dim where it is another, or None.
        protect: layers that stay dense; negative ones count from the end.
        minimum: share of every sublayer that stays at least.
        slots: query slots may go, beside KV groups.
        depth: a whole attention or FFN may go.
        trim: a dense width off the grid is brought to the grid below even where nothing else goes.
        uniform_only: reason why all layers must have the same widths, or None.
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

    def dense(self) -> Widths:
        return [shape_widths(shape) for shape in self.shapes]

    def widest(self) -> Widths:
        """Where pruning starts: dense, or the grid below where off-grid widths are trimmed."""
        return [{kind: self.options(i, kind)[-1] for kind in widths} for i, widths in enumerate(self.dense())]

    def step(self, layer: int, kind: str) -> int:
        """Structures that leave together."""
        shape = self.shapes[layer]
        if kind == "attention":
            return kv_unit(shape.heads // shape.kv_heads, self.head_dim, self._heads_grid)
        return self.grid if kind == "ffn" else 1

    def options(self, layer: int, kind: str) -> list[int]:
        """Widths this kind may have in this layer, ascending; the dense width is the last one."""
        dense = shape_widths(self.shapes[layer])[kind]
        if layer in self._protected or (kind == "slots" and not self.slots):
            return [dense]
        step = self.step(layer, kind)
        least = max(step, -(-int(self.minimum * dense + 0.999999) // step) * step)
        inside = list(range(least, dense, step))
        if kind == "ffn" and self.trim and dense % self.grid and inside:
            dense = inside.pop()
        bottom = [0] if self.depth and kind != "slots" and self.minimum == 0 else []
        return bottom + inside + [dense]

    @property
    def _heads_grid(self) -> int:
        return self.attention_grid or self.grid

    @property
    def _protected(self) -> set[int]:
        return {layer % len(self.shapes) for layer in self.protect}

    def shape(self, widths: dict[str, int]) -> LayerShape:
        """The layer of these widths."""
        return LayerShape(widths["attention"] * widths["slots"], widths["attention"], widths["ffn"])

    def fits(self, layer: int, widths: dict[str, int]) -> bool:
        """Heads together land on the grid, or attention is as dense.

        Where only a family's own class will do, heads must also divide the hidden size: transformers refuses others.
        """
        dense = shape_widths(self.shapes[layer])
        same = all(widths[kind] == dense[kind] for kind in ("attention", "slots"))
        heads = widths["attention"] * widths["slots"]
        plain = not self.uniform_only or (heads > 0 and self.hidden % heads == 0)
        return same or (heads * self.head_dim % self._heads_grid == 0 and plain)

    def layer_cost(self, widths: dict[str, int]) -> float:
        return self.cost.layer(self.shape(widths), self.hidden, self.head_dim)

    def total(self, widths: Widths) -> float:
        """Cost of the whole model at these widths."""
        return self.cost.fixed + sum(self.layer_cost(layer) for layer in widths)

    def removed(self, widths: Widths) -> float:
        """Share of the dense model's cost that these widths save."""
        return 1 - self.total(widths) / self.total(self.dense())

    def structure_cost(self, layer: int, kind: str) -> float:
        """What one structure of this kind costs in the dense layer."""
        dense = shape_widths(self.shapes[layer])
        less = dense | {kind: dense[kind] - 1}
        return self.layer_cost(dense) - self.layer_cost(less)

    def sublayers(self) -> Iterator[tuple[int, str]]:
        """Every (layer, kind) with a choice to make."""
        for layer in range(len(self.shapes)):
            for kind in ("attention", "slots", "ffn"):
                if len(self.options(layer, kind)) > 1:
                    yield layer, kind

    def most(self) -> Widths:
        """The smallest plan there is."""
        widths = self.dense()
        for layer, kinds in enumerate(widths):
            for kind in kinds:
                choices = [width for width in self.options(layer, kind) if self.fits(layer, kinds | {kind: width})]
                kinds[kind] = choices[0]
        return widths

    def met(self, widths: Widths, ratio: float) -> bool:
        """The budget is met, but for SLACK."""
        return self.removed(widths) >= ratio - SLACK

    def check(self, ratio: float) -> None:
        """Raise SaapError when `ratio` of the cost cannot be removed: known from the shape, before any scoring."""
        most = self.removed(self.most())
        if not self.met(self.most(), ratio):
            raise SaapError(
                f"ratio {ratio:g} cannot be reached: with the least widths in every layer at most {most:.3f} of the "
                f"{self.cost.unit} can go, on a grid of {self.grid} (prune.grid)"
            )
