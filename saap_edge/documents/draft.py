"""draft.json: what a parent accepts of pruned models as drafts, and whether that makes it faster (docs/draft.md)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saap_edge.documents.base import Document, Part, Real
from saap_edge.documents.measured import Ratio

__all__ = [
    "Batch", "Difference", "Draft", "DraftConditions", "DraftFile", "DraftKind", "DraftLength", "DraftMeasured",
    "DraftResult", "DraftVerdict", "Interval", "PredictedCosts",
]  # fmt: skip

DraftVerdict = Literal["pays", "does not pay", "undecided"]


class Interval(Part):
    """A figure and its interval."""

    value: Real = Field(description="the figure")
    low: Real = Field(description="lower end of its interval")
    high: Real = Field(description="upper end of its interval")


class DraftFile(Part):
    """A GGUF file: the parent, or a draft."""

    name: str = Field(description="its file name")
    format: str = Field(description='format, as "gguf-q4_0"')
    file_bytes: int = Field(description="its size, bytes")
    bytes_per_token: int = Field(description="weights that decoding a token reads, bytes")
    parameters: int = Field(description="parameters of the model")


class DraftLength(Part):
    """A draft length: tokens that the draft says before the parent looks at them."""

    gamma: int = Field(description="the draft length, tokens")
    tokens_per_pass: Interval = Field(description="tokens a pass gives, counted along the answers; 95 % over prompts")
    geometric: Real = Field(description="the same by the paper's formula from the acceptance alone, tokens")
    predicted: Interval | None = Field(
        default=None, description="speed with the draft over speed without, on the target; null: see the reason"
    )


class DraftKind(Part):
    """What the parent accepts in its answers to one kind of prompt, or to all."""

    kind: str = Field(description='text, chat or code; "all" together')
    prompts: int = Field(description="number of answers")
    positions: int = Field(description="tokens that were to be drafted")
    acceptance: Interval = Field(description="share of them whose draft is the parent's token; 95 % over prompts")
    runs: list[Real] = Field(description="share of runs of accepted tokens that reach 1, 2, ... tokens; null: not seen")
    lengths: list[DraftLength] = Field(description="every draft length from 1 on")


class PredictedCosts(Part):
    """What a pass costs on the target, in single tokens of the parent."""

    draft: Real = Field(description="a token of the draft")
    further: Interval = Field(description="each further token of a verification")
    basis: str = Field(description="what the board's figures rest on")


class Batch(Part):
    """Running several tokens at once, beside running one."""

    tokens: int = Field(description="tokens at once")
    cost: Ratio = Field(description="its time over that of a single token")


class Difference(Part):
    """An answer that came out differently with the draft."""

    kind: str = Field(description="kind of the prompt")
    prompt: str = Field(description="name of the prompt")
    position: int = Field(description="place of the first token that differs, from 0")
    alone: int = Field(description="the parent's own token there")
    drafted: int = Field(description="the token that came with the draft")


class DraftMeasured(Part):
    """Decoding with the draft beside decoding without it, on the machine where the command ran."""

    gamma: int = Field(description="draft length that was run, the best by the costs measured here")
    draft: Ratio = Field(description="time of a token of the draft over that of the parent")
    batches: list[Batch] = Field(description="verification, by number of tokens")
    expected: Real = Field(description="speed-up that these costs and the counted tokens a pass give")
    lossless: bool = Field(description="every answer was the parent's own")
    differences: list[Difference] = Field(description="where not")
    passes: int = Field(description="passes that the answers took")
    counted_passes: int = Field(description="passes that the acceptance says they take")
    speedup: Ratio | None = Field(
        default=None, description="speed with the draft over speed without, by turns; null: not lossless"
    )
    speedup_cpu: Ratio | None = Field(
        default=None, description="the same in CPU time of all threads, which other programs disturb less"
    )
    alone_tok_s: Real = Field(description="decode rate without, tokens/s")
    drafted_tok_s: Real | None = Field(default=None, description="decode rate with, tokens/s; null: not lossless")
    rounds: int = Field(description="rounds by turns")


class DraftResult(Part):
    """One draft."""

    draft: DraftFile = Field(description="its file")
    bytes_ratio: Real = Field(description="bytes that a token of the draft reads over those of the parent")
    kinds: list[DraftKind] = Field(description="acceptance by kind; the first is all together")
    costs: PredictedCosts | None = Field(default=None, description="costs on the target; null: see the reason")
    gamma: int = Field(description="draft length with the best speed-up")
    speedup: Interval | None = Field(
        default=None, description="speed-up at that length, predicted, or measured where the target is this machine"
    )
    measured: DraftMeasured | None = Field(default=None, description="null: not asked for")
    verdict: DraftVerdict = Field(description="pays, does not pay, or undecided where the interval holds 1")
    reason: str = Field(description="the figures that decide, in words")


class DraftConditions(Part):
    """How it was found."""

    prompts: int = Field(description="prompts of each kind")
    prompts_sha256: str = Field(description="of the file of prompts")
    tokens: int = Field(description="tokens of an answer at most")
    threads: int = Field(description="threads of the runtime here")
    target_threads: int = Field(description="threads on the target")
    context: int = Field(description="tokens in the cache that the prediction takes")
    cpu: str = Field(description="CPU of this machine")
    here: bool = Field(description="the target is this machine")
    versions: dict[str, str] = Field(description="version of the runtime's packages here")


class Draft(Document):
    """The draft document: `saap-edge draft --json`, and the file of `--out`."""

    VERSION = 1
    REMEDY = "run saap-edge draft again with this version"

    version: Literal[1] = Field(default=1, description="version of this format")
    exit_code: int = Field(description="0 decided, 3 undecided")
    verdict: DraftVerdict = Field(description="whether any draft pays on the target")
    best: str | None = Field(description="name of the draft that pays most; null: none surely does")
    model: DraftFile = Field(description="the parent, whose answers these are")
    target: str = Field(description="name of the board")
    conditions: DraftConditions = Field(description="how it was found")
    drafts: list[DraftResult] = Field(description="one for each draft, the fastest first")
    notes: list[str] = Field(default_factory=list, description="what was left out, and why")
