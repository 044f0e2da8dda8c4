"""The recipe: everything that fixes a run. Unknown fields are refused, so a typing error never passes silently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from saap_edge.gating import Budget, Format

__all__ = [
    "FORMATS", "BenchSettings", "DataSettings", "ExportSettings", "PruneSettings", "RankingSettings", "Recipe",
    "RecoverSettings",
    "ScoreSettings", "bundled_model", "bundled_text",
]  # fmt: skip

FORMATS: tuple[Format, ...] = ("gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-fp32", "onnx-int4")

_REFERENCE = Path(__file__).parent / "reference"


def bundled_model() -> Path:
    """Folder of the small Llama that ships with the package."""
    return _REFERENCE / "wikitext-llama"


def bundled_text(name: str) -> Path:
    """A text that ships with the package: calibration, heldout or test (WikiText-2 train, valid, test)."""
    return _REFERENCE / "text" / f"{name}.txt"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Section):
    """Plain text files. They must not overlap: calibration is learnt from, heldout decides, test is reported."""

    calibration: Path = Field(
        default=bundled_text("calibration"), description="scores, repair and recovery learn from it"
    )
    heldout: Path = Field(default=bundled_text("heldout"), description="chooses plans and what recovery keeps")
    test: Path = Field(default=bundled_text("test"), description="perplexity that is reported; nothing is chosen on it")


class ScoreSettings(_Section):
    """Calibration of the scores; repair uses the same windows."""

    samples: int = Field(default=64, ge=4, description="calibration windows")
    batches: int = Field(default=16, ge=2, description="batches they form; importance is kept per batch")
    window: int = Field(default=256, ge=16, description="tokens a window, also for recovery and perplexity")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="of the model while it is scored")
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


View = Literal["vector", "element", "wanda", "flap", "magnitude", "obs"]
Method = Literal[
    "auto", "search", "kfac", "saap", "fused", "obs", "llm-pruner-element", "llm-pruner-vector", "flap", "wanda-sp",
    "magnitude", "random", "shortgpt", "policy-gradient", "uniform",
]  # fmt: skip


class RankingSettings(_Section):
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


class PruneSettings(_Section):
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
    protect: tuple[int, ...] = Field(default=(), description="layers that stay dense; -1 is the last")
    minimum: float = Field(default=0.0, ge=0, lt=1, description="share of every sublayer that stays")
    query_slots: bool = Field(default=False, description="query heads may go beside whole kv groups (GQA)")
    depth: bool = Field(default=False, description="a layer's whole attention or FFN may go")
    ranking: RankingSettings = RankingSettings()
    evaluations: int = Field(default=200, ge=1, description="plans the search tries")
    rounds: int = Field(
        default=1, ge=1, le=16, description="for a ranked method: prune in so many steps, repaired and scored between"
    )
    repair: bool = Field(default=True, description="least-squares repair of o_proj and down_proj")
    mix: float = Field(
        default=0.6, ge=0, le=1, description="repair: share of the target that mends earlier layers' errors too"
    )
    bias: bool = Field(default=False, description="repair: compensate with biases of o_proj and down_proj as well")

    @model_validator(mode="after")
    def _compatible(self) -> PruneSettings:
        if self.rounds > 1 and self.method in ("auto", "search", "policy-gradient", "uniform", "wanda-sp"):
            raise ValueError(f"rounds are for methods that rank structures, not for '{self.method}'")
        return self


class RecoverSettings(_Section):
    """Group fine-tuning: weights are trained and put into blocks of export.group, and the blocks are trained."""

    format: Literal["q4_0", "q4_1", "q8_0", "int4_zp", "int8_zp"] = Field(
        default="q4_0", description="blocks that are tuned: q4_0 and q8_0 for both runtimes, q4_1 GGUF, *_zp ONNX"
    )
    teacher: str | None = Field(
        default=None, description="model to learn from, a folder or hub name: the dense model where absent"
    )
    start: Literal["nearest", "weighted", "gptq"] = Field(
        default="gptq", description="first codes: each weight's own rounding, or what loses least on calibration text"
    )
    tokens: int = Field(default=240_000, ge=0, description="training tokens; 0 only puts the weights into blocks")
    weights: float = Field(
        default=1.0, ge=0, le=1, description="share of tokens that train full-precision weights (LoRA) before blocks"
    )
    through: bool = Field(
        default=False, description="train the blocks' weights too, through the rounding (straight-through LoRA)"
    )
    rank: int = Field(default=32, ge=1, description="of all adapters")
    batch: int = Field(default=2, ge=1, description="windows a step, over all devices")
    learning_rate: float = Field(default=3e-3, gt=0, description="of the blocks")
    weights_learning_rate: float = Field(default=1e-3, gt=0, description="of the full-precision weights")
    distillation: float = Field(
        default=1.0, ge=0, le=1, description="share of the dense model's distribution in the loss; the rest is the text"
    )
    top: int | None = Field(
        default=None, ge=1, description="teach from a file of the dense model's likeliest tokens: less memory"
    )
    patience: int | None = Field(default=None, ge=1, description="evaluations (8 a phase) without a better one to stop")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the arithmetic of training")
    checkpointing: bool = Field(default=False, description="recompute activations: less memory, a third more time")


class ExportSettings(_Section):
    """What to write."""

    formats: tuple[Format, ...] = Field(default=FORMATS, min_length=1, description="artifacts, dense and pruned alike")
    group: Literal[32, 64, 128, 256] = Field(
        default=32,
        description="inputs that share a scale in onnx-int4 and onnx-int8, dense and pruned alike; a tuned model keeps "
        "the group it was tuned in, GGUF its own 32",
    )


class BenchSettings(_Section):
    """How to measure. Every artifact is timed against its dense twin, by turns in random order."""

    threads: int | None = Field(default=None, ge=1, description="threads; the target's where absent")
    prompt_tokens: int = Field(default=64, ge=1)
    decode_tokens: int = Field(default=32, ge=1)
    rounds: int = Field(
        default=7, ge=3, description="rounds that count; each times every artifact once, in random order"
    )
    max_rounds: int | None = Field(
        default=None, description="rounds at most, added while noise leaves a limit of the budget undecided"
    )
    perplexity_windows: int = Field(default=16, ge=1, description="windows of test text run through each artifact")
    contexts: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="depths in tokens, as [128, 512, 2048]: decoding and memory are measured there too"
    )

    @model_validator(mode="after")
    def _more(self) -> BenchSettings:
        if self.max_rounds is not None and self.max_rounds < self.rounds:
            raise ValueError(f"max_rounds {self.max_rounds} is less than rounds {self.rounds}")
        return self


class Recipe(_Section):
    """A whole run of saap-edge."""

    model: str = Field(default=str(bundled_model()), description="Hugging Face folder or hub name")
    target: str = Field(default="host", description="board: a name in targets/ or a path to its YAML")
    seed: int = 0
    data: DataSettings = DataSettings()
    score: ScoreSettings = ScoreSettings()
    prune: PruneSettings = PruneSettings()
    recover: RecoverSettings = RecoverSettings()
    export: ExportSettings = ExportSettings()
    bench: BenchSettings = BenchSettings()
    budget: Budget = Field(default_factory=Budget, description="limits that the gate judges")
