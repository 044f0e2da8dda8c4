"""What the functions of the interface return."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.cache import StageResult, ancestors
from saap_edge.errors import EXIT_OK, SaapError

if TYPE_CHECKING:
    from saap_edge.documents.bench import Bench
    from saap_edge.documents.gate import Gate
    from saap_edge.documents.plan import Plan
    from saap_edge.documents.report import Report

__all__ = ["Fit", "Frontier", "Place", "Run", "folder_of"]


@dataclass(frozen=True)
class Run:
    """Stages that were run, or found done.

    Attributes:
        out: the run's folder; stage folders are in out/stages.
        stages: name, folder, whether it was there already, and seconds, of each that was asked for.
        links: what people look for, by name ("report.html"), where the chain is complete.
        exit_code: 0 ok, 1 a limit of the gate failed, 3 inconclusive.
        notes: what was put right of the model, or differs in a runtime, a line each.
    """

    out: Path
    stages: tuple[StageResult, ...]
    links: dict[str, Path] = field(default_factory=dict)
    exit_code: int = EXIT_OK
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the last stage: what the next function works on."""
        return self.stages[-1].folder

    @property
    def folders(self) -> dict[str, Path]:
        """Every stage's folder, of those before these stages too, by name. Raises SaapError where one is gone."""
        return ancestors(self.folder) | {stage.name: stage.folder for stage in self.stages}

    @property
    def model(self) -> Path:
        """The Hugging Face folder of the recovered model, or of the pruned one. Raises SaapError where neither is."""
        found = self.folders
        return self._of("recover" if "recover" in found else "prune") / "model"

    @property
    def files(self) -> dict[str, Path]:
        """The artifacts of the pruned model by format: a GGUF file, or an ONNX folder. Raises SaapError where they were
        changed."""
        return _artifacts(self._of("export"))

    @property
    def dense_files(self) -> dict[str, Path]:
        """The artifacts of the dense model, by format. Raises SaapError as `files`."""
        return _artifacts(self._of("dense"))

    @property
    def plan(self) -> Plan:
        """Widths per layer, before and after."""
        from saap_edge.documents.plan import load_plan

        return load_plan(self._of("plan"))

    @property
    def bench(self) -> Bench:
        """The bench document: speed, memory and quality of every artifact."""
        from saap_edge.documents.bench import Bench

        return Bench.read(self._of("bench") / "bench.json")

    @property
    def gate(self) -> Gate:
        """The gate document: verdicts on the recipe's limits."""
        from saap_edge.documents.gate import Gate

        return Gate.read(self._of("gate") / "gate.json")

    @property
    def report(self) -> Report:
        """The report document: all that the run found."""
        from saap_edge.documents.report import Report

        return Report.read(self._of("report") / "report.json")

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: what --json prints."""
        stages = [
            {"stage": each.name, "folder": str(each.folder), "cached": each.cached, "seconds": round(each.seconds, 2)}
            for each in self.stages
        ]
        files = {name: str(path) for name, path in self.links.items()}
        return {"exit_code": self.exit_code, "stages": stages, "files": files}

    def _of(self, name: str) -> Path:
        found = self.folders.get(name)
        if found is None:
            raise SaapError(f"the stage {name} was not run: the last one is {self.stages[-1].name}")
        return found


def _artifacts(folder: Path) -> dict[str, Path]:
    from saap_edge.artifacts import read_manifest

    return {artifact.format: folder / artifact.path for artifact in read_manifest(folder).artifacts}


Place = str | Path | Run  # a run, or the folder of a stage


def folder_of(place: Place) -> Path:
    """The folder that a run ends with, or the one that was given."""
    return place.folder if isinstance(place, Run) else Path(place)


@dataclass(frozen=True)
class Frontier:
    """Dense and pruned at every quantisation. `document` holds a row a point; `files` were written into the run's
    folder."""

    document: dict[str, Any]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Fit:
    """The least pruning that meets a budget. `recipe` is its file, None where there is none or nothing is pruned."""

    document: dict[str, Any]
    recipe: Path | None

    @property
    def exit_code(self) -> int:
        """0 found, 1 there is none, 3 it rests on a prediction or on noise."""
        return int(self.document["exit_code"])
