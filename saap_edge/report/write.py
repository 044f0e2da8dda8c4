"""Writing the report: the stages' documents become report.json and report.html."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from saap_edge.documents.bench import Bench
from saap_edge.documents.gate import Gate
from saap_edge.documents.plan import load_plan
from saap_edge.documents.report import Report
from saap_edge.documents.verify import Verify
from saap_edge.files import read_json
from saap_edge.prediction.predict import predict_benched
from saap_edge.report.data import build_report
from saap_edge.report.html import render_html
from saap_edge.targets import Target

__all__ = ["write_report"]


def write_report(
    folders: Mapping[str, Path], model: dict[str, Any], target: Target, on_target: bool, out: Path
) -> Report:
    """Write report.json and report.html, and return the report.

    Args:
        folders: folders of the stages, by name.
        model: section `model` of the report.
        target: the board that the model was compiled for.
        on_target: this machine is the target. If it is not, the report has predictions for the target, apart from what
            was measured.
        out: folder to write into.

    Raises SaapError when a stage's document is missing or damaged.
    """
    prune = read_json(folders["prune"] / "prune.json")
    bench = Bench.read(folders["bench"] / "bench.json")
    report = build_report({
        "model": model, "target": target.model_dump(mode="json"),
        "plan": load_plan(folders["plan"]).as_dict(),
        "prune": {name: value for name, value in prune.items() if name != "kept"},
        "recover": read_json(folders["recover"] / "recover.json"),
        "verify": Verify.read(folders["verify"] / "verify.json").as_dict()["artifacts"],
        "bench": bench.as_dict(), "gate": Gate.read(folders["gate"] / "gate.json").as_dict(),
        "predicted": [] if on_target else _predicted(bench, target), "artifacts": _artifacts(folders),
        "versions": read_json(folders["bench"] / "stage.json")["versions"],
        "lineage": {name: folder.name for name, folder in folders.items()},
    })  # fmt: skip
    report.write(out / "report.json")
    (out / "report.html").write_text(render_html(report), encoding="utf-8")
    return report


def _artifacts(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The artifacts of the run, dense and pruned."""
    told = ("format", "path", "bytes", "sha256")
    return [
        {"role": role, **{name: entry[name] for name in told}}
        for role, stage in (("dense", "dense"), ("pruned", "export"))
        for entry in read_json(folders[stage] / "manifest.json")["artifacts"]
    ]


def _predicted(bench: Bench, target: Target) -> list[dict[str, Any]]:
    """Predictions on the target for every artifact that was measured."""
    return [
        {"name": entry.name, **asdict(predict_benched(entry, bench.conditions, target))} for entry in bench.artifacts
    ]
