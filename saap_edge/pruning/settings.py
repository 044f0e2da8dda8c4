"""Settings of scoring and pruning (recipe: score, prune)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from saap_edge.errors import SaapError
from saap_edge.registry import Registry
from saap_edge.settings import Section

__all__ = [
    "CLEAR", "EFFORTS", "GLANCE", "LEARNERS", "LEARNT", "LOOK", "METHODS", "OUTSIDE_ORDERS", "PROBES", "STARTS",
    "Effort", "Method", "PruneSettings", "RankingSettings", "ScoreSettings", "View",
]  # fmt: skip


class ScoreSettings(Section):
    """Calibration of the scores and of the bank."""

    samples: int = Field(default=64, ge=4, description="calibration windows")
    batches: int = Field(default=16, ge=2, description="batches they form; importance is kept per batch")
    window: int = Field(default=256, ge=16, description="tokens a window, also for recovery and perplexity")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the model while it is scored")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of products in score, bank, plan and prune; auto: bfloat16 where the processor multiplies in it",
    )
    checkpointing: bool = Field(default=False, description="recompute activations: less memory, a fifth more time")
    second_order: bool = Field(default=False, description="second-order term in the vector-wise metric too")
    running_fisher: bool = Field(
        default=False, description="Fisher averaged over batches; 4 more bytes a parameter scored"
    )

    @model_validator(mode="after")
    def _enough(self) -> ScoreSettings:
        if self.batches > self.samples:
            raise ValueError("batches must not exceed samples")
        return self


@dataclass(frozen=True)
class Effort:
    """What a plan may cost.

    Attributes:
        auto: methods that `auto` builds.
        evaluations: plans that a search tries beside those it starts from; 0 leaves it at the corrected ranking.
        probes: shares of every sublayer's width at which a search measures it alone; () takes the share that stays.
        found: plans of a search that are repaired and judged.
        finalists: plans that are judged on all text, beside the uniform one, where the first look leaves so many.
        glance: a search measures sublayers on its first two windows instead of all.
    """

    auto: tuple[str, ...]
    evaluations: int
    probes: tuple[float, ...]
    found: int
    finalists: int
    glance: bool = False


STARTS = ("kfac", "fused", "llm-pruner-element", "saap", "uniform")  # methods whose widths a search starts from
PROBES = (0.75, 0.5, 0.25)  # shares of a sublayer's width at which a thorough search measures
GLANCE = 2  # windows of a search's first panel: a plan that is bad there need not be run on the others
LOOK = 16  # windows of either text in the first look at plans
CLEAR = 1.05  # times the best perplexity in the first look: a plan above it is out
LEARNT = 200  # steps of policy-gradient and compresso where nothing says how many
EFFORTS = {
    "quick": Effort(("kfac", "uniform"), 0, (), 1, 2, glance=True),
    "normal": Effort(("search", "uniform"), 0, (), 1, 2, glance=True),
    "thorough": Effort(("search", *STARTS), 200, PROBES, 6, 3),
}
LEARNERS = ("policy-gradient", "compresso")  # methods that learn an order by running the model
View = Literal["vector", "element", "wanda", "flap", "magnitude", "obs"]
# Methods of this package. Orders from outside come beside them: docs/adding.md.
METHODS = (
    "auto", "search", "kfac", "saap", "fused", "obs", "llm-pruner-element", "llm-pruner-vector", "flap", "wanda-sp",
    "magnitude", "random", "shortgpt", "policy-gradient", "compresso", "uniform",
)  # fmt: skip
OUTSIDE_ORDERS: Registry[Any] = Registry("method", "saap_edge.orders", taken=METHODS)


def _known_method(name: str) -> str:
    try:
        return OUTSIDE_ORDERS.check(name)
    except SaapError as error:
        raise ValueError(str(error)) from None


Method = Annotated[str, AfterValidator(_known_method)]


class RankingSettings(Section):
    """How views of importance become one order, for the methods saap and fused; the defaults are the paper's form."""

    views: tuple[View, ...] = Field(
        default=("element", "wanda", "flap", "obs"), min_length=1, description="of fused; saap has vector and element"
    )
    scale: Literal["mean", "log"] = Field(default="mean", description="of a view: mean 1, or logarithms")
    sigma: Literal["model", "kind", "layer"] = Field(
        default="model", description="structures that share a view's noise: all, of a kind, of a layer and kind"
    )
    fluctuation: float = Field(default=0.0, ge=0, description="lambda: how much unstable importance counts against")
    log_fluctuation: bool = Field(default=False, description="take the logarithm of fluctuation")
    standardise: Literal["layer", "kind", "none"] = Field(
        default="layer", description="z-scores within layer and kind, within a kind over all layers, or none"
    )
    per_cost: bool = Field(default=False, description="order by score per unit of cost")


class PruneSettings(Section):
    """What to remove."""

    method: Method = Field(
        default="auto", description="how the plan is made; auto builds several and keeps the best on heldout text"
    )
    ratio: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.3, description="share of the dense cost to remove")
    unit: Literal["parameters", "bytes", "latency"] = Field(
        default="parameters",
        description="cost: attention and FFN parameters, bytes of the file, or predicted decode time on the target",
    )
    context: int = Field(default=512, ge=0, description="tokens in the KV cache that unit: latency counts")
    grid: int | None = Field(
        default=None,
        ge=32,
        multiple_of=32,
        description="widths are multiples of it; where absent the target's, and of 256 where K-quants are exported",
    )
    off_grid: Literal["pad", "trim"] = Field(
        default="pad", description="a dense FFN width off the grid: pad with zeros, or bring to the grid below"
    )
    only: Literal["attention", "ffn"] | None = Field(
        default=None, description="narrow these sublayers alone; where absent both"
    )
    protect: tuple[int, ...] = Field(default=(), description="layers that stay dense; -1 is the last")
    minimum: float = Field(default=0.0, ge=0, lt=1, description="share of every sublayer that stays")
    query_slots: bool = Field(default=False, description="query heads may go beside whole kv groups (GQA)")
    depth: bool = Field(default=False, description="a layer's whole attention or FFN may go")
    ranking: RankingSettings = RankingSettings()
    effort: Literal["quick", "normal", "thorough"] = Field(
        default="normal", description="how many plans auto and search build, try and judge"
    )
    evaluations: int | None = Field(
        default=None,
        ge=1,
        description="plans the search tries, or steps that policy-gradient and compresso take; else by effort",
    )
    rounds: int = Field(
        default=1, ge=1, le=16, description="for a ranked method: prune in so many steps, repaired and scored between"
    )
    repair: bool = Field(default=True, description="least-squares repair of o_proj and down_proj")
    samples: int = Field(default=96, ge=4, description="calibration windows of the repair")
    mix: float = Field(
        default=0.6, ge=0, le=1, description="repair: share of the target that mends earlier layers' errors too"
    )
    bias: bool = Field(default=False, description="repair: compensate with biases of o_proj and down_proj as well")

    @model_validator(mode="after")
    def _compatible(self) -> PruneSettings:
        if self.rounds > 1 and self.method in ("auto", "search", *LEARNERS, "uniform", "wanda-sp"):
            raise ValueError(f"rounds are for methods that rank structures, not for '{self.method}'")
        if self.query_slots and self.method == "compresso":
            raise ValueError("compresso has gates on kv groups and FFN channels only: leave query_slots out")
        return self
