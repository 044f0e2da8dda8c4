"""What `saap-edge draft` does: answers of the parent, what every draft knew of them, and what that is worth there."""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saap_edge.artifacts import context_of
from saap_edge.documents.draft import (
    Draft,
    DraftConditions,
    DraftFile,
    DraftKind,
    DraftLength,
    DraftMeasured,
    DraftResult,
    DraftVerdict,
    Interval,
    PredictedCosts,
)  # fmt: skip
from saap_edge.drafting.acceptance import Answer, sample_of
from saap_edge.drafting.answers import known_to, parent_answers, prompt_ids
from saap_edge.drafting.files import check_same_tokens
from saap_edge.drafting.measure import Setting, measure, steps_of
from saap_edge.drafting.prompts import KINDS, read_prompts, sha256_of
from saap_edge.drafting.speed import expected_tokens, speed_up, survival, verification
from saap_edge.engines.registry import DRAFT, engine_at
from saap_edge.engines.worker import Worker
from saap_edge.errors import EXIT_INCONCLUSIVE, EXIT_OK, SaapError
from saap_edge.machine.facts import cpu_name
from saap_edge.prediction.cost import ArtifactCost, artifact_cost
from saap_edge.prediction.predict import predict
from saap_edge.progress import Bar
from saap_edge.targets import Target, matches_this_machine

__all__ = ["ALL", "Asked", "find_drafts"]

ALL = "all"
PROMPT, CONTEXT = 128, 512  # tokens, as `predict` takes them
_PAYS: DraftVerdict = "pays"
_DOES_NOT: DraftVerdict = "does not pay"
_UNDECIDED: DraftVerdict = "undecided"


@dataclass(frozen=True)
class Asked:
    """What the user asks for.

    Attributes:
        prompts: of each kind.
        tokens: of an answer at most.
        longest: longest draft length that is considered.
        threads: on the target; its own number where None.
        threads_here: of the runtime here; as on the target where None, but no more than there are CPUs.
        measured: measure here.
        rounds: of measuring.
    """

    prompts: int
    tokens: int
    longest: int
    threads: int | None
    threads_here: int | None
    measured: bool
    rounds: int


def find_drafts(model: Path, drafts: Sequence[Path], target: Target, asked: Asked, bar: Bar) -> Draft:
    """Judge drafts of a model for a target (docs/draft.md). Raises SaapError for files that do not go together."""
    record = engine_at(model)
    if record.drafts is None or any(engine_at(draft) is not record for draft in drafts):
        raise SaapError("a model and its drafts must be .gguf files: only llama.cpp takes a draft here")
    for draft in drafts:
        check_same_tokens(model, draft)
    costs = {path: artifact_cost(path) for path in (model, *drafts)}
    here = asked.threads_here or min(asked.threads or target.threads, os.cpu_count() or 1)
    engine = f"{record.name}{DRAFT}"
    with bar("draft", None):
        answers, context, notes = _answers(model, engine, asked, here, bar)
        results = []
        for draft in drafts:
            with bar(f"{draft.name}: what it knows", len(answers)) as advance:
                known = known_to(draft, engine, answers, here, context, advance)
            measured = None
            if asked.measured:
                setting = Setting(model, draft, engine, here, context, asked.longest, asked.rounds)
                with bar(f"{draft.name}: by turns", steps_of(setting, known)) as advance:
                    measured = measure(setting, known, advance)
                notes += _differing(draft, measured)
            results.append(_result(draft, costs[model], costs[draft], known, target, asked, measured))
    results.sort(key=lambda each: -(each.speedup.value if each.speedup else 0.0))
    paying = next((each for each in results if each.verdict == _PAYS), None)
    undecided = any(each.verdict == _UNDECIDED for each in results)
    verdict = _PAYS if paying else _UNDECIDED if undecided else _DOES_NOT
    return Draft(
        exit_code=EXIT_INCONCLUSIVE if verdict == _UNDECIDED else EXIT_OK, verdict=verdict,
        best=paying.draft.name if paying else None, model=_file(model, costs[model]), target=target.name,
        conditions=_conditions(asked, target, here, record.package, costs[model]), drafts=results, notes=notes,
    )  # fmt: skip


def _answers(model: Path, engine: str, asked: Asked, threads: int, bar: Bar) -> tuple[list[Answer], int, list[str]]:
    """The parent's answers, the context that holds them and a pass more, and notes."""
    spare = asked.tokens + asked.longest + 1
    longest = context_of(model)
    if longest <= spare:
        raise SaapError(f"'{model.name}' holds {longest} tokens, {spare} are needed: take a smaller --tokens")
    context = min(longest, 512 + spare)
    prompts = read_prompts(asked.prompts)
    with (
        Worker(engine, model, threads, context) as worker,
        bar("answers of the model", asked.prompts * len(KINDS)) as advance,
    ):
        ids, notes = prompt_ids(worker, model, prompts, context - spare)
        answers = parent_answers(worker, ids, asked.tokens, advance)
    if not answers:
        raise SaapError(f"'{model.name}' ends every answer at its first token: there is nothing to draft")
    return answers, max(len(answer.prompt) for answer in answers) + spare, notes


def _differing(draft: Path, measured: DraftMeasured) -> list[str]:
    """A line where answers were not the parent's own."""
    if measured.lossless:
        return []
    first = measured.differences[0]
    return [
        f"{draft.name}: with it, {len(measured.differences)} answers differ from the model's own, {first.prompt} from "
        f"token {first.position} on: no speed-up is given. One token and several at once are summed in another order, "
        "so that close calls can fall the other way"
    ]


