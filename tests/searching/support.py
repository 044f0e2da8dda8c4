"""A study over a small grid whose figures are a formula, also for processes of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from saap_edge.api.recipes import recipe_of
from saap_edge.progress import Progress
from saap_edge.searching.axes import axes_of, parsed
from saap_edge.searching.run import run_search
from saap_edge.searching.space import Space
from saap_edge.searching.study import SharedStudy, Tried

ROOT = Path(__file__).parents[2]
OVER = ["ratio=0.1,0.2,0.3,0.4,0.5", "effort=quick,normal", "group=32,64,128"]


def space() -> Space:
    recipe = recipe_of({"export": {"formats": ["gguf-q4_0"]}})
    return Space(axes_of(parsed(OVER), recipe, {}), recipe)


def lots(seed):
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def opened(path, made_for=None, directions=("minimize", "minimize"), seed=0, sampler=lots) -> SharedStudy:
    return SharedStudy(path, made_for or {"model": "a"}, directions, space(), sampler, seed)


def figures(point) -> tuple[float, float]:
    """(loss, size): less of both is better, and a normal effort and a small group lose less."""
    loss = point["ratio"] ** 2 + (point["effort"] == "quick") / 50 + point["group"] / 5000
    return loss, 1 - point["ratio"] - point["group"] / 1000


def attempt(seconds=0.0, log=None):
    def made(point):
        if log:
            with log.open("a") as file:
                file.write(f"{point}\n")
        time.sleep(seconds)
        return Tried(list(figures(point)), {"point": point}, {})

    return made


def start(path: Path, trials: int, seconds: float, log: Path, seed: int = 0) -> subprocess.Popen:
    """A process that works on a study."""
    code = (
        "import sys; from pathlib import Path; from tests.searching.support import *\n"
        "path, trials, seconds, log, seed = sys.argv[1:]\n"
        "study = opened(Path(path), seed=int(seed))\n"
        "run_search(study, space(), int(trials), attempt(float(seconds), Path(log)), Progress())\n"
    )
    command = [sys.executable, "-c", code, *map(str, (path, trials, seconds, log, seed))]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


__all__ = ["Path", "Progress", "attempt", "figures", "lots", "opened", "run_search", "space", "start"]
