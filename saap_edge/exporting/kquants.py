"""GGUF in llama.cpp's K-quants and IQ types, which llama.cpp itself makes from our F16 file.

llama.cpp chooses the type of each tensor, as in all files of that name (src/llama-quant.cpp,
llama_tensor_get_type_impl). Only token embedding and output head are always Q8_0, as in our other quantised files. Most
of these types have blocks of 256. A matrix whose rows do not divide into blocks gets another type
(tensor_type_fallback in that file), and the summary names it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from saap_edge.engines.worker import cause_of_death, child_environment
from saap_edge.errors import SaapError
from saap_edge.exporting.gguf import projections, summarise, unpermute
from saap_edge.exporting.imatrix import read_importance
from saap_edge.exporting.refusal import gguf_architecture
from saap_edge.exporting.weights import ExportWeights
from saap_edge.files import file_hash
from saap_edge.formats import FORMATS, Format
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.spec import linear_shapes

__all__ = ["check_importance", "held_projections", "write_kquant"]

# Types that llama.cpp falls back to. It chooses none of them otherwise, except the type that a file is named after.
_FALLBACKS = ("Q4_0", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "F16")


FLOOR = 1e-6  # of the mean importance of a matrix: the least that a column has


def check_importance(format: Format, imatrix: Path | None) -> None:
    """Raise SaapError when the format needs an importance matrix and there is none."""
    if format.needs_importance and imatrix is None:
        raise SaapError(
            f"GGUF type '{format.quantisation}' needs an importance matrix (it would be garbage without): give one, "
            f"or use one of {', '.join(own.quantisation for own in _made() if not own.needs_importance)}"
        )


def _made() -> list[Format]:
    """The formats that llama.cpp makes."""
    return [format for format in FORMATS.values() if format.made_from]


def write_kquant(
    folder: Path, source: Path, out: Path, quantisation: str, imatrix: Path | None = None
) -> dict[str, Any]:
    """Quantise `source`, the F16 file of the model in `folder`, to the file `out`.

    Args:
        folder: Hugging Face folder, dense or pruned.
        source: the file that `write_gguf` wrote of it in "f16".
        out: the file.
        quantisation: a type that llama.cpp makes, or one in blocks such as "q4_0", which llama.cpp rounds by
            importance and `write_gguf` does not.
        imatrix: importance matrix of the model in `folder`, a file of `save_importance`.

    Returns the summary of `write_gguf`, with `fallbacks` (the type of every matrix that could not have the wanted one)
    and `imatrix_sha256`. Raises SaapError for a type that needs `imatrix`, for an importance matrix of another model,
    and when llama.cpp fails or dies; then there is no file.
    """
    format = FORMATS.get(f"gguf-{quantisation}")
    if format is None or not (format.made_from or format.blocks):
        raise SaapError(f"GGUF type '{quantisation}' is unknown (known: {', '.join(f.quantisation for f in _made())})")
    check_importance(format, imatrix)
    weights = ExportWeights(folder)
    command = [
        sys.executable, "-m", "saap_edge.exporting.kquants_child", str(source), str(out),
        str(int(gguf.LlamaFileType[f"MOSTLY_{quantisation.upper()}"])),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        if imatrix is not None:
            command.append(f"{scratch}/importance.safetensors")
            save_file(_importance(read_importance(imatrix), weights, imatrix), command[-1])
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=child_environment())
    if child.returncode:
        out.unlink(missing_ok=True)
        raise SaapError(f"llama.cpp could not make '{out.name}': {cause_of_death(child.returncode, child.stderr)}")
    tensors = gguf.GGUFReader(out).tensors
    own = {name for index in range(len(weights.spec.layers)) for name in _names(weights, index)}
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors if tensor.name in own}
    fallbacks = {name: kind for name, kind in kinds.items() if kind in _FALLBACKS and kind != quantisation.upper()}
    sizes = [(tensor.name, tensor.tensor_type.name, int(tensor.n_bytes)) for tensor in tensors]
    return summarise(sizes, _architecture(weights), quantisation, out, weights.spec) | {
        "fallbacks": fallbacks, "imatrix_sha256": file_hash(imatrix) if imatrix else None,
    }  # fmt: skip


def held_projections(path: Path, weights: ExportWeights) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values) of every projection in a GGUF file that was made of the folder of `weights`.

    Names are the folder's; values are float32 [out, in], dequantised by gguf-py, with rows in transformers' order.
    """
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for index in range(len(weights.spec.layers)):
        shapes = linear_shapes(weights.spec, index)
        for projection in projections(weights.spec, _architecture(weights), index):
            tensor = tensors[projection.name]
            rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            rows = rows if projection.rows is None else rows[projection.rows[0]]
            rows = rows if projection.columns is None else rows[:, projection.columns[0]]
            rows = unpermute(rows, projection.heads)
            start = 0
            for name in projection.sources:
                yield name, rows[start : start + shapes[name][0]]
                start += shapes[name][0]


def _architecture(weights: ExportWeights) -> str:
    return str(gguf_architecture(weights.spec))


def _names(weights: ExportWeights, index: int) -> list[str]:
    return [projection.name for projection in projections(weights.spec, _architecture(weights), index)]


def _importance(matrix: dict[str, np.ndarray], weights: ExportWeights, path: Path) -> dict[str, np.ndarray]:
    """The importance matrix under the file's names, as wide as the file's rows.

    llama.cpp stores zeros for a block whose columns the calibration text never used (importance 0): a floor keeps them.
    Columns that the exporter added are zeros, so any importance would do; the mean keeps llama.cpp's weighted sums away
    from zero. Stacked matrices have the same input, and so one importance.
    """
    spec, found = read_spec(weights.folder), {}
    for index in range(len(spec.layers)):
        shapes, padded = linear_shapes(spec, index), linear_shapes(weights.spec, index)
        for projection in projections(weights.spec, _architecture(weights), index):
            name = projection.sources[0]
            values = matrix.get(name) if name in weights else np.ones(padded[name][1], dtype=np.float32)
            if values is None or (name in weights and values.shape != (shapes[name][1],)):
                what = "is missing" if values is None else f"has {values.shape[0]} channels, not {shapes[name][1]}"
                raise SaapError(f"'{path}': {name} {what}: measure the importance matrix on the model that is exported")
            extra, mean = padded[name][1] - len(values), float(values.mean()) or 1.0
            wide = np.pad(np.maximum(values, FLOOR * mean), (0, extra), constant_values=mean)
            if projection.columns is not None:
                places, count = projection.columns
                wide, kept = np.full(count, mean, dtype=wide.dtype), wide
                wide[places] = kept
            found[projection.name] = wide
    return found
