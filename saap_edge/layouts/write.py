"""Writing a layout: what it is made of is found in the run, and its folder appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from saap_edge import __version__
from saap_edge.bundle.find import find_artifact, find_model, licence_files
from saap_edge.errors import SaapError
from saap_edge.layouts.document import LAYOUT_FILE, File, Written
from saap_edge.layouts.registry import LAYOUTS, Given, Layout
from saap_edge.progress import Bar, no_bar

__all__ = ["write_layout"]


def write_layout(
    path: Path, name: str, out: Path, format: str | None = None, packages: Path | None = None, bar: Bar = no_bar
) -> Written:
    """Write the layout `name` of a run's artifact, or of its model, as the new folder `out`.

    `path` is a run's --out folder or the folder of one of its stages from export on, as for a bundle. `format` says
    which artifact; without it, the first of the layout's formats that the run has. `packages` is a folder with npm
    packages, which are fetched without it. A folder that an earlier call wrote is replaced.

    Raises SaapError when something is missing, when the layout cannot hold the model, or `out` exists and is neither
    empty nor such a folder.
    """
    layout = LAYOUTS.find(name)
    if packages is not None and not layout.packages:
        raise SaapError(f"--packages: the layout '{name}' needs no packages, leave it out")
    _check_place(out)
    given = replace(_given(path, layout, format), packages=packages, bar=bar)
    _check_states(given, layout)
    existed = out.parent.is_dir()
    temporary = out.parent / f".tmp-{out.name}-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        notes = layout.write()(given, temporary)
        for licence in licence_files(given.base):
            shutil.copyfile(licence, temporary / licence.name)
        written = Written(
            version=1, saap_edge=__version__, layout=name, format=given.format, notes=notes, files=_files(temporary)
        )
        (temporary / LAYOUT_FILE).write_text(written.model_dump_json(indent=1), encoding="utf-8")
        _publish(temporary, out)
    except OSError as error:
        raise SaapError(f"cannot write to '{out}': {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not existed and out.parent.is_dir() and not any(out.parent.iterdir()):
            out.parent.rmdir()
    return written


def _given(path: Path, layout: Layout, format: str | None) -> Given:
    known = layout.takes()
    if format is not None and format not in known:
        raise SaapError(f"--format {format}: the layout '{layout.name}' takes {', '.join(known)}")
    if layout.takes_model:
        model, base = find_model(path)
        return Given(format or layout.formats[0], model, model, base)
    source = find_artifact(path, (format,) if format else known)
    return Given(source.artifact.format, source.folder / source.artifact.path, source.model, source.base)


def _check_states(given: Given, layout: Layout) -> None:
    from saap_edge.exporting.refusal import APART
    from saap_edge.model.checkpoint import read_spec

    spec = read_spec(given.model) if layout.attention_only else None
    if spec and spec.stateful:
        raise SaapError(
            f"the layout '{layout.name}' holds no model with {spec.stateful} ({spec.family.title}): nothing there "
            "keeps their states. Take ollama, or the run's own GGUF and ONNX files"
        )
    if spec and spec.is_gemma4:
        raise SaapError(
            f"the layout '{layout.name}' holds no {spec.family.title}: {APART}, and nothing there knows such. "
            "Take ollama, or the run's own GGUF and ONNX files"
        )


def _check_place(out: Path) -> None:
    """Raise SaapError where `out` holds anything that no earlier call wrote."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise SaapError(f"--out '{out}' is in the way: move it, or choose another name")
    there = {str(file.relative_to(out)) for file in out.rglob("*") if not file.is_dir()} if out.is_dir() else set()
    if not there:
        return
    try:
        known = {file.path for file in Written.read(out / LAYOUT_FILE).files}
    except SaapError:
        raise SaapError(f"--out '{out}' has files of something else: move it, or choose another name") from None
    others = sorted(there - known - {LAYOUT_FILE})
    if others:
        raise SaapError(f"--out '{out}' has a file that saap-edge did not write, '{others[0]}': move it first")


def _files(folder: Path) -> list[File]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [File(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size) for path in paths]


def _publish(temporary: Path, out: Path) -> None:
    """Give the finished folder its name; the folder that had it is removed only then."""
    if not out.exists():
        temporary.rename(out)
        return
    before = temporary.with_name(f"{temporary.name}-before")
    out.rename(before)
    try:
        temporary.rename(out)
    except OSError:
        before.rename(out)
        raise
    shutil.rmtree(before, ignore_errors=True)
