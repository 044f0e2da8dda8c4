"""A bundle prepared on its board: its weights lie in the file as the board's kernels read them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from saap_edge.artifacts import engine_of
from saap_edge.bundle.check import check_bundle, file_problems
from saap_edge.bundle.schema import BUNDLE_FILE, Bundle, list_files, read_bundle
from saap_edge.engines.onnx_prepared import PREPARED_FILE, prepare_folder
from saap_edge.engines.onnxruntime import OnnxRuntimeEngine
from saap_edge.errors import ParityError, SaapError

__all__ = ["prepare_bundle"]


def prepare_bundle(folder: Path, out: Path) -> Bundle:
    """Write the ONNX bundle in `folder` again, at the new folder `out`, prepared for this machine.

    It is checked before it gets its name: it must give the answers that the bundle records. Raises SaapError for a
    bundle of another runtime, a damaged or prepared one, and where `out` exists; ParityError where answers differ.
    """
    if out.exists() or out.is_symlink():
        raise SaapError(f"--out '{out}' is in the way: move it, or choose another name")
    if folder.is_file():
        raise SaapError(f"'{folder}' is packed: unpack it first, as tar --zstd -xf does, and give the folder")
    bundle = read_bundle(folder)
    if engine_of(bundle.format) != OnnxRuntimeEngine.name:
        raise SaapError(f"'{folder}' holds {bundle.format}: only ONNX Runtime can keep what it packed in a file")
    if (folder / bundle.model / PREPARED_FILE).is_file():
        raise SaapError(f"'{folder}' is prepared already: give the bundle that it was made of")
    if problems := file_problems(folder, bundle):
        raise SaapError(problems[0])
    temporary = out.parent / f".tmp-{out.name}-{os.getpid()}"
    try:
        ignored = shutil.ignore_patterns(Path(bundle.model).name)
        shutil.copytree(folder, temporary, copy_function=shutil.copy, ignore=ignored)
        prepare_folder(folder / bundle.model, temporary / bundle.model)
        made = bundle.model_copy(update={"files": list_files(temporary)})
        (temporary / BUNDLE_FILE).write_text(made.model_dump_json(indent=1), encoding="utf-8")
        check = check_bundle(temporary)
        if check.exit_code:
            raise ParityError(f"prepared, the bundle fails its check: {(check.problems + check.differences)[0]}")
        temporary.rename(out)
    except OSError as error:
        raise SaapError(f"cannot write '{out}': {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return made
