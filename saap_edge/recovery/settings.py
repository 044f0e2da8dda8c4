"""Settings of recovery (recipe: recover)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from saap_edge.settings import Section

__all__ = ["RATES", "SMALL", "WHOLE", "RecoverSettings"]

SMALL = 200_000_000  # weights of projections; training all of them takes 4 GB
RATES = {"lora": 1e-3, "spp": 1e-2}  # learning rates of what is trained beside the weights: docs/recovery.md
WHOLE = 0.06  # over the hidden width: that of the weights themselves


class RecoverSettings(Section):
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
        default=1.0, ge=0, le=1, description="share of tokens that train full-precision weights before blocks"
    )
    adapter: Literal["auto", "lora", "spp", "all"] = Field(
        default="auto",
        description="lora adds to weights, spp multiplies them, all trains each; auto: all in small models, else lora",
    )
    through: bool = Field(
        default=False, description="train the blocks' weights too, through the rounding (straight-through LoRA)"
    )
    rank: int = Field(default=32, ge=1, description="of all adapters")
    batch: int = Field(default=2, ge=1, description="windows a step, over all devices")
    learning_rate: float = Field(default=3e-3, gt=0, description="of the blocks")
    weights_learning_rate: float | None = Field(
        default=None, gt=0, description="of the full-precision weights; where absent, that of the adapter"
    )
    distillation: float = Field(
        default=1.0, ge=0, le=1, description="share of the dense model's distribution in the loss; the rest is the text"
    )
    top: int | None = Field(
        default=None, ge=1, description="teach from a file of the dense model's likeliest tokens: less memory"
    )
    patience: int | None = Field(default=None, ge=1, description="evaluations (8 a phase) without a better one to stop")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of products in training; auto: bfloat16 where the processor multiplies in it"
    )
    checkpointing: bool = Field(default=False, description="recompute activations: less memory, a third more time")
    shard: bool = Field(
        default=False, description="share frozen weights out over a launch's processes (FSDP2); not with adapter: all"
    )

    def resolved(self, weights: int, hidden: int) -> RecoverSettings:
        """These settings for a model of so many weights in its projections, and of that hidden width.

        What they leave open is decided. The rate of all weights falls as the width grows (muP, arXiv 2203.03466).

        >>> [RecoverSettings().resolved(*size).adapter for size in ((85_000_000, 576), (7_000_000_000, 4096))]
        ['all', 'lora']
        >>> [RecoverSettings().resolved(1, hidden).weights_learning_rate for hidden in (256, 576)]
        [0.00023, 0.0001]
        """
        adapter = ("all" if weights <= SMALL else "lora") if self.adapter == "auto" else self.adapter
        rate = self.weights_learning_rate or (float(f"{WHOLE / hidden:.2g}") if adapter == "all" else RATES[adapter])
        return self.model_copy(update={"adapter": adapter, "weights_learning_rate": rate})

    @model_validator(mode="after")
    def _compatible(self) -> RecoverSettings:
        if self.through and self.adapter == "spp":
            raise ValueError(
                "through adds to weights, and would fill the zeros that adapter: spp keeps: use adapter: lora, or not "
                "through"
            )
        return self
