"""The report stage: reads the stages' documents, writes report.json and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.prediction.predict import predict_benched
from saap_edge.report.data import build_report
from saap_edge.report.html import render_html
from saap_edge.targets import Target

__all__ = ["write_report"]

_DOCUMENTS = ("plan", "prune", "recover", "verify", "bench", "gate")


def write_report(
    folders: Mapping[str, Path], model: dict[str, Any], target: Target, on_target: bool, out: Path
) -> dict[str, Any]:
    """Write `out/report.json` and `out/report.html`; returns the report.

    `folders` maps stage names to their folders; `model` and `target` describe what was compiled and for what. Where the
    target is another machine (not `on_target`) the report has predictions for it, apart from what was measured.
    Raises SaapError when a stage's document is missing or damaged.
    """
    sections = {name: _read(folders[name] / f"{name}.json") for name in _DOCUMENTS}
    artifacts = [
        {
            "role": role,
            "format": entry["format"],
            "path": entry["path"],
            "bytes": entry["bytes"],
            "sha256": entry["sha256"],
        }
        for role, stage in (("dense", "dense"), ("pruned", "export"))
        for entry in _read(folders[stage] / "manifest.json")["artifacts"]
    ]
    versions = _read(folders["bench"] / "stage.json")["versions"]
    sections["prune"] = {name: value for name, value in sections["prune"].items() if name != "kept"}
    lineage = {name: folder.name for name, folder in folders.items()}
    predicted = [] if on_target else _predicted(sections["bench"], target)
    report = build_report({
        "model": model, "target": target.model_dump(mode="json"), **sections, "predicted": predicted,
        "artifacts": artifacts, "versions": versions, "lineage": lineage,
    })  # fmt: skip
    (out / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False), encoding="utf-8")
    (out / "report.html").write_text(render_html(report), encoding="utf-8")
    return report


def _predicted(bench: dict[str, Any], target: Target) -> list[dict[str, Any]]:
    """What every measured artifact would do on the target."""
    return [
        {"name": entry["name"], **asdict(predict_benched(entry, bench["conditions"], target))}
        for entry in bench["artifacts"]
    ]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaapError(f"cannot read '{path}': {error}") from None
