"""Folders of runs, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saap_edge.gating import Budget
from saap_edge.gating.document import gate_document
from saap_edge.gating.read import read_measured
from tests.gating.support import ratio, side_by_side


def write_run(
    folder: Path, decode: float = 1.2, at: str | None = None, least: float | None = None, cpu: str = "A CPU",
    versions: dict[str, str] | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """A bench.json with a candidate beside main's, and a gate.json where `least` is the limit on its decode ratio."""
    folder.mkdir(parents=True)
    document = side_by_side(ratio(decode, decode - 0.05, decode + 0.05), **changes)
    document["machine"]["cpu"] = cpu
    document["conditions"]["versions"] = versions or {"llama-cpp-python": "1"}
    file = folder / "bench.json"
    file.write_text(json.dumps(document | ({"measured_at": at} if at else {})))
    if least is not None:
        budget = Budget.model_validate({"limits": {"decode_vs_baseline": {"min": least}}})
        gate_document(read_measured(file), budget, None).write(folder / "gate.json")
    return file
