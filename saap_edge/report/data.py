"""The report as one JSON document (schema version 2), from the stages' own documents."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["SCHEMA_VERSION", "build_report", "overall"]

SCHEMA_VERSION = 2


def build_report(sections: dict[str, Any]) -> dict[str, Any]:
    """Put sections together; figures that are not finite become null, because JSON has no word for them.

    `sections`: model, target, plan, prune, recover, artifacts, verify, bench, gate, versions, as the stages wrote them.
    """
    report: dict[str, Any] = _finite(
        {"schema_version": SCHEMA_VERSION, "verdict": overall(sections.get("gate")), **sections}
    )
    return report


def overall(gate: dict[str, Any] | None) -> str:
    """One word for all limits: pass, fail, inconclusive, or "no limits given"."""
    verdicts = [entry["verdict"] for entry in (gate or {}).get("verdicts", [])]
    if not verdicts:
        return "no limits given"
    return next((word for word in ("fail", "inconclusive") if word in verdicts), "pass")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