def _result(
    draft: Path, parent: ArtifactCost, cost: ArtifactCost, answers: list[Answer], target: Target, asked: Asked,
    measured: DraftMeasured | None,
) -> DraftResult:  # fmt: skip
    costs, why = _predicted_costs(parent, cost, target, asked.threads)
    kinds = [ALL, *dict.fromkeys(answer.kind for answer in answers)]
    rows = [_kind(kind, [a for a in answers if kind in (ALL, a.kind)], asked.longest, costs) for kind in kinds]
    gamma, speedup, verdict, reason = _decided(rows[0], costs, why, measured, matches_this_machine(target))
    return DraftResult(
        draft=_file(draft, cost), bytes_ratio=cost.projection_bytes / parent.projection_bytes, kinds=rows, costs=costs,
        gamma=gamma, speedup=speedup, measured=measured, verdict=verdict, reason=reason,
    )  # fmt: skip


def _kind(kind: str, answers: list[Answer], longest: int, costs: PredictedCosts | None) -> DraftKind:
    sample = sample_of(answers, longest)
    share = sample.share()
    return DraftKind(
        kind=kind, prompts=len(answers), positions=int(sample.positions[0]), acceptance=share,
        runs=survival([answer.known for answer in answers], longest),
        lengths=[
            DraftLength(
                gamma=gamma, tokens_per_pass=(tokens := sample.tokens_per_pass(gamma)),
                geometric=expected_tokens(share.value, gamma),
                predicted=_speedup(tokens, gamma, costs) if costs else None,
            )
            for gamma in range(1, longest + 1)
        ],
    )  # fmt: skip


def _speedup(tokens: Interval, gamma: int, costs: PredictedCosts) -> Interval:
    """The low end takes few accepted tokens and costly verifications together, the high end the opposite."""
    value, low, high = (
        speed_up(said, gamma, costs.draft, verification(gamma + 1, further))
        for said, further in (
            (tokens.value, costs.further.value), (tokens.low, costs.further.high), (tokens.high, costs.further.low),
        )
    )  # fmt: skip
    return Interval(value=value, low=low, high=high)


def _predicted_costs(
    parent: ArtifactCost, draft: ArtifactCost, target: Target, threads: int | None
) -> tuple[PredictedCosts | None, str]:
    """Costs of a pass on the target, by `predict`; None and the reason where it knows too little of the board."""
    held = [min(tokens, parent.context or tokens, draft.context or tokens) for tokens in (PROMPT, CONTEXT)]
    one, other = (predict(cost, target, held[0], held[1], threads) for cost in (parent, draft))
    if not (one.decode_tok_s and one.prefill_tok_s and other.decode_tok_s):
        return None, next(iter({**other.reasons, **one.reasons}.values()))
    single, prompt = one.decode_tok_s.value, one.prefill_tok_s
    value, low, high = (min(single / rate, 1.0) for rate in (prompt.value, prompt.high, prompt.low))
    further = Interval(value=value, low=low, high=high)
    return PredictedCosts(draft=single / other.decode_tok_s.value, further=further, basis=one.basis), ""


def _decided(
    row: DraftKind, costs: PredictedCosts | None, why: str, measured: DraftMeasured | None, here: bool
) -> tuple[int, Interval | None, DraftVerdict, str]:
    """Draft length, speed-up there, verdict and reason. What was measured decides where the target is this machine."""
    if here and measured and measured.speedup:
        ratio = measured.speedup
        speedup = Interval(value=ratio.ratio, low=ratio.low, high=ratio.high)
        batch = next(each for each in measured.batches if each.tokens == measured.gamma + 1)
        tokens, said = row.lengths[measured.gamma - 1].tokens_per_pass.value, "measured"
        needed = measured.gamma * measured.draft.ratio + batch.cost.ratio
        return measured.gamma, speedup, _verdict([speedup]), _words(tokens, needed, measured.gamma, said)
    if costs is None:
        best = max(row.lengths, key=lambda each: each.tokens_per_pass.value / (each.gamma + 1))
        return best.gamma, None, _UNDECIDED, f"nothing can be predicted: {why}"
    known = [(length.predicted or Interval(value=math.nan, low=math.nan, high=math.nan)) for length in row.lengths]
    place = max(range(len(known)), key=lambda index: known[index].value)
    gamma, tokens = row.lengths[place].gamma, row.lengths[place].tokens_per_pass.value
    needed = gamma * costs.draft + verification(gamma + 1, costs.further.value)
    verdict = _PAYS if known[place].low > 1 else _verdict(known)
    return gamma, known[place], verdict, _words(tokens, needed, gamma, "predicted")


def _verdict(intervals: Sequence[Interval]) -> DraftVerdict:
    """By the speed-ups of all lengths that could be chosen: no length may gain, or the only one surely gains."""
    if all(each.high < 1 for each in intervals):
        return _DOES_NOT
    return _PAYS if len(intervals) == 1 and intervals[0].low > 1 else _UNDECIDED


def _words(tokens: float, needed: float, gamma: int, how: str) -> str:
    return f"{tokens:.2f} tokens a pass, which takes the time of {needed:.2f} ({gamma} drafted; {how})"


def _file(path: Path, cost: ArtifactCost) -> DraftFile:
    return DraftFile(
        name=path.name, format=cost.format, file_bytes=cost.file_bytes, bytes_per_token=cost.projection_bytes,
        parameters=cost.parameters,
    )  # fmt: skip


def _conditions(asked: Asked, target: Target, here: int, package: str, cost: ArtifactCost) -> DraftConditions:
    return DraftConditions(
        prompts=asked.prompts, prompts_sha256=sha256_of(), tokens=asked.tokens, threads=here,
        target_threads=asked.threads or target.threads, context=min(CONTEXT, cost.context or CONTEXT), cpu=cpu_name(),
        here=matches_this_machine(target), versions={package: importlib.metadata.version(package)},
    )  # fmt: skip
