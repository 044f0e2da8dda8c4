"""Predicting an artifact's speed and memory on a board from the board's figures. A prediction is no measurement.

Decoding a token reads the weights and the KV cache, multiplies every weight, and waits for the other threads in every
layer. Prefill multiplies only. docs/prediction.md derives the formulas. It also shows how far off they were on boards
and sources that the fit had not seen, which gives the intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saap_edge.documents.bench import BenchedArtifact, Conditions
from saap_edge.engines.options import UBATCH, kv_type
from saap_edge.errors import SaapError
from saap_edge.formats import described, kind_of
from saap_edge.prediction.cost import ArtifactCost, artifact_cost, bytes_per_token, work_bytes
from saap_edge.prediction.formulas import (
    DOT,
    UnknownFigure,
    bits_of,
    decode_seconds,
    load_fit,
    memory_rate,
    prefill_seconds,
    weights_of,
)  # fmt: skip
from saap_edge.targets import Figure, Kernel, Target

__all__ = ["ArtifactCost", "Estimate", "Prediction", "artifact_cost", "predict", "predict_benched"]

MIB = 2**20
_PROBED = "kernels that `saap-edge target probe` measured on this board"
_PUBLISHED = "published measurements of this board by others"
_NEW = "the board's data sheet and other boards: nobody's measurement of this one was used"


@dataclass(frozen=True)
class Estimate:
    """A predicted figure, and the interval in which 80 % of the measurements lie that the fit has not seen."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """What `predict` returns. A figure that cannot be predicted is None; `reasons` says why.

    Attributes:
        decode_tok_s, prefill_tok_s: tokens/s.
        ttft_ms: time to the first token, ms.
        ram_mib: memory of the process, MiB.
        ram_mapped_mib: the same where the runtime maps a file whose matrices it repacks, as llama.cpp does unless told
            otherwise; a bundle's run.sh tells it. None where that makes no difference.
        fits: whether it fits into every size of memory that the board has, or into the given one; None where that
            depends on the size, or lies within the interval.
        fits_from_mib: smallest size of memory that surely holds it, MiB; None: there is none.
        basis: what the figures rest on.
        reasons: why a figure cannot be predicted, by its name.
        sources: where the board's figures are from.
    """

    decode_tok_s: Estimate | None
    prefill_tok_s: Estimate | None
    ttft_ms: Estimate | None
    ram_mib: Estimate | None
    ram_mapped_mib: Estimate | None
    fits: bool | None
    fits_from_mib: int | None
    basis: str
    reasons: dict[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Speed:
    """Seconds with what is known of their error: `group` names the fit's interval, `doubts` widen it, `figure` and
    `basis` are what they rest on."""

    seconds: float
    group: str
    doubts: tuple[str, ...]
    figure: Figure
    basis: str


def predict(
    cost: ArtifactCost, target: Target, prompt_tokens: int, context: int, threads: int | None = None,
    ram_mib: int | None = None, ubatch: int | None = None,
) -> Prediction:  # fmt: skip
    """Predict speed and memory of an artifact on a board.

    Args:
        cost: what the artifact costs, from `artifact_cost`.
        target: the board.
        prompt_tokens: tokens of the prompt that is read before the first token.
        context: tokens in the KV cache while decoding.
        threads: threads of the runtime; the target's own where None.
        ram_mib: memory of the board at hand, MiB, for `fits`; all its sizes where None.
        ubatch: tokens of the prompt that are computed at once, at most; llama.cpp's own number where None.

    Raises SaapError when the artifact holds fewer tokens than are asked for.

    >>> from saap_edge.targets import load_target
    >>> cost = ArtifactCost("gguf-q4_0", 700_000_000, 32_768, 750_000_000, parameters=1_250_000_000)
    >>> found = predict(cost, load_target("rpi5"), prompt_tokens=128, context=512)
    >>> found.decode_tok_s.low < found.decode_tok_s.value < found.decode_tok_s.high, found.reasons
    (True, {})
    """
    if cost.context is not None and max(prompt_tokens, context) > cost.context:
        raise SaapError(
            f"the artifact holds sequences of {cost.context} tokens, {max(prompt_tokens, context)} are asked for: take "
            "a smaller prompt or context"
        )
    threads, fit = threads or target.threads, load_fit()
    reasons: dict[str, str] = {}
    decode = _told(reasons, "decode_tok_s", lambda: _decode(fit, cost, target, context, threads))
    prefill = _told(reasons, "prefill_tok_s", lambda: _prefill(fit, cost, target, prompt_tokens, threads))
    if prefill is None:
        reasons["ttft_ms"] = reasons["prefill_tok_s"]
    work = work_bytes(cost, context, min(prompt_tokens, ubatch or UBATCH)) / MIB
    memory = _told(reasons, "ram_mib", lambda: _memory(fit, cost, target, context, work))
    fits, smallest = _fits(memory, target, ram_mib)
    speeds = [speed for speed in (decode, prefill) if speed]
    return Prediction(
        decode_tok_s=decode and _rate(fit, decode, 1),
        prefill_tok_s=prefill and _rate(fit, prefill, prompt_tokens),
        ttft_ms=prefill and _turned(_rate(fit, prefill, prompt_tokens), 1000 * prompt_tokens),
        ram_mib=memory, ram_mapped_mib=memory and _mapped(fit, cost, target, context, work),
        fits=fits, fits_from_mib=smallest, basis=_basis(target, decode or prefill), reasons=reasons,
        sources=tuple(dict.fromkeys(speed.figure.source for speed in speeds)),
    )  # fmt: skip


def predict_benched(artifact: BenchedArtifact, conditions: Conditions, target: Target) -> Prediction:
    """Predict an artifact of a bench document on a board, from its counted figures and not from its timed ones.

    Raises SaapError where one of those figures is missing.
    """
    metrics = artifact.metrics
    context = conditions.prompt_tokens + conditions.decode_tokens // 2  # in the middle of decoding, as bytes_per_token
    kv_bytes, weights = metrics.counted("kv_bytes_per_token"), metrics.projection_bytes
    if weights is None:  # an older document
        weights = metrics.counted("bytes_per_token") - bytes_per_token(0, kv_bytes, context)
    cost = ArtifactCost(
        format=artifact.format, projection_bytes=weights, kv_bytes_per_token=kv_bytes,
        file_bytes=metrics.counted("file_bytes"), parameters=metrics.counted("parameters"), kv=conditions.kv,
    )  # fmt: skip
    return predict(cost, target, conditions.prompt_tokens, context, ubatch=conditions.ubatch)


def _told(reasons: dict[str, str], name: str, ask: Any) -> Any:
    try:
        return ask()
    except UnknownFigure as error:
        reasons[name] = str(error)
        return None


def _decode(fit: dict[str, Any], cost: ArtifactCost, target: Target, context: int, threads: int) -> _Speed:
    read = bytes_per_token(cost.projection_bytes, cost.kv_bytes_per_token, context) + cost.state_bytes
    weights, bits = weights_of(cost), _bits(cost)
    probed = _kernel(target, cost.format, threads)
    if probed:
        figure = probed[1].gemv_gb_s
        # The kernel's speed includes its arithmetic, so that none is added: as for 16 bits.
        seconds = decode_seconds(fit, target, figure.value, read, weights, 16, threads)
        return _Speed(seconds, "decode-known", _doubts(fit, cost, target, threads, figure, probed[0]), figure, _PROBED)
    rate, figure = memory_rate(fit, target)
    board = fit["boards"].get(target.name, {}).get("decode", {})
    effective = target.bandwidth_gb_s.effective_decode
    if board:
        rate *= board["factor"]
    elif effective and not target.accelerator:
        rate, figure = effective.value, effective
    share = threads * (target.threads + 1) / (threads + 1) / target.threads  # few threads do not saturate the memory
    seconds = decode_seconds(fit, target, rate * share, read, weights, bits, threads)
    # A board with one source has a factor of its own, but no second source confirms it.
    group = "accelerator" if target.accelerator else "decode-known" if board.get("sources", 0) > 1 else "decode-new"
    return _Speed(seconds, group, _doubts(fit, cost, target, threads, figure), figure, _PUBLISHED if board else _NEW)


def _prefill(fit: dict[str, Any], cost: ArtifactCost, target: Target, prompt: int, threads: int) -> _Speed:
    """Prefill of a prompt: at least the time of reading the weights once."""
    if target.accelerator:
        raise UnknownFigure("nothing published relates an accelerator's data sheet to its prefill")
    once = _decode(fit, cost, target, 0, threads)
    probed = _kernel(target, cost.format, threads)
    if probed:
        figure = probed[1].gemm_gmac_s
        seconds, kernel, basis = weights_of(cost) / figure.value / 1e9, probed[0], _PROBED
    else:
        board = fit["boards"].get(target.name, {}).get("prefill", {})
        seconds = prefill_seconds(fit, target, weights_of(cost), _bits(cost), threads) / board.get("factor", 1)
        clock = target.cores[0].clock_ghz
        assert clock  # else _decode would have raised UnknownFigure
        figure, kernel, basis = clock, "", _PUBLISHED if board else _NEW
    doubts = _doubts(fit, cost, target, threads, figure, kernel)
    return _Speed(max(prompt * seconds, once.seconds), "prefill", doubts, figure, basis)


def _bits(cost: ArtifactCost) -> float:
    return bits_of(cost.format) or 8 * cost.projection_bytes / cost.parameters


def _kernel(target: Target, artifact_format: str, threads: int) -> tuple[str, Kernel] | None:
    """(format, kernel) of the probed kernel that is nearest: of the same runtime if possible, then in bits. None where
    nothing was probed, or with other threads."""
    if not target.kernels or threads != target.threads:
        return None
    own = described(artifact_format)
    bits = own.kernel_bits or 8.5

    def distance(name: str) -> tuple[bool, bool, float]:
        other = described(name)
        return name != artifact_format, other.kind != own.kind, abs((other.kernel_bits or 99) - bits)

    name = min(target.kernels, key=distance)
    return name, target.kernels[name]


def _doubts(
    fit: dict[str, Any], cost: ArtifactCost, target: Target, threads: int, figure: Figure, kernel: str = ""
) -> tuple[str, ...]:
    """What the rows of the fit do not cover well: each doubt widens the interval. `kernel` is the probed one in use."""
    found = []
    kind = kind_of(described(cost.format).kind)
    if kind.doubt and not (kernel and described(kernel).kind == kind.name):
        found.append(kind.doubt)
    if "avx2" in target.isa and not kernel:
        found.append("x86 (five published rows, a third off)")
    if cost.projection_bytes < fit["evidence"]["smallest_bytes"]:
        found.append(f"a model of less than {fit['evidence']['smallest_bytes'] / 1e6:.0f} MB (no row is smaller)")
    if cost.kv is not None and kv_type(cost.kv).rounded:
        found.append(f"a KV cache in {cost.kv} (its arithmetic is not in the fit)")
    if threads != target.threads:
        found.append(f"{threads} threads (the figures are for {target.threads})")
    if figure.assumed:
        found.append(f"an assumed figure ({figure.source})")
    return tuple(found)


def _rate(fit: dict[str, Any], speed: _Speed, count: int) -> Estimate:
    low, high = fit["intervals"][speed.group]
    value, width = count / speed.seconds, 1 + len(speed.doubts)
    return Estimate(value, value * low**width, value * high**width)


def _turned(rate: Estimate, count: float) -> Estimate:
    return Estimate(count / rate.value, count / rate.high, count / rate.low)


def _memory(fit: dict[str, Any], cost: ArtifactCost, target: Target, context: int, work: float) -> Estimate:
    """Resident memory of the process, MiB: what the runtime keeps of the file, the KV cache, and the runtime itself."""
    if target.accelerator:
        raise UnknownFigure("memory of an accelerator's runtime was not measured")
    record = described(cost.format)
    own = fit["memory"].get(record.memory + ("-repacked" if _repacked(cost, target) else ""))
    if own is None:
        raise UnknownFigure(f"memory of {record.engine} was not measured")
    return _held(own, cost, context, work)


def _mapped(fit: dict[str, Any], cost: ArtifactCost, target: Target, context: int, work: float) -> Estimate | None:
    return _held(fit["memory"]["gguf-mapped"], cost, context, work) if _repacked(cost, target) else None


def _repacked(cost: ArtifactCost, target: Target) -> bool:
    """Whether llama.cpp repacks the file's matrices on this board."""
    return described(cost.format).repacked and bool({"avx2", *DOT} & set(target.isa))


def _held(own: dict[str, float], cost: ArtifactCost, context: int, work: float) -> Estimate:
    value = own["base_mib"] + own["of_file"] * cost.file_bytes / MIB
    cached = (cost.kv_bytes_per_token * context + cost.state_bytes) / MIB + work
    return Estimate(value + cached, value * own["low"] + cached, value * own["high"] + cached)


def _fits(memory: Estimate | None, target: Target, ram_mib: int | None) -> tuple[bool | None, int | None]:
    if memory is None:
        return None, None
    system = target.system_ram_mib.value if target.system_ram_mib else 0
    sizes = [ram_mib] if ram_mib else sorted(target.ram_mib)
    holding = [size for size in sizes if memory.high <= size - system]
    fits = True if len(holding) == len(sizes) else False if memory.low > sizes[-1] - system else None
    return fits, holding[0] if holding else None


def _basis(target: Target, speed: _Speed | None) -> str:
    if speed is None:
        return "nothing: see the reasons"
    text = speed.basis
    if target.accelerator:
        text += "; bandwidth alone, llama.cpp built for the accelerator (saap-edge's own engines run on the CPU)"
    if speed.doubts:
        text += "; wider for " + ", ".join(speed.doubts)
    return text
