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
    """The stages that a call asked for, which it ran or found done, and what they made.

    Attributes:
        out: the run's folder; stage folders are in out/stages.
        stages: of each stage that was asked for: its name, folder, whether it was there already (`cached`), seconds.
        links: links in `out` to what people look for, by name ("report.html"); empty where the chain is not complete.
        exit_code: 0 ok, 1 a limit of the gate failed, 3 a limit is undecided.
        notes: lines on what was corrected in the model, or will differ in a runtime.

    Examples:
        >>> [stage.name for stage in run.stages][:4]
        ['score', 'bank', 'plan', 'prune']
        >>> run.plan.layers[0].heads[0], run.bench.artifacts[1].role, run.exit_code
        (8, 'pruned', 0)
        >>> sorted(run.links)
        ['gguf', 'model', 'plan.json', 'report.html', 'report.json']
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
        """The folder of every stage by name, earlier ones included. Raises SaapError where one was removed."""
        return ancestors(self.folder) | {stage.name: stage.folder for stage in self.stages}

    @property
    def model(self) -> Path:
        """The Hugging Face folder of the recovered model, else of the pruned one. Raises SaapError without either."""
        found = self.folders
        return self._of("recover" if "recover" in found else "prune") / "model"

    @property
    def files(self) -> dict[str, Path]:
        """The pruned model's artifacts by format: GGUF files and ONNX folders. Raises SaapError where one was changed
        since its export, or nothing was exported."""
        return _artifacts(self._of("export"))

    @property
    def dense_files(self) -> dict[str, Path]:
        """The dense model's artifacts by format. Raises SaapError as `files`."""
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
        """The run as a JSON document: what `saap-edge compile --json` prints."""
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
    """The last stage's folder of a run; a path as it is."""
    return place.folder if isinstance(place, Run) else Path(place)


@dataclass(frozen=True)
class Frontier:
    """Dense and pruned at every quantisation.

    Attributes:
        document: the frontier document (docs/frontier.md); `points` has one row for each artifact.
        files: what was written into the run's folder: frontier.json, frontier.html and frontier.png.
    """

    document: dict[str, Any]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Fit:
    """The least pruning that meets a budget.

    Attributes:
        document: the fit document (docs/frontier.md); `found` has ratio and format, or is None.
        recipe: the recipe of what was found, fit.yaml; None where nothing was found, or the dense model suffices.
    """

    document: dict[str, Any]
    recipe: Path | None

    @property
    def exit_code(self) -> int:
        """0 found, 1 nothing meets the budget, 3 the answer rests on a prediction or noise left it open."""
        return int(self.document["exit_code"])
