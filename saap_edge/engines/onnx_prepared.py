"""ONNX folders whose data file holds the weights as this machine's kernels read them, too.

ONNX Runtime packs the matrices of int4 and int8 as it loads them, into memory that the kernel cannot drop. It can write
what it packed into the data file and map it from there (`session.save_external_prepacked_constant_initializers`). How
they are packed depends on the processor and on the version of ONNX Runtime: a prepared folder says for which it is.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.onnx_header import read_graph
from saap_edge.errors import SaapError
from saap_edge.machine.facts import cpu_flags, cpu_name

__all__ = ["PREPARED_FILE", "parameters_before", "prepare_folder", "refusal"]

PREPARED_FILE = "prepared.json"
_GRAPH, _DATA = "model.onnx", "model.onnx.data"
_LEAST = 1024  # bytes of a weight that goes into the data file
ort = lazy_import("onnxruntime")


def prepare_folder(folder: Path, out: Path) -> None:
    """Write an ONNX folder of saap-edge again, at the new folder `out`, with the packed matrices in its data file.

    Raises SaapError where ONNX Runtime cannot load it, or packs nothing of it.
    """
    out.mkdir(parents=True)
    for file in folder.iterdir():
        if file.is_file() and file.name not in (_GRAPH, _DATA):
            shutil.copyfile(file, out / file.name)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors arrive as exceptions
    options.optimized_model_filepath = str(out / _GRAPH)
    for name, value in (
        ("optimized_model_external_initializers_file_name", _DATA),
        ("optimized_model_external_initializers_min_size_in_bytes", str(_LEAST)),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    try:
        ort.InferenceSession(str(folder / _GRAPH), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the binding's exceptions share no base class of their own
        raise SaapError(f"'{folder}': ONNX Runtime cannot prepare it ({str(error).splitlines()[0]})") from None
    if b"prepacked_0" not in (out / _GRAPH).read_bytes():
        raise SaapError(f"'{folder}': ONNX Runtime packs none of its matrices on this processor: run it as it is")
    told = _here() | {"parameters": read_graph(folder / _GRAPH).parameters}
    (out / PREPARED_FILE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def parameters_before(folder: Path) -> int | None:
    """Parameters of the folder that a prepared one was made of; None of a folder that is not prepared.

    The prepared graph has a copy of what two weights shared, as the embedding and the head do. Raises SaapError for a
    damaged record.
    """
    path = folder / PREPARED_FILE
    if not path.is_file():
        return None
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["parameters"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SaapError(_damaged(path)) from None


def _damaged(path: Path) -> str:
    return f"'{path}' is damaged: prepare the bundle again"


def refusal(folder: Path) -> str | None:
    """Why a prepared folder cannot be run here; None where it can, or is not a prepared one."""
    path = folder / PREPARED_FILE
    if not path.is_file():
        return None
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in _here().items() if name != "cpu" and told[name] != value]
        made_for = f"{told['cpu']} and onnxruntime {told['version']}"
    except (OSError, ValueError, KeyError, TypeError):
        return _damaged(path)
    if not differing:
        return None
    return (
        f"'{folder}' was prepared for {made_for}, this is {cpu_name()} and onnxruntime {ort.__version__}: take the "
        "bundle that it was made of, or run `saap-edge prepare` on that here"
    )


def _here() -> dict[str, str]:
    """What the packed matrices depend on: the processor's instructions, and the version of the runtime."""
    flags = " ".join(sorted(cpu_flags()))
    return {
        "cpu": cpu_name(), "machine": platform.machine(), "flags_sha256": hashlib.sha256(flags.encode()).hexdigest(),
        "version": ort.__version__,
    }  # fmt: skip
