"""What of a finished run is published, found in its folders: nothing here writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saap_edge.artifacts import Artifact, Manifest, read_manifest
from saap_edge.bundle.find import front_matter
from saap_edge.cache import ancestors, read_stage
from saap_edge.documents.report import Report
from saap_edge.errors import SaapError
from saap_edge.files import folder_hash
from saap_edge.formats import Format, described
from saap_edge.publishing.licence import Licence, licence_of
from saap_edge.sources import stated_by

__all__ = ["Base", "Contents", "Shipped", "find_contents"]

_REPORT = "report.json"
_CACHED = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})")


@dataclass(frozen=True)
class Base:
    """The model that was compiled.

    Attributes:
        folder: its Hugging Face folder.
        name: for people, never a path.
        id, commit: its name on the hub and the commit it is of; None: unknown.
        fields: the front matter of its README.md.
    """

    folder: Path
    name: str
    id: str | None
    commit: str | None
    fields: dict[str, Any]


@dataclass(frozen=True)
class Shipped:
    """An artifact that is published: its format, the file or folder, and its entry in the manifest."""

    record: Format
    path: Path
    entry: Artifact


@dataclass(frozen=True)
class Contents:
    """A finished run, as far as it is published.

    Attributes:
        report: its report.
        recipe: its recipe, as the stages recorded it.
        plan: its plan.json.
        base: the model that was compiled.
        licence: of the base model, and so of what is published.
        model: the Hugging Face folder of the pruned model; None: it is not published.
        artifacts: the artifacts that are published.
        tokenizer: the folder with the model's tokenizer and chat template, published or not.
        notes: lines on what is left out.
    """

    report: Report
    recipe: dict[str, Any]
    plan: Path
    base: Base
    licence: Licence
    model: Path | None
    artifacts: tuple[Shipped, ...]
    tokenizer: Path
    notes: tuple[str, ...]


def find_contents(
    path: Path, formats: tuple[str, ...] = (), with_model: bool = True, licence: str | None = None,
    base_id: str | None = None,
) -> Contents:  # fmt: skip
    """Find what is published of a run, given as its --out folder or the folder of its report stage.

    Args:
        path: the run.
        formats: artifacts to publish; empty: all that a runtime takes from a folder.
        with_model: publish the Hugging Face folder too.
        licence: identifier of a licence, where the base model states none.
        base_id: name of the base model on the hub, where the run does not know it.

    Raises SaapError where the run is unfinished, an artifact is missing, changed or was not verified, and as
    `licence_of`.
    """
    found = ancestors(_report_folder(path))
    record, report = read_stage(found["report"]), Report.read(found["report"] / _REPORT)
    manifest = read_manifest(found["export"])
    base = _base(record["recipe"]["model"], report.model.name, manifest.lineage.get("model"), base_id)
    artifacts, notes = _artifacts(manifest, found["export"], path, report, formats)
    model = found["recover"] / "model"
    return Contents(
        report=report, recipe=record["recipe"], plan=found["plan"] / "plan.json", base=base,
        licence=licence_of(base.folder, base.id, licence), model=model if with_model else None, artifacts=artifacts,
        tokenizer=model, notes=tuple(notes),
    )  # fmt: skip


def _report_folder(path: Path) -> Path:
    """The folder of the report stage: its own, or that which a run's --out folder links to."""
    folder = (path / _REPORT).resolve().parent if (path / _REPORT).is_symlink() else path
    if not path.exists():
        raise SaapError(f"no run at '{path}': give the --out folder of `saap-edge compile`")
    if not (folder / "stage.json").is_file() or read_stage(folder)["stage"] != "report":
        raise SaapError(f"'{path}' is no finished run: it has no {_REPORT}; run `saap-edge compile` with it to its end")
    return folder


def _base(said: str, name: str, sha256: str | None, base_id: str | None) -> Base:
    """The base model. Its commit is told only where the folder still is what the run began with (`sha256`)."""
    folder = stated_by(said)
    cached = _CACHED.search(folder.resolve().as_posix())
    known = f"{cached['owner']}/{cached['name']}" if cached else None
    same = cached is not None and base_id in (None, known) and folder_hash(folder) == sha256
    commit = cached["commit"] if cached and same else None
    return Base(folder, name, base_id or known, commit, front_matter(folder / "README.md"))


def _artifacts(
    manifest: Manifest, export: Path, path: Path, report: Report, formats: tuple[str, ...]
) -> tuple[tuple[Shipped, ...], list[str]]:  # fmt: skip
    there = {entry.format: Shipped(described(entry.format), export / entry.path, entry) for entry in manifest.artifacts}
    for name in formats:
        if name not in there:
            raise SaapError(f"--format {name}: '{path}' has {', '.join(there)}")
        if there[name].record.launch is None:
            raise SaapError(f"--format {name}: no runtime takes it from a repository, leave it out")
    passed = {parity.format for parity in report.verify if parity.role == manifest.role and parity.passed}
    chosen = {name: there[name] for name in formats or there if there[name].record.launch is not None}
    for name in chosen:
        if name not in passed:
            raise SaapError(f"'{export}' was never verified in {name}: run `saap-edge compile` again")
    left = [name for name in there if name not in chosen] if not formats else []
    return tuple(chosen.values()), [f"{name} is left out: no runtime takes it from a repository" for name in left]
