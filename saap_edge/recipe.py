"""The recipe: everything that fixes a run. Unknown fields are refused, so a typing error never passes silently."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from saap_edge.exporting.settings import ExportSettings
from saap_edge.gating import Budget
from saap_edge.measuring.settings import BenchSettings
from saap_edge.pruning.settings import PruneSettings, ScoreSettings
from saap_edge.recovery.settings import RecoverSettings
from saap_edge.settings import Section

__all__ = ["SELF", "DataSettings", "Recipe", "bundled_model", "bundled_text"]

SELF = "self"  # in the place of a calibration file: the model writes the text

_REFERENCE = Path(__file__).parent / "reference"


def bundled_model() -> Path:
    """Folder of the small Llama that ships with the package."""
    return _REFERENCE / "wikitext-llama"


def bundled_text(name: str) -> Path:
    """A text that ships with the package: calibration, heldout or test (WikiText-2 train, valid, test)."""
    return _REFERENCE / "text" / f"{name}.txt"


# Absolute, so that a file named "self" is not taken for the word when the recipe is read again.
_File = Annotated[Path, AfterValidator(Path.absolute)]


class DataSettings(Section):
    """Plain text files. They must not overlap: calibration is learnt from, heldout decides, test is reported."""

    calibration: Literal["self"] | _File | tuple[Literal["self"], _File] = Field(
        default=bundled_text("calibration"),
        description="scores, repair and recovery learn from it: a file; self: the model writes it; [self, FILE]: half "
        "of the windows each",
    )
    self_tokens: int | None = Field(
        default=None, ge=1, description="tokens that the model writes; where absent what score and recover take"
    )
    heldout: Path = Field(default=bundled_text("heldout"), description="chooses plans and what recovery keeps")
    test: Path = Field(default=bundled_text("test"), description="perplexity that is reported; nothing is chosen on it")

    @property
    def file(self) -> Path | None:
        """The calibration file; None where the model writes all of it."""
        calibration = self.calibration
        return calibration if isinstance(calibration, Path) else None if calibration == SELF else Path(calibration[1])

    @property
    def written(self) -> float:
        """Share of the calibration windows that the model writes: 0, a half or 1."""
        return 0.0 if isinstance(self.calibration, Path) else 1.0 if self.calibration == SELF else 0.5

    @property
    def files(self) -> dict[str, Path]:
        """The text files by role; no "calibration" where the model writes all of it."""
        return ({"calibration": self.file} if self.file else {}) | {"heldout": self.heldout, "test": self.test}


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
