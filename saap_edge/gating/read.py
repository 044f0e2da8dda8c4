"""Reading what the gate judges (report.json, bench.json, or a folder with one), and checking its baseline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saap_edge.documents.base import check_version
from saap_edge.documents.bench import Bench
from saap_edge.errors import SaapError
from saap_edge.gating.figures import judged_artifacts
from saap_edge.targets import Target

__all__ = ["Measured", "check_baseline", "read_measured"]


@dataclass(frozen=True)
class Measured:
    """A bench document, its file, and what a report.json says besides: the model's name and the target. Both are None
    for a bench.json."""

    path: Path
    bench: Bench
    model: str | None = None
    target: Target | None = None


def read_measured(path: Path) -> Measured:
    """Read report.json or bench.json, or find it in a run's --out folder or a folder of the bench stage.

    Raises SaapError when there is none, or it is damaged or of another schema version.
    """
    file = _find(path)
    document = _load(file)
    if "schema_version" in document:
        check_version(Bench, document["schema_version"], f"'{file}'")
        bench, model, target = document.get("bench"), document.get("model"), document.get("target")
    elif "schema" in document and "conditions" in document:
        bench, model, target = document, None, None
    else:
        raise SaapError(f"'{file}' is neither a report.json nor a bench.json")
    if not isinstance(bench, dict):
        raise SaapError(f"'{file}' holds no measurements (section bench)")
    name = model.get("name") if isinstance(model, dict) else None
    measured = Bench.parse(bench, f"'{file}'", "bench")
    return Measured(file, measured, name if isinstance(name, str) else None, _target(file, target))


def check_baseline(measured: Measured, baseline: Measured) -> None:
    """Raises SaapError when the baseline is of another model, or has none of the formats that are judged."""
    for now, was in ((_identities(measured), _identities(baseline)), (_name(measured), _name(baseline))):
        if now and was:
            if not now & was:
                raise SaapError(
                    f"'{baseline.path}' is a baseline of another model: {_listed(was)} there, {_listed(now)} in "
                    f"'{measured.path}'"
                )
            break
    formats, others = ({entry.format for entry in judged_artifacts(each.bench)} for each in (measured, baseline))
    if not formats & others:
        raise SaapError(
            f"'{baseline.path}' has {_listed(others)}, '{measured.path}' {_listed(formats)}: no format in common"
        )


def _identities(measured: Measured) -> set[str]:
    """Hashes of the models that the artifacts were made from, as far as they are known."""
    return {artifact.model[:12] for artifact in measured.bench.artifacts if artifact.model}


def _name(measured: Measured) -> set[str]:
    """The model's name, if the report has one. Names are compared where hashes are not known."""
    return {measured.model} if measured.model else set()


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "no artifact"


def _find(path: Path) -> Path:
    if not path.exists():
        raise SaapError(f"no '{path}': give a report.json, a bench.json, or the folder of a run")
    if not path.is_dir():
        return path
    for name in ("report.json", "bench.json"):
        if (path / name).is_file():
            return path / name
    raise SaapError(
        f"'{path}' holds neither report.json nor bench.json: give a run's --out folder once it is whole, or its bench "
        "folder (OUT/stages/bench-HASH)"
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None
    except (ValueError, RecursionError):
        raise SaapError(f"'{path}' is not a JSON document") from None
    if not isinstance(document, dict):
        raise SaapError(f"'{path}' is neither a report.json nor a bench.json")
    return document


def _target(path: Path, section: Any) -> Target | None:
    try:
        return None if section is None else Target.model_validate(section)
    except ValidationError:
        raise SaapError(f"'{path}' is damaged: its section target does not describe a board") from None
