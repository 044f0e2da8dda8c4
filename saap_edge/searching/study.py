"""One Optuna study in a journal file, which several processes and machines may share.

Samplers, storage and the rule of what is best are Optuna's. Here is what a study of ours adds: what it was made for,
points that are not tried twice, an exact number of trials, and trials of processes that died.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
from filelock import FileLock

from saap_edge.errors import SaapError
from saap_edge.searching.axes import Axis
from saap_edge.searching.journal import check_journal, mend
from saap_edge.searching.space import Point, Space, key_of

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

__all__ = ["Begun", "Direction", "SharedStudy", "Tried", "require_optuna"]

Direction = Literal["minimize", "maximize"]
NAME = "saap-edge"
REPEATS = 5  # points in a row that are known already, before one is drawn from those that are not
MADE_FOR, POINT, ROW, LEFT, OWNER, REPEATED = "made for", "point", "row", "left", "owner", "repeats"


def require_optuna() -> None:
    """Raise SaapError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise SaapError("--over searches with Optuna, which is not installed here: pip install 'saap-edge[search]'")


@dataclass(frozen=True)
class Begun:
    """A trial that is this process's to make: its number in the study, and its point."""

    trial: Trial
    point: Point


@dataclass(frozen=True)
class Tried:
    """What a trial came to: a value for each objective; by name, how far each constraint is missed (0 or less: it is
    met); and its row of the document."""

    values: list[float]
    row: dict[str, Any]
    constraints: Mapping[str, float]


