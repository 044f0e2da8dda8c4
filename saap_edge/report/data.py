"""The report as one JSON document (schema version 2), from the stages' own documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saap_edge.documents.base import finite
from saap_edge.documents.gate import Gate
from saap_edge.documents.report import SCHEMA_VERSION, Report

__all__ = ["SCHEMA_VERSION", "build_report", "overall"]


def build_report(sections: Mapping[str, Any]) -> Report:
    """Put the sections of a report together. Figures that are not finite become null: JSON has no word for them.

    `sections` are those of `documents.report.Report`, as the stages wrote them. Raises SaapError that names the field
    where one is missing or damaged.
    """
    head = {"schema_version": SCHEMA_VERSION, "verdict": overall(sections.get("gate"))}
    return Report.parse(finite(head | dict(sections)), "the report")


def overall(gate: Gate | Mapping[str, Any] | None) -> str:
    """One word for all limits: pass, fail, inconclusive, or "no limits given".

    >>> overall({"verdicts": [{"verdict": "pass"}, {"verdict": "inconclusive"}]}), overall(None)
    ('inconclusive', 'no limits given')
    """
    verdicts = [entry["verdict"] for entry in gate["verdicts"]] if gate else []
    if not verdicts:
        return "no limits given"
    return next((word for word in ("fail", "inconclusive") if word in verdicts), "pass")
