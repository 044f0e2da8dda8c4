"""bench.json: speed, memory and quality of artifacts, and ratios of those that were measured by turns.

docs/measuring.md defines the figures. Figures may be missing in documents of older versions, or where the machine
cannot measure them.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from saap_edge.documents.base import Document, Number, Part, Real
from saap_edge.documents.measured import Depth, DepthRatio, LlamaBenchRow, Percentiles, Ratios, Summary, Sustained
from saap_edge.errors import SaapError

__all__ = [
    "Bench", "BenchedArtifact", "ChatResult", "Comparison", "Conditions", "Limits", "Machine", "Metrics", "Pair",
    "Runtime", "Sensors",
]  # fmt: skip

SCHEMA: Literal[2] = 2
Timed = Summary | float | None  # a plain number in older documents


class ChatResult(Part):
    """What the answers to the instructions were like, in their order. Null: a tool call, which the artifact's chat
    template does not know."""

    followed: list[bool | None] = Field(description="the answer follows its instruction")
    ended: list[bool | None] = Field(description="the answer ended by itself, not at the limit")


class Metrics(Part):
    """What was measured and counted of an artifact. A figure that is null or missing was not."""

    decode_tok_s: Summary | None = Field(default=None, description="decode rate, tokens/s")
    prefill_tok_s: Summary | None = Field(default=None, description="prompt tokens over time to first token, tokens/s")
    ttft_ms: Summary | None = Field(default=None, description="time from an empty cache to the first token, ms")
    itl_ms: Percentiles | None = Field(default=None, description="time between two tokens, ms")
    itl_p95_ms: Timed = Field(default=None, description="95th percentile of each round's time between two tokens, ms")
    load_ms: Summary | None = Field(default=None, description="opening the artifact in a fresh process, ms")
    peak_rss_mib: Summary | None = Field(default=None, description="highest resident memory of a process, MiB")
    peak_pss_mib: Summary | None = Field(default=None, description="the same, shared pages counted in part, MiB")
    held_mib: Summary | None = Field(
        default=None, description="memory of a process that the kernel cannot drop and read again, MiB"
    )
    huge_pages_mib: Number = Field(
        default=None, description="memory that was put into huge pages after loading, MiB; null: not by saap-edge"
    )
    prepared: bool | None = Field(
        default=None,
        description="its file holds what the runtime packs (saap-edge prepare); null: not for this runtime",
    )
    file_bytes: int | None = Field(default=None, description="size of the artifact, bytes")
    projection_bytes: int | None = Field(
        default=None, description="weights that decoding a token reads, bytes; missing in older documents"
    )
    kv_bytes_per_token: int | None = Field(default=None, description="keys and values of one token, bytes")
    bytes_per_token: int | None = Field(
        default=None, description="what decoding a token reads: weights, and the cache in the middle of decoding, bytes"
    )
    parameters: int | None = Field(default=None, description="parameters of the model")
    perplexity: Number = Field(default=None, description="by the artifact in its own runtime, no unit")
    energy_j_per_token: Number = Field(default=None, description="energy while decoding, J/token")
    round_j_per_token: Timed = Field(default=None, description="the same of each round, J/token")
    instructions_per_token: Number = Field(default=None, description="instructions that decoding a token executes")
    chat: ChatResult | None = Field(default=None, description="answers to instructions")
    noise: Number = Field(default=None, description="how far a round lies from the median, as a share of it")
    cpu_share: Number = Field(default=None, description="share of the threads' time in which they had a CPU")
    llama_bench: list[LlamaBenchRow] = Field(default_factory=list, description="rows of prefill and decoding")
    contexts: list[Depth] = Field(default_factory=list, description="decoding at each of the conditions' contexts")
    sustained: Sustained | None = Field(default=None, description="decoding for minutes")
    sustained_pct: Summary | None = Field(default=None, description="its last speed in percent of its first")
    sustained_tok_s: Summary | None = Field(default=None, description="its last speed, tokens/s")

    def timed(self, name: str) -> Summary:
        """The figure of that name with its interval. Raises SaapError when there is none."""
        found = getattr(self, name)
        if not isinstance(found, Summary):
            raise SaapError(f"the document has no {name} with an interval: measure again")
        return found

    def counted(self, name: str) -> int:
        """The counted figure of that name. Raises SaapError when there is none."""
        found = getattr(self, name)
        if found is None:
            raise SaapError(f"the document has no {name}: measure again")
        return int(found)


class Runtime(Part):
    """The build of the runtime that ran an artifact."""

    versions: dict[str, str] = Field(default_factory=dict, description="version of the runtime's package, and of numpy")
    build: str | None = Field(default=None, description="what the runtime says of its build; null: nothing")
    python: str | None = Field(default=None, description="version of Python; null: none took part")
    own_loop: bool = Field(
        default=True, description="timed step by step by saap-edge; false: by the runtime's own benchmark program"
    )
    program: str | None = Field(
        default=None, description="interpreter or program that ran it; null where no build was named"
    )
    module: str | None = Field(
        default=None, description="folder that the runtime was imported from; null where no build was named"
    )


class BenchedArtifact(Part):
    """One artifact that was measured."""

    name: str = Field(description="its own in this document")
    role: str = Field(description="dense, pruned, baseline or candidate")
    format: str = Field(description='format, as "gguf-q4_0"')
    engine: str | None = Field(default=None, description="what ran it; null: unknown")
    model: str | None = Field(default=None, description="hash of the model it was made from; null: unknown")
    runtime: Runtime | None = Field(default=None, description="build that ran it; missing in older documents")
    metrics: Metrics = Field(description="its figures")


class Comparison(Part):
    """Two artifacts that were measured by turns; they are given by their names."""

    base: str = Field(description="name of the artifact that is compared with")
    candidate: str = Field(description="name of the artifact that is judged")
    ratios: Ratios = Field(description="of rounds; more than 1: the candidate is better")
    ideal_decode_ratio: Real = Field(description="ratio of the bytes that decoding a token reads, no unit")
    contexts: list[DepthRatio] = Field(default_factory=list, description="the same at each of the conditions' contexts")


class Pair(Part):
    """A comparison with the artifacts themselves in place of their names."""

    base: BenchedArtifact
    candidate: BenchedArtifact
    ratios: Ratios
    ideal_decode_ratio: Real
    contexts: list[DepthRatio] = Field(default_factory=list)

    @property
    def sides(self) -> list[Metrics]:
        """Figures of base and candidate."""
        return [self.base.metrics, self.candidate.metrics]


class Sensors(Part):
    """What the board told of its state; null where it tells nothing."""

    governor: str | None = Field(default=None, description="frequency governor of the first CPU")
    mhz: Number = Field(default=None, description="highest clock of any CPU, MHz")
    temperature_c: Number = Field(default=None, description="hottest zone, degrees Celsius")
    throttled: str | int | float | None = Field(
        default=None, description="a Raspberry Pi's flags, or how often an x86 CPU was slowed down for heat"
    )
    load_average: Number = Field(default=None, description="of the last minute, processes")


class Limits(Part):
    """What the process may use of the machine."""

    cpus: Number = Field(default=None, description="CPUs at once, a fraction under a quota")
    memory_bytes: int | None = Field(default=None, description="bytes; null: no limit")


class Machine(Part):
    """Where it was measured."""

    cpu: str = Field(description="model of the CPU, as the kernel names it")
    board: str | None = Field(default=None, description="the device tree's names of the board; null: none")
    cores: int = Field(description="CPUs that the system counts")
    limits: Limits | None = Field(default=None, description="what the process may use of it")
    memory_bytes: int | None = Field(default=None, description="memory, bytes")
    governor: str | None = Field(default=None, description="frequency governor of the first CPU; null: none")
    load_average: Number = Field(default=None, description="of the last minute, processes")
    architecture: str | None = Field(default=None, description='as "x86_64" or "aarch64"')
    system: str | None = Field(default=None, description="name and release of the kernel")
    python: str | None = Field(default=None, description="version of Python")
    energy: str | None = Field(default=None, description="meter that energy is from; null: none may be read")
    before: Sensors = Field(default_factory=Sensors, description="state before measuring")
    after: Sensors = Field(default_factory=Sensors, description="state after measuring")
    host: str | None = Field(
        default=None, description="board (by ssh) or phone (by adb) that it was measured on; missing: here"
    )


class WarmUp(Part):
    """Rounds before those that count."""

    rounds: int = Field(description="number of rounds")
    stable: bool = Field(description="speeds had settled at their end")
    tolerance: float | None = Field(default=None, description="how much settled speeds may differ, as a share")
    most: int | None = Field(default=None, description="number of rounds at most")


class Conditions(Part):
    """How it was measured."""

    threads: int | None = Field(default=None, description="threads of every runtime")
    prompt_tokens: int = Field(ge=1, description="tokens of the prompt")
    decode_tokens: int = Field(ge=1, description="tokens decoded a round")
    rounds: int | None = Field(default=None, description="rounds that count; a comparison tells its own")
    minutes: float | None = Field(default=None, description="of decoding without a pause; missing: not measured")
    looks: list[int] = Field(default_factory=list, description="after how many rounds a verdict may be reached")
    confidence: float | None = Field(default=None, description="of every interval from rounds, 0 to 1")
    versions: dict[str, str] = Field(default_factory=dict, description="version of each package that took part")
    fresh_processes: bool = Field(default=False, description="every round had processes of its own")
    contexts: list[int] = Field(default_factory=list, description="depths at which decoding is measured, tokens")
    kv: str | None = Field(default=None, description="type of the KV cache asked for; null: each runtime's own")
    ubatch: int | None = Field(
        default=None, description="tokens of a prompt computed at once, as asked for; null: each runtime's own number"
    )
    perplexity_window: int | None = Field(default=None, description="window of perplexity, tokens; 0: not measured")
    perplexity_tokens: int | None = Field(default=None, description="tokens predicted for perplexity")
    perplexity_text_sha256: str | None = Field(default=None, description="begin of the text's sha256; null: none")
    warm_up: WarmUp | None = Field(default=None, description="rounds before those that count")
    cores: list[list[int]] | None = Field(
        default=None, description="cores that rounds were drawn from, each by its CPUs; null: the system placed them"
    )
    counter: str | None = Field(default=None, description="what counted instructions; null: nothing")
    spinning: bool | None = Field(
        default=None, description="ONNX Runtime's threads kept a CPU busy while they waited; null: none took part"
    )
    chat_instructions: int | None = Field(default=None, description="instructions that were asked; null: none")
    chat_sha256: str | None = Field(default=None, description="begin of their file's sha256; null: none")
    chat_answer_tokens: int | None = Field(default=None, description="tokens of an answer at most; null: none")


class Bench(Document):
    """The bench document: `saap-edge bench --json`, and the file bench.json of a run."""

    VERSION = SCHEMA
    VERSION_WORD: ClassVar[str] = "schema version"
    REMEDY = "measure again with this version, or judge with the one that wrote it"

    version: Literal[2] = Field(default=SCHEMA, alias="schema", description="version of this format")
    measured_at: str | None = Field(
        default=None, description="when measuring ended, by the clock of the machine that asked for it: UTC, ISO 8601"
    )
    machine: Machine = Field(description="where it was measured")
    conditions: Conditions = Field(description="how it was measured")
    artifacts: list[BenchedArtifact] = Field(description="what was measured")
    comparisons: list[Comparison] = Field(description="what was measured by turns, and how it compares")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        names = [artifact.name for artifact in self.artifacts]
        compared = {name for entry in self.comparisons for name in (entry.base, entry.candidate)}
        if len(set(names)) < len(names) or compared - set(names):
            raise ValueError("artifacts and comparisons do not go together")
        return self

    def pairs(self) -> list[Pair]:
        """The comparisons with the artifacts themselves in place of their names."""
        artifacts = {artifact.name: artifact for artifact in self.artifacts}
        return [
            Pair(
                base=artifacts[entry.base], candidate=artifacts[entry.candidate], ratios=entry.ratios,
                ideal_decode_ratio=entry.ideal_decode_ratio, contexts=entry.contexts,
            )
            for entry in self.comparisons
        ]  # fmt: skip