class SharedStudy:
    """A study in the file `path`.

    Args:
        path: the journal; it is made if needed.
        made_for: what a study has to agree in (JSON), by its name for people.
        directions: "minimize" or "maximize" for each objective.
        space: what is searched.
        sampler: makes Optuna's sampler of a seed.
        seed: with the number of trials in the study it seeds each choice, so that a search that was killed goes on as
            it would have gone on.

    Raises SaapError for a file that is no study, one that cannot be written, and one that was made for something else.
    """

    def __init__(
        self, path: Path, made_for: Mapping[str, Any], directions: Sequence[Direction], space: Space,
        sampler: Callable[[int], BaseSampler], seed: int,
    ) -> None:  # fmt: skip
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        check_journal(path)
        self.path, self._space, self._sampler, self._seed = path, space, sampler, seed
        self._lock = FileLock(path.with_name(f"{path.name}.turn"))
        try:
            with self._lock:
                mend(path)
                storage = JournalStorage(JournalFileBackend(str(path)))
                study = optuna.create_study(
                    storage=storage, study_name=NAME, directions=[*directions], load_if_exists=True
                )
                self._study: Study = study
                self._agree(made_for)
                self._take_back()
        except OSError as error:
            raise SaapError(f"--study '{path}': cannot be written: {error.strerror or error}") from None
        except (ValueError, KeyError, AssertionError, TypeError):  # Optuna cannot make sense of it
            raise SaapError(
                f"--study '{path}' is no journal of Optuna, or a damaged one: choose another file"
            ) from None

    def _agree(self, made_for: Mapping[str, Any]) -> None:
        """Put down what the study is for, or see that it is for the same."""
        known = self._study.user_attrs.get(MADE_FOR)
        if known is None:
            if self._study.get_trials(deepcopy=False):
                raise SaapError(f"--study '{self.path}' is a study of something else: choose another file")
            self._study.set_user_attr(MADE_FOR, dict(made_for))
            return
        other = [name for name in made_for if known.get(name) != made_for[name]]
        if other:
            raise SaapError(
                f"--study '{self.path}' was made for another {' and another '.join(other)}: give what it was made for, "
                "or another --study"
            )

    def _take_back(self) -> None:
        """Trials that processes of this machine left when they died are tried again, those first. Holding the lock,
        nobody is choosing a point: a trial without an owner has none any more."""
        for trial in self._trials("RUNNING"):
            owner = trial.user_attrs.get(OWNER)
            if owner is None or (owner["machine"] == socket.gethostname() and not _alive(owner)):
                self._again(trial.number, trial.params if owner else {})

    def _again(self, number: int, params: dict[str, Any]) -> None:
        from optuna.trial import TrialState

        self._study.tell(number, state=TrialState.FAIL)
        if params:
            self._study.enqueue_trial(params)

    def _trials(self, *states: str) -> list[FrozenTrial]:
        from optuna.trial import TrialState

        wanted = tuple(TrialState[state] for state in states) or None
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False, states=wanted)
        return trials

    @property
    def tried(self) -> list[FrozenTrial]:
        """The trials that came to an end, without those that repeat another."""
        return [trial for trial in self._trials("COMPLETE") if REPEATED not in trial.user_attrs]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all trials that came to an end."""
        return [trial.user_attrs[ROW] for trial in self.tried]

    @property
    def best(self) -> list[dict[str, Any]]:
        """The rows of the best trials: those of the front, or the one, that keep all constraints."""
        best = self._study.best_trials if len(self._study.directions) > 1 else self._one_best()
        return [trial.user_attrs[ROW] for trial in best if REPEATED not in trial.user_attrs]

    def _one_best(self) -> list[FrozenTrial]:
        try:
            return [self._study.best_trial]
        except ValueError:  # none keeps all constraints
            return []

    @property
    def left(self) -> list[dict[str, Any]]:
        """Points that were left early, each with the reason."""
        return [
            {"point": trial.user_attrs[POINT], "reason": trial.user_attrs[LEFT]}
            for trial in self._trials("PRUNED") if LEFT in trial.user_attrs
        ]  # fmt: skip

    @property
    def running(self) -> int:
        """Trials that other processes work on, or that died on other machines."""
        return len(self._trials("RUNNING"))

    def begin(self, wanted: int) -> Begun | None:
        """The next trial for this process. None where `wanted` are done or being made, or no point is left."""
        everything, repeats = self._space.points.keys(), 0
        with self._lock:
            while True:
                known = self._known()
                if len(self.tried) + self.running >= wanted or everything <= known.keys():
                    return None
                trial, point = self._ask(repeats >= REPEATS)
                same = known.get(key_of(point))
                if same is None:
                    trial.set_user_attr(OWNER, _myself())
                    return Begun(trial, point)
                self._repeat(trial, same)
                repeats += 1

    def _known(self) -> dict[str, FrozenTrial]:
        trials = self._trials("COMPLETE", "PRUNED", "RUNNING")
        return {key_of(trial.user_attrs[POINT]): trial for trial in trials if POINT in trial.user_attrs}

    def _ask(self, unseen: bool) -> tuple[Trial, Point]:
        """A trial and its point, by the sampler; or where `unseen`, one of the combinations that were not drawn yet."""
        from optuna.samplers import BruteForceSampler

        seed = self._seed + len(self._trials())
        with _quiet():
            usual = self._sampler(seed)
            self._study.sampler = BruteForceSampler(seed) if unseen else usual
            trial = self._study.ask()
            values = {axis.name: _suggested(trial, axis) for axis in self._space.axes}
            self._study.sampler = usual  # BruteForceSampler would stop a loop of Optuna's, which there is not
        point = self._space.point(values)
        trial.set_user_attr(POINT, point)
        return trial, point

    def _repeat(self, trial: Trial, same: FrozenTrial) -> None:
        """Tell the sampler what is known of a point that was tried before. Where it is not known yet, the trial ends
        without a result."""
        from optuna.trial import TrialState

        trial.set_user_attr(REPEATED, same.number)
        if same.state == TrialState.COMPLETE:
            for name, value in same.constraints.items():
                trial.set_constraint(name, value)
            self._study.tell(trial, same.values)
        else:
            self._study.tell(trial, state=TrialState.PRUNED)

    def complete(self, begun: Begun, tried: Tried) -> None:
        """Put down what a trial came to."""
        begun.trial.set_user_attr(ROW, tried.row)
        for name, value in tried.constraints.items():
            begun.trial.set_constraint(name, value)
        self._study.tell(begun.trial, tried.values)

    def leave(self, begun: Begun, reason: str) -> None:
        """Put down why a point is not tried: it does not count as a trial."""
        from optuna.trial import TrialState

        begun.trial.set_user_attr(LEFT, reason)
        self._study.tell(begun.trial, state=TrialState.PRUNED)

    def give_back(self, begun: Begun) -> None:
        """Let the point be tried again: this process is about to end."""
        with self._lock:
            self._again(begun.trial.number, begun.trial.params)


def _suggested(trial: Trial, axis: Axis) -> Any:
    """The value of an axis. Of numbers the place is chosen, so that neighbours are alike."""
    if axis.ordered:
        return axis.values[trial.suggest_int(axis.name, 0, len(axis.values) - 1)]
    choices = [str(value) for value in axis.values]
    return axis.values[choices.index(trial.suggest_categorical(axis.name, choices))]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's word that something is experimental: a new version of it is tried before it is asked for."""
    import warnings

    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _myself() -> dict[str, Any]:
    own = psutil.Process()
    return {"machine": socket.gethostname(), "process": os.getpid(), "since": own.create_time()}


def _alive(owner: Mapping[str, Any]) -> bool:
    """Whether a process of this machine still runs; another may have its number by now."""
    try:
        return abs(psutil.Process(owner["process"]).create_time() - float(owner["since"])) < 1
    except psutil.NoSuchProcess:
        return False
