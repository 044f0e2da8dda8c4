"""A process that quantises one GGUF file: `python -m saap_edge.exporting.kquants_child SOURCE OUT FTYPE [MATRIX]`.

It is a process of its own because llama.cpp may abort. If llama.cpp fails, it exits with 1, and the last line on stderr
is llama.cpp's reason. MATRIX is a safetensors file of the importance matrix, float32 [columns] under the names of the
GGUF file.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import llama_cpp
import numpy as np
from safetensors.numpy import load_file

__all__ = ["main"]


def _entries(matrix: dict[str, np.ndarray]) -> Any:
    """The array of llama_model_imatrix_data that llama.cpp reads, up to the first entry without a name (llama.h).

    It points into `matrix`, which must live longer.
    """
    entries = (llama_cpp.llama_model_imatrix_data * (len(matrix) + 1))()
    for entry, (name, values) in zip(entries, matrix.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def main() -> None:
    """Quantise the file. Token embedding and output head become Q8_0, as in our other quantised files."""
    source, out, ftype, *importance = sys.argv[1:]
    os.dup2(2, 1)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = int(ftype)
    params.output_tensor_type = params.token_embedding_type = llama_cpp.GGML_TYPE_Q8_0
    matrix = load_file(importance[0]) if importance else {}
    if matrix:
        params.imatrix = _entries(matrix)
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
