"""What tests of exported files share: engines on them, and their bytes beside those that a plan counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf

from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.engines.onnxruntime import OnnxRuntimeEngine
from saap_edge.engines.torch import TorchEngine
from saap_edge.exporting.gguf import write_gguf
from saap_edge.model.checkpoint import read_spec
from saap_edge.pruning.space import model_cost


def opened(engine: str, folder: Path, out: Path, manifest: Any) -> Any:
    """An engine on the model in `folder`, or on its float32 file in `out`: "torch", "gguf" or "onnx"."""
    paths = {artifact.format: out / artifact.path for artifact in manifest.artifacts}
    return {
        "torch": lambda: TorchEngine(folder, 1, 64), "gguf": lambda: LlamaCppEngine(paths["gguf-f32"], 1, 64, "f16"),
        "onnx": lambda: OnnxRuntimeEngine(paths["onnx-fp32"], 1, 64),
    }[engine]()  # fmt: skip


def counted_and_written(folder: Path, path: Path) -> tuple[float, int]:
    """Bytes of the model's Q8_0 file, which is written to `path`: as a plan counts them, and of the file's tensors."""
    write_gguf(folder, path, "q8_0")
    spec = read_spec(folder)
    cost = model_cost(spec, "bytes", "q8_0")
    total = cost.fixed + sum(cost.layer(layer, spec.hidden, spec.head_dim) for layer in spec.layers)
    return total, sum(tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors)
