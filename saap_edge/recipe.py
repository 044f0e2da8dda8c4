"""The recipe: everything that fixes a run. Unknown fields are refused, so a typing error never passes silently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from saap_edge.gate import Budget

__all__ = [
    "FORMATS", "BenchSettings", "DataSettings", "ExportSettings", "PruneSettings", "Recipe", "RecoverSettings",
    "ScoreSettings", "bundled_model", "bundled_text",
]  # fmt: skip

Format = Literal["gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-fp32", "onnx-int4"]
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

    @model_validator(mode="after")
    def _enough(self) -> ScoreSettings:
        if self.batches > self.samples:
            raise ValueError("batches must not exceed samples")
        return self


class PruneSettings(_Section):
    """What to remove."""

    method: Literal["auto", "saap", "taylor", "uniform"] = Field(
        default="auto", description="how the plan is made; auto builds all and keeps the best on heldout text"
    )
    ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description="share of attention and FFN parameters to remove"
    )
    fluctuation: float = Field(
        default=0.0, ge=0, description="lambda: how much unstable importance counts against saap"
    )
    repair: bool = Field(default=True, description="least-squares repair of o_proj and down_proj")


class RecoverSettings(_Section):
    """Group fine-tuning in 4-bit blocks of 32."""

    tokens: int = Field(default=240_000, ge=0, description="training tokens; 0 rounds to nearest without tuning")
    rank: int = Field(default=16, ge=1, description="rank of both adapters")
    batch: int = Field(default=8, ge=1, description="windows a step")
    learning_rate: float = Field(default=3e-3, gt=0)
    distillation: float = Field(
        default=1.0, ge=0, le=1, description="share of the dense model's distribution in the loss"
    )


class ExportSettings(_Section):
    """What to write."""

    formats: tuple[Format, ...] = Field(default=FORMATS, min_length=1, description="artifacts, dense and pruned alike")


class BenchSettings(_Section):
    """How to measure. Every artifact is timed against its dense twin in alternating runs."""

    threads: int | None = Field(default=None, ge=1, description="threads; the target's where absent")
    prompt_tokens: int = Field(default=64, ge=1)
    decode_tokens: int = Field(default=32, ge=1)
    rounds: int = Field(default=7, ge=3, description="alternating rounds that count")
    perplexity_windows: int = Field(default=16, ge=1, description="windows of test text run through each artifact")


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
