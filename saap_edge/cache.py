"""Stages in folders named by the hash of their inputs: results are found again, and nothing is half-written.

A stage is a pure step: folders of earlier stages and its part of the recipe in, one new folder out. It writes into a
temporary folder beside it, which is renamed when it is whole. So a folder that exists is complete, and a killed run
goes on where it stopped. Nothing here knows maths.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

try:
    from safetensors import SafetensorError
except ImportError:  # a board measures and gates without it

    class SafetensorError(Exception):  # type: ignore[no-redef]
        """Never raised where safetensors is absent."""


from saap_edge.errors import SaapError
from saap_edge.files import file_hash, write_whole

__all__ = [
    "Busy",
    "Stage",
    "StageResult",
    "alone",
    "ancestors",
    "clean_leftovers",
    "is_helper",
    "library_versions",
    "link",
    "read_stage",
    "run_stage",
    "stage_folder",
    "work_folder",
]

_LIBRARIES = (
    "torch", "transformers", "gguf", "onnx", "onnx-ir", "onnxruntime", "optimum-onnx", "openvino",
    "openvino-tokenizers", "llama-cpp-python", "numpy",
)  # fmt: skip
_TEMPORARY = ".tmp-"
_RECORD = "stage.json"
_MANIFEST = "manifest.json"  # of an export: it holds hashes of the artifacts, and their readers check these
_HASHED = 1 << 24  # bytes: of larger files only the size is kept, because their readers check the contents


class Busy(SaapError):
    """Another run works on the same stage."""


@dataclass(frozen=True)
class Stage:
    """A step of the chain.

    Attributes:
        name: its name.
        inputs: earlier stages whose folders it reads.
        reads: files from outside (model, texts) that it reads, by their role.
        settings: what else decides the result, as JSON.
        run: `run(inputs, out)` does the work; `inputs` are folders by stage name.
        code: hash of the code that does the work.
    """

    name: str
    inputs: tuple[str, ...]
    reads: tuple[str, ...]
    settings: dict[str, Any]
    run: Callable[[Mapping[str, Path], Path], None]
    code: str = ""


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its folder, whether it was already there (`cached`), and how many seconds it took."""

    name: str
    folder: Path
    cached: bool
    seconds: float


