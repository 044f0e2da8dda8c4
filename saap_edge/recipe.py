"""The recipe: everything that fixes a run. Unknown fields are refused, so a typing error never passes silently."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from saap_edge.exporting.settings import ExportSettings
from saap_edge.gating import Budget
from saap_edge.measuring.settings import BenchSettings
from saap_edge.pruning.settings import PruneSettings, ScoreSettings
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.settings import Section

__all__ = ["DataSettings", "Recipe", "bundled_model", "bundled_text"]

_REFERENCE = Path(__file__).parent / "reference"


def bundled_model() -> Path:
    """Folder of the small Llama that ships with the package."""
    return _REFERENCE / "wikitext-llama"


def bundled_text(name: str) -> Path:
    """A text that ships with the package: calibration, heldout or test (WikiText-2 train, valid, test)."""
    return _REFERENCE / "text" / f"{name}.txt"


class DataSettings(Section):
    """Plain text files. They must not overlap: calibration is learnt from, heldout decides, test is reported."""

    calibration: Path = Field(
        default=bundled_text("calibration"), description="scores, repair and recovery learn from it"
    )
    heldout: Path = Field(default=bundled_text("heldout"), description="chooses plans and what recovery keeps")
    test: Path = Field(default=bundled_text("test"), description="perplexity that is reported; nothing is chosen on it")


class Recipe(Section):
    """A whole run of saap-edge."""

    model: str = Field(default=str(bundled_model()), description="Hugging Face folder or hub name")
    target: str = Field(default="host", description="board: a name in targets/ or a path to its YAML")
    seed: int = 0
    data: DataSettings = DataSettings()
    score: ScoreSettings = ScoreSettings()
    prune: PruneSettings = PruneSettings()
    recover: RecoverSettings = RecoverSettings()
    export: ExportSettings = ExportSettings()
    bench: BenchSettings = BenchSettings()
    budget: Budget = Field(default_factory=Budget, description="limits that the gate judges")
