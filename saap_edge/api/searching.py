"""What `frontier` and `fit` have in common where they search over axes: the options, and their refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError

__all__ = ["TRIALS", "Over", "gains_of", "search_of"]

TRIALS = 20

# Axes as the option --over has them, or values by name; an empty list: those that the axis has of itself.
Over = Sequence[str] | Mapping[str, Sequence[Any]] | None


def search_of(
    over: Over, trials: int | None, study: str | Path | None, seed: int | None, out: Path
) -> tuple[Mapping[str, Sequence[Any]], dict[str, Any]] | None:
    """(axes, what a search takes beside them), or None where there is none. The folder of the study is made.

    Raises SaapError for options of a search without axes, for no trials, and where Optuna is not installed.
    """
    if not over:
        given = {"--trials": trials, "--study": study, "--seed": seed}
        alone = [name for name, value in given.items() if value is not None]
        if alone:
            raise SaapError(f"{alone[0]} goes with --over")
        return None
    if trials is not None and trials < 1:
        raise SaapError(f"--trials {trials}: a search needs one at least")
    from saap_edge.searching.axes import parsed
    from saap_edge.searching.study import require_optuna

    require_optuna()
    if isinstance(over, str):
        over = [over]
    axes = over if isinstance(over, Mapping) else parsed(over)
    return axes, {
        "trials": trials or TRIALS, "study": Path(study) if study else out / "study.journal", "seed": seed or 0
    }  # fmt: skip


def gains_of(gains: Sequence[str] | None, searched: bool) -> tuple[str, ...]:
    """What a search gains beside quality, each once. Raises SaapError for what is none, and without a search."""
    if not searched:
        if gains:
            raise SaapError("--gain goes with --over")
        return ()
    from saap_edge.searching.frontier import GAINS

    for name in gains or ():
        if name not in GAINS:
            raise SaapError(f"--gain {name}: it is one of {', '.join(GAINS)}")
    return tuple(dict.fromkeys(gains or ("bytes",)))