def run_stage(
    stage: Stage, folders: Mapping[str, Path], outside: Mapping[str, str], root: Path, recipe: dict[str, Any],
    again: bool = False,
) -> StageResult:  # fmt: skip
    """Run a stage, or find that it was run before.

    Args:
        stage: the stage.
        folders: folders of earlier stages, by name.
        outside: content hashes of files from outside, by role.
        root: folder of stage folders.
        recipe: written into the stage's record, so that later stages can be run alone from it. A stage that was run
            before gets it too: settings of later stages may have changed since.
        again: run it even if it was run before; the new folder replaces the old one.

    Raises SaapError when a file of an earlier stage was changed, and when the disk is full or not writable. Nothing is
    left behind then.
    """
    inputs = {name: folders[name] for name in stage.inputs}
    final = stage_folder(stage, folders, outside, root)
    key = final.name.rpartition("-")[2]
    if final.is_dir() and not again:
        _remember(final, recipe)
        return StageResult(stage.name, final, True, 0.0)
    for folder in inputs.values():
        _require_unchanged(folder)
    start = time.monotonic()
    temporary = root / f"{_TEMPORARY}{stage.name}-{key}-{os.getpid()}"
    work = work_folder(temporary)
    try:
        temporary.mkdir(parents=True)
        stage.run(inputs, temporary)
        if is_helper():  # the first process has the result
            return StageResult(stage.name, final, False, time.monotonic() - start)
        record = {
            "stage": stage.name, "hash": key, "inputs": {name: path.name for name, path in inputs.items()},
            "settings": stage.settings, "recipe": recipe, "versions": library_versions(),
            "seconds": round(time.monotonic() - start, 2), "files": _contents(temporary),
        }  # fmt: skip
        (temporary / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        if again:
            shutil.rmtree(final, ignore_errors=True)
        _publish(temporary, final)
        shutil.rmtree(work, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SaapError(f"stage {stage.name}: cannot write to '{root}': {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return StageResult(stage.name, final, False, time.monotonic() - start)


def _remember(folder: Path, recipe: dict[str, Any]) -> None:
    """Put the recipe into the record of a finished stage. Where the folder may not be written, it keeps the old one."""
    record = read_stage(folder)
    if record["recipe"] != recipe and not is_helper():
        with suppress(OSError):
            write_whole(folder / _RECORD, json.dumps(record | {"recipe": recipe}, indent=1))


def stage_folder(stage: Stage, folders: Mapping[str, Path], outside: Mapping[str, str], root: Path) -> Path:
    """The folder that a stage's result is in, or will be: of earlier folders only the names decide it."""
    inputs = {name: folders[name] for name in stage.inputs}
    return root / f"{stage.name}-{_key(stage, inputs, outside)}"


def _contents(folder: Path) -> dict[str, list[int | str]]:
    """[size, hash] of every file of a stage by its path in the folder; [size] of large files."""
    if (folder / _MANIFEST).exists():
        return {}
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> list[int | str]:
    size = path.stat().st_size
    return [size, file_hash(path)] if size <= _HASHED else [size]


def _require_unchanged(folder: Path) -> None:
    """Raise SaapError where a file of a finished stage was changed or removed."""
    record = read_stage(folder)
    for name, said in record.get("files", {}).items():
        path = folder / name
        if not path.is_file() or _content(path) != said:
            remedy = "give an edited plan as --plan, and " if name == "plan.json" else ""
            raise SaapError(
                f"'{path}' is missing or was changed since {record['stage']} wrote it: {remedy}remove the folder "
                f"'{folder.name}', then run `saap-edge compile` again"
            )


def is_helper() -> bool:
    """Whether this is a later process of a launch (`accelerate launch`, torchrun): only the first writes and speaks."""
    return int(os.environ.get("RANK", 0)) > 0


def work_folder(out: Path) -> Path:
    """The folder where a stage that writes into `out` keeps what a killed run needs to go on. It is removed when the
    stage is whole."""
    return out.with_name(out.name.rpartition("-")[0].replace(_TEMPORARY, ".work-"))


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Lock a work folder for this run: two runs would overwrite each other's checkpoints. The folder is removed
    afterwards if it is empty. Raises Busy when another run has it."""
    from filelock import FileLock, Timeout

    if is_helper():  # the first process holds the lock for all
        yield
        return
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise Busy(f"another run works on the same stage, in '{work}': wait for it, or end it") from None
    try:
        yield
    finally:
        (work / "lock").unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):  # not empty: it holds what a killed run needs to go on
            work.rmdir()


def _publish(temporary: Path, final: Path) -> None:
    """Flush to disk, then rename: after a power cut, the folder is whole or absent."""
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():  # another run finished the same stage first: its folder is as good
            raise


def _key(stage: Stage, inputs: Mapping[str, Path], outside: Mapping[str, str]) -> str:
    document = {
        "stage": stage.name,
        "inputs": {name: path.name for name, path in inputs.items()},
        "outside": {role: outside[role] for role in stage.reads},
        "settings": stage.settings,
        "versions": library_versions(),
        "code": stage.code,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()[:12]


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on; libraries that are not installed are left out."""
    found = {}
    for name in ("saap-edge", *_LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_stage(folder: Path) -> dict[str, Any]:
    """The record of a stage folder. Raises SaapError when the folder has none."""
    try:
        record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        made_of = [record["stage"], *record["inputs"].values()]
        if not isinstance(record["recipe"], dict) or any(Path(name).name != name for name in made_of):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SaapError(
            f"'{folder}' is not a stage folder: give one that saap-edge printed, as OUT/stages/NAME-HASH"
        ) from None
    return record


def ancestors(folder: Path) -> dict[str, Path]:
    """A stage folder and all folders that it was made from, by stage name.

    Raises SaapError when one of them was removed.
    """
    return _ancestors(folder, ())


def _ancestors(folder: Path, later: tuple[Path, ...]) -> dict[str, Path]:
    record = read_stage(folder)
    found: dict[str, Path] = {}
    for name in record["inputs"].values():
        parent = folder.resolve().parent / name
        if not parent.is_dir():
            raise SaapError(f"'{folder}' was made from '{name}', which is gone: run `saap-edge compile` again")
        if parent in later:
            raise SaapError(f"'{folder}' says that it was made from '{name}', which was made from it")
        found |= _ancestors(parent, (*later, parent))
    return found | {record["stage"]: folder.resolve()}


def clean_leftovers(root: Path) -> None:
    """Remove temporary folders of runs that died."""
    for path in root.glob(f"{_TEMPORARY}*"):
        process = path.name.rpartition("-")[2]
        if not (process.isdigit() and psutil.pid_exists(int(process))):
            shutil.rmtree(path, ignore_errors=True)


def link(target: Path, name: Path) -> None:
    """Point the relative symbolic link `name` at `target`, in one step. Raises SaapError when `name` is a real file."""
    if name.exists() and not name.is_symlink():
        raise SaapError(f"'{name}' is in the way: move it, or choose another --out")
    temporary = name.with_name(f".{name.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, name.parent))
    temporary.replace(name)
