"""report.json: all that a run found, section by section, as the stages wrote it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from saap_edge.documents.base import Document, Number, Part, Real
from saap_edge.documents.bench import Bench
from saap_edge.documents.gate import Gate
from saap_edge.documents.plan import Plan
from saap_edge.documents.verify import Parity
from saap_edge.targets import Target

__all__ = ["Estimate", "Model", "Predicted", "Prune", "Recover", "Report", "ShippedArtifact"]

SCHEMA_VERSION: Literal[2] = 2


class Model(Part):
    """The dense model that was compiled."""

    name: str = Field(description="folder, file or hub name")
    family: str = Field(description="family of the architecture, for people")
    layers: int = Field(description="number of decoder layers")
    hidden: int = Field(description="width of the residual stream")
    heads: int | None = Field(default=None, description="query heads of the first layer")
    kv_heads: int | None = Field(default=None, description="kv heads of the first layer")
    head_dim: int | None = Field(default=None, description="width of a head")
    ffn: int | None = Field(default=None, description="FFN width of the first layer")
    vocab_size: int | None = Field(default=None, description="number of tokens")
    source: dict[str, Any] | None = Field(default=None, description="of a model that came as a GGUF file; else missing")


class Prune(Part):
    """What pruning did to the model, before recovery."""

    heldout_perplexity: dict[str, Number] = Field(
        description="perplexity on held-out text, dense, cut and repaired, no unit; null: not finite"
    )
    window: int | None = Field(default=None, description="window of perplexity, tokens")
    heldout_tokens: int | None = Field(default=None, description="tokens of held-out text")


class HeldoutFigures(Part):
    """Perplexity of held-out text, and how far the model is from the dense one there."""

    perplexity_fp: Number = Field(default=None, description="in full precision, no unit; null: not finite")
    perplexity_blocks: Number = Field(default=None, description="in the export's blocks, no unit; null: not finite")
    divergence_fp: Number = Field(
        default=None, description="KL(dense || model) in full precision, nats a token; missing where nothing was learnt"
    )
    divergence_blocks: Number = Field(default=None, description="the same, in the export's blocks")


class Recover(Part):
    """What recovery did."""

    format: str = Field(description="blocks that were trained")
    group: int = Field(description="inputs that share a scale")
    adapter: str | None = Field(default=None, description="what was trained in full precision: lora, spp or all")
    tokens: int = Field(description="training tokens")
    dense: HeldoutFigures = Field(description="of the dense model")
    before: HeldoutFigures = Field(description="of the pruned and repaired model")
    after: HeldoutFigures = Field(description="of the recovered model")
    kept: str = Field(description="which weights and blocks were kept")
    phases: dict[str, Any] = Field(default_factory=dict, description="loss by step of both phases, nats a token")
    notes: list[str] = Field(default_factory=list, description="what a reader must know, a line each")
    window: int | None = Field(default=None, description="window of perplexity, tokens")
    heldout_tokens: int | None = Field(default=None, description="tokens of held-out text")


class Estimate(Part):
    """A predicted figure, and the interval in which 80 % of the measurements lie that the fit has not seen."""

    value: Real = Field(description="the figure, in the unit of its name")
    low: Real = Field(description="lower end of the interval")
    high: Real = Field(description="upper end of the interval")


class Predicted(Part):
    """Speed and memory of an artifact on the target, predicted where the target is another machine."""

    name: str = Field(description="name of the artifact in the section bench")
    decode_tok_s: Estimate | None = Field(default=None, description="decode rate, tokens/s; null: see reasons")
    prefill_tok_s: Estimate | None = Field(default=None, description="prefill rate, tokens/s; null: see reasons")
    ttft_ms: Estimate | None = Field(default=None, description="time to the first token, ms; null: see reasons")
    ram_mib: Estimate | None = Field(default=None, description="memory of the process, MiB; null: see reasons")
    ram_mapped_mib: Estimate | None = Field(
        default=None, description="the same where llama.cpp maps a file that it repacks; null: no difference"
    )
    fits: bool | None = Field(default=None, description="into every size of memory that the board has; null: unknown")
    fits_from_mib: int | None = Field(default=None, description="smallest size that surely holds it, MiB")
    basis: str = Field(description="what the figures rest on")
    reasons: dict[str, str] = Field(default_factory=dict, description="why a figure cannot be told, by its name")
    sources: list[str] = Field(default_factory=list, description="where the board's figures are from")


class ShippedArtifact(Part):
    """A file or folder of the run."""

    role: str = Field(description="dense or pruned")
    format: str = Field(description='format, as "gguf-q4_0"')
    path: str = Field(description="relative to the folder of its stage")
    bytes: int = Field(description="its size, bytes")
    sha256: str = Field(description="of the file, or over a folder's names and hashes")


class Report(Document):
    """The report document: the file report.json of a run."""

    VERSION = SCHEMA_VERSION
    VERSION_WORD: ClassVar[str] = "schema version"
    REMEDY = "run compile again with this version, or read it with the one that wrote it"

    version: Literal[2] = Field(default=SCHEMA_VERSION, alias="schema_version", description="version of this format")
    verdict: str = Field(description='of all limits: pass, fail, inconclusive, or "no limits given"')
    model: Model = Field(description="the dense model")
    target: Target = Field(description="the board that it was compiled for")
    plan: Plan = Field(description="widths of every layer")
    prune: Prune = Field(description="what pruning did")
    recover: Recover = Field(description="what recovery did")
    verify: list[Parity] = Field(description="how far answers are from torch's")
    bench: Bench = Field(description="what was measured")
    gate: Gate = Field(description="verdicts on limits")
    predicted: list[Predicted] = Field(default_factory=list, description="for a target that is another machine")
    artifacts: list[ShippedArtifact] = Field(description="every file or folder, dense and pruned")
    versions: dict[str, str] = Field(description="version of each package that took part")
    lineage: dict[str, str] = Field(description="folder of each stage that it was made from")
