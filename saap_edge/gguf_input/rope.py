"""The rotary parameters of a GGUF model, as config.json has them.

GGUF has them in one of three forms: metadata (linear, yarn); a table of factors by which the plain frequencies are
divided (`rope_freqs`: llama3, and all scalings in our own files); or two tables (longrope), one of them for texts
within the context of pretraining.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from saap_edge.errors import SaapError
from saap_edge.families.rope import attention_factor, yarn_scale
from saap_edge.gguf_file.reader import GgufModel

__all__ = ["rope_parameters"]

_EXACT = 2e-6  # relative error of a table that a formula made in float32
_COMMON_HIGH, _COMMON_LOW = 4.0, 1.0  # high_freq_factor and low_freq_factor of every Llama 3


def rope_parameters(model: GgufModel, head_dim: int, context: int) -> dict[str, Any]:
    """transformers' `rope_parameters`, with partial_rotary_factor if only a part of each head rotates.

    Raises SaapError for scalings that transformers does not have.
    """
    theta = model.number(model.key("rope.freq_base"), 10000.0)
    turning = model.count(model.key("rope.dimension_count"), head_dim)
    if turning % 2 or not 0 < turning <= head_dim:
        raise SaapError(f"'{model.path}': rope.dimension_count is {turning}, and a head has {head_dim} dimensions")
    found = {"rope_type": "default", "rope_theta": float(theta)} | _scaling(model, float(theta), turning, context)
    return found if turning == head_dim else found | {"partial_rotary_factor": turning / head_dim}


def _scaling(model: GgufModel, theta: float, turning: int, context: int) -> dict[str, Any]:
    key = model.key
    kind = model.text(key("rope.scaling.type"), "linear")
    factor = model.number(key("rope.scaling.factor"), model.number(key("rope.scale_linear"), 0.0)) or 1.0
    attention = model.number(key("rope.scaling.attn_factor"), 1.0)
    original = model.count(key("rope.scaling.original_context_length"), context) or context
    tables = {name: _table(model, name, turning) for name in ("rope_freqs", "rope_factors_short", "rope_factors_long")}
    if original < 2:
        raise SaapError(f"'{model.path}': {key('rope.scaling.original_context_length')} is {original}")
    table = tables["rope_freqs"]
    if table is not None:
        if kind not in ("none", "longrope") and factor != 1.0:
            raise SaapError(f"'{model.path}' has a table of frequencies and {kind} rope scaling: one of them is wrong")
        return _of_table(table, theta, attention, context)
    if kind == "longrope" or tables["rope_factors_short"] is not None:
        return _longrope(model, tables, original, context, attention)
    if kind == "yarn":
        return _yarn(model, factor, original, attention)
    if kind not in ("linear", "none"):
        raise SaapError(f"'{model.path}': rope scaling '{kind}' is not supported (supported: linear, yarn, longrope)")
    if attention != 1.0:
        raise SaapError(f"'{model.path}': rope.scaling.attn_factor is {attention:g} without yarn or longrope")
    return {} if kind == "none" or factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _table(model: GgufModel, name: str, turning: int) -> np.ndarray | None:
    """A table of factors, float64, one for each rotated pair; None if the file does not have it."""
    name = f"{name}.weight"
    shape = model.shape(name)
    if shape is None:
        return None
    if shape != (turning // 2,):
        raise SaapError(f"'{model.path}': {name} is {shape}, and {turning} dimensions of a head turn")
    table: np.ndarray = model.rows(name, 0, turning // 2).double().numpy()
    if not (np.isfinite(table).all() and (table > 0).all()):
        raise SaapError(f"'{model.path}': {name} holds factors that are no positive numbers")
    return table


def _yarn(model: GgufModel, factor: float, original: int, attention: float) -> dict[str, Any]:
    key = model.key
    odd = {"yarn_ext_factor": (-1.0, 1.0), "yarn_attn_factor": (1.0,), "yarn_log_multiplier": (0.0,)}
    for name, usual in odd.items():
        value = model.number(key(f"rope.scaling.{name}"), usual[0])
        if value not in usual:
            raise SaapError(f"'{model.path}': rope.scaling.{name} is {value:g}, for which transformers has no word")
    found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name, usual_turns in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        turns = model.number(key(f"rope.scaling.yarn_{name}"), usual_turns)
        if turns != usual_turns:
            found[name] = turns
    # llama.cpp multiplies by the paper's factor, and then by this one.
    return found if attention == 1.0 else found | {"attention_factor": attention * yarn_scale(factor)}


def _longrope(
    model: GgufModel, tables: dict[str, np.ndarray | None], original: int, context: int, attention: float
) -> dict[str, Any]:
    short, long = tables["rope_factors_short"], tables["rope_factors_long"]
    if short is None or long is None:
        raise SaapError(f"'{model.path}': of rope_factors_short and rope_factors_long one is missing")
    found = {
        "rope_type": "longrope", "short_factor": short.tolist(), "long_factor": long.tolist(),
        "original_max_position_embeddings": original,
    }  # fmt: skip
    usual = attention_factor(found | {"factor": context / original})
    return found if math.isclose(attention, usual, rel_tol=1e-6) else found | {"attention_factor": attention}


def _of_table(table: np.ndarray, theta: float, attention: float, context: int) -> dict[str, Any]:
    """The parameters that give a table: none, linear or llama3 if these can, else longrope with the table's factors."""
    if attention == 1.0:
        if (table == 1.0).all():
            return {}
        if np.ptp(table) == 0:
            return {"rope_type": "linear", "factor": _round(float(table[0]))}
        llama3 = _llama3(table, theta)
        if llama3:
            return llama3
    factors = table.tolist()
    return {
        "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0,
        "attention_factor": attention, "original_max_position_embeddings": context,
    }  # fmt: skip


def _llama3(table: np.ndarray, theta: float) -> dict[str, Any] | None:
    """The parameters of llama3 that give this table, or None.

    High frequencies stay, and low ones are divided by `factor`. Between them the share of a frequency that stays is
    linear in it: (original / 2 pi * frequency - low) / (high - low). The table only depends on the ratios of original,
    low and high, so low is set to 1.
    """
    plain = theta ** (-2 * np.arange(len(table)) / (2 * len(table)))
    factor = float(table[-1])
    between = (table > 1) & (table < factor * (1 - 1e-5))
    if table[0] != 1.0 or factor <= 1.0 or not between.any():
        return None
    kept = (1 / table - 1 / factor) / (1 - 1 / factor)
    if between.sum() == 1:  # a single point of the line: assume Llama 3's own ratio of high and low, and check it below
        spread, offset = _COMMON_HIGH - _COMMON_LOW, -_COMMON_LOW
        slope = (kept[between][0] * spread - offset) / spread / plain[between][0]
        high = _COMMON_HIGH
    else:
        slope, offset = np.polyfit(plain[between], kept[between], 1)
        if offset >= 0:
            return None
        high = 1 - 1 / offset
    original = slope * 2 * math.pi * (high - 1)
    found = {
        "rope_type": "llama3", "factor": _round(factor), "low_freq_factor": _COMMON_LOW,
        "high_freq_factor": _round(high), "original_max_position_embeddings": round(original),
    }  # fmt: skip
    made = np.clip((found["original_max_position_embeddings"] * plain / (2 * math.pi) - 1) / (high - 1), 0, 1)
    remade = 1 / ((1 - made) / factor + made)
    return found if np.allclose(remade, table, rtol=_EXACT, atol=0) else None


def _round(value: float) -> float:
    """The short decimal that someone wrote, from its float32."""
    return float(f"{value:.5g}")
