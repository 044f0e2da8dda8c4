"""Another Python environment in which an engine's child process runs: two builds of one runtime, side by side.

The child is this package's own code, in both: it is loaded from its folder, so that nothing of this environment's
site-packages comes before the packages of the other, and a saap-edge that is installed there is not used. The other
environment needs the runtime, and what the child imports (NEEDS).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from saap_edge.engines.registry import EngineRecord
from saap_edge.errors import SaapError

__all__ = ["NEEDS", "check_python", "child_command", "find_python"]

NEEDS = ("numpy", "pydantic>=2.8")  # tests/engines/test_environment.py holds this to what the child imports
LEAST = (3, 11)
SECONDS = 60.0  # a board's card may be slow when a library is read for the first time

# -P: a folder "onnxruntime" where the command is called is not the runtime.
_LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("saap_edge", sys.argv[1] + "/__init__.py",
                                              submodule_search_locations=[sys.argv[1]])
sys.modules["saap_edge"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from saap_edge.engines.child import main
main()
"""
_ASK = """
import importlib.util, json, platform, sys
missing = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
print(json.dumps({"version": sys.version_info[:2], "python": platform.python_version(), "missing": missing}))
"""


def child_command(python: Path | None = None) -> list[str]:
    """The command that starts the engine's child, in this environment or under another interpreter."""
    if python is None:
        return [sys.executable, "-m", "saap_edge.engines.child"]
    return [str(python), "-P", "-c", _LOAD, str(Path(__file__).parents[1])]


def find_python(place: str | Path) -> Path:
    """The interpreter of an environment, which is given by its folder or by the interpreter itself.

    Raises SaapError where there is none. A link is not followed: its place tells the interpreter its environment.
    """
    path = Path(place).expanduser().absolute()
    if path.is_dir():
        path = path / "bin" / "python"
    if not path.is_file() or not os.access(path, os.X_OK):
        raise SaapError(f"no Python at '{place}': give the folder of an environment (python -m venv) or its bin/python")
    return path


def check_python(python: Path, record: EngineRecord) -> None:
    """Raise SaapError, with the command that installs what is missing, where an engine's child cannot run."""
    names = [need.partition(">")[0] for need in NEEDS]
    told = _ask(python, [*names, record.module])
    if tuple(told["version"]) < LEAST:
        raise SaapError(
            f"'{python}' is Python {told['python']}: saap-edge's engine runs in {'.'.join(map(str, LEAST))} or newer"
        )
    if told["missing"]:
        needs = " ".join(f"'{need}'" for need in (*NEEDS, record.package))
        raise SaapError(
            f"'{python}' (Python {told['python']}) lacks {' and '.join(told['missing'])}: {record.name} needs these "
            f"packages there: {python} -m pip install {needs}"
        )


def _ask(python: Path, modules: list[str]) -> dict[str, Any]:
    """What the interpreter says of itself, and which modules it lacks. Raises SaapError where it is no Python 3."""
    try:
        done = subprocess.run(
            [str(python), "-c", _ASK, *modules], capture_output=True, text=True, timeout=SECONDS, cwd=python.parent
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        if not {"version", "missing", "python"} <= answer.keys():
            raise ValueError("another program's JSON")
    except (OSError, ValueError, AttributeError, subprocess.TimeoutExpired):
        raise SaapError(f"'{python}' does not answer as Python 3 does: give the bin/python of an environment") from None
    return answer
