"""The formulas of docs/prediction.md: seconds from bytes, products and a board's figures, with fitted coefficients.

`fit` is the document of the coefficients, prediction.json.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from saap_edge.formats import described
from saap_edge.prediction.cost import ArtifactCost
from saap_edge.targets import Figure, Target

__all__ = [
    "DOT", "FIT_FILE", "UnknownFigure", "bits_of", "decode_seconds", "lanes", "load_fit", "memory_rate",
    "prefill_seconds", "weights_of",
]  # fmt: skip

FIT_FILE = Path(__file__).with_name("prediction.json")
DOT = {"dotprod", "i8mm", "avx_vnni", "avx512_vnni"}  # multiply and add bytes in one instruction; else it takes three


class UnknownFigure(Exception):
    """A figure cannot be predicted; the message says why."""


@cache
def load_fit() -> dict[str, Any]:
    """The coefficients that come with saap-edge. `benchmarks/prediction.py --write` fits them."""
    fit: dict[str, Any] = json.loads(FIT_FILE.read_text(encoding="utf-8"))
    return fit


def weights_of(cost: ArtifactCost) -> float:
    """Number of weights that decoding a token multiplies: all, except an embedding table that is not the head.

    >>> tied = ArtifactCost("gguf-q4_0", 4500, 0, 4500, parameters=8000)
    >>> untied = ArtifactCost("gguf-q4_0", 4500, 0, 5625, parameters=10_000)
    >>> weights_of(tied), weights_of(untied)
    (8000, 8000.0)
    """
    bits = bits_of(cost.format)
    return min(cost.parameters, 8 * cost.projection_bytes / bits) if bits else cost.parameters


def bits_of(artifact_format: str) -> float | None:
    """Bits a weight with its share of the scale; None where the format's name does not tell.

    >>> bits_of("gguf-q4_0"), bits_of("onnx-fp16")
    (4.5, 32.0)
    """
    return described(artifact_format).kernel_bits


def lanes(target: Target, threads: int) -> float:
    """10^9 128-bit vector instructions a second, of the `threads` fastest cores together.

    Raises UnknownFigure where the target does not state clock and vector width.
    """
    speeds = sorted((_core_lanes(core, target) for core in target.cores for _ in range(core.count)), reverse=True)
    return sum(speeds[:threads])


def _core_lanes(core: Any, target: Target) -> float:
    if core.clock_ghz is None or core.simd_bits is None:
        raise UnknownFigure(f"target '{target.name}' does not state clock_ghz and simd_bits of its {core.kind}")
    return float(core.clock_ghz.value * core.simd_bits.value / 128)


def memory_rate(fit: dict[str, Any], target: Target) -> tuple[float, Figure]:
    """GB/s that decoding gets from memory on a board that the fit does not know, and the figure that it rests on.

    Raises UnknownFigure where the target states no bandwidth.
    """
    known = target.bandwidth_gb_s
    if target.accelerator:
        if known.theoretical:
            return known.theoretical.value * fit["accelerator"]["theory"], known.theoretical
    elif known.copy_measured:
        return known.copy_measured.value * fit["decode"]["copy"], known.copy_measured
    elif known.theoretical:
        return known.theoretical.value * fit["decode"]["theory"], known.theoretical
    raise UnknownFigure(
        f"target '{target.name}' states no memory bandwidth: `saap-edge target probe` measures it there"
    )


def decode_seconds(
    fit: dict[str, Any], target: Target, rate: float, read: float, weights: float, bits: float, threads: int
) -> float:
    """Seconds of decoding a token that reads `read` bytes at `rate` GB/s, and multiplies `weights` of `bits` bits."""
    seconds = read / rate / 1e9
    if target.accelerator:
        return seconds
    own = fit["decode"]
    cycles = 0.0 if bits >= 16 else own["dot"] if DOT & set(target.isa) else own["plain"]
    vectors = lanes(target, threads)
    clock = max(core.clock_ghz.value for core in target.cores if core.clock_ghz)
    depth = weights ** (1 / 3) / 30  # about the number of layers, which grows with the cube root of the weights
    return float(seconds + weights * cycles / vectors / 1e9 + depth * own["layer_us"] * 1e-6 / clock)


def prefill_seconds(fit: dict[str, Any], target: Target, weights: float, bits: float, threads: int) -> float:
    """Seconds of one token of a long prompt, whose `weights` weights have `bits` bits."""
    own = fit["prefill"]
    cycles = own["4"] if bits < 5.6 else own["8"] if bits < 16 else own["16"]
    return float(weights * cycles * (1 if DOT & set(target.isa) else own["plain"]) / lanes(target, threads) / 1e9)
