"""The layout of transformers.js (@huggingface/transformers 4): an ONNX folder as it lies on the Hugging Face hub.

It finds a graph by the name of its type of weights, takes the KV cache's shape from the graph, so that layers may
differ, and knows model types of its own. The embedding is standard operators: the build of onnxruntime-web that it uses
in browsers has no GatherBlockQuantized on the CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saap_edge.engines.onnx_folder import GENAI_FILE
from saap_edge.layouts.ollama import place
from saap_edge.layouts.onnx_graph import rewrite
from saap_edge.layouts.registry import Given
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.spec import ModelSpec

__all__ = ["DTYPES", "copy_rest", "write", "write_graph"]

GRAPH, DATA, CONFIG = "model.onnx", "model.onnx.data", "config.json"
# Its name of a type of weights, and what that adds to the name of the graph's file, by our formats' quantisation.
DTYPES = {"fp32": ("fp32", ""), "fp16": ("fp16", "_fp16"), "int8": ("q8", "_quantized"), "int4": ("q4", "_q4"),
          "int4-full": ("q4", "_q4")}  # fmt: skip


def write(given: Given, out: Path) -> list[str]:
    """Write the layout of an ONNX folder into the empty folder `out`; returns what the user should read."""
    dtype, suffix = DTYPES[given.format.partition("-")[2]]
    write_graph(given, out / "onnx" / f"model{suffix}.onnx", standard=True)
    copy_rest(given.path, out)
    spec = read_spec(given.model)
    config = _config(json.loads((given.path / CONFIG).read_text(encoding="utf-8")), spec, dtype)
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [f"the dtype is {dtype!r}, which config.json says too: no option is needed"]


def write_graph(given: Given, path: Path, standard: bool) -> None:
    """Write an ONNX folder's graph as `path`, and its weights beside it."""
    data = rewrite(given.path / GRAPH, path, standard)
    place(given.path / DATA, path.with_name(data))


def copy_rest(folder: Path, out: Path) -> None:
    """Copy the tokenizer's files and generation_config.json: all of an ONNX folder but the graph and its configs."""
    left_out = {GRAPH, DATA, CONFIG, GENAI_FILE}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in left_out:
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def _config(config: dict[str, Any], spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """config.json under the family's own type, which transformers.js knows; it reads no widths from it."""
    own = {
        "model_type": spec.family.model_type, "architectures": None, "num_hidden_layers": len(spec.layers),
        "head_dim": spec.head_dim, "num_key_value_heads": max(layer.kv_heads for layer in spec.layers),
    }  # fmt: skip
    for name in ("layer_widths", "base_model_type", "auto_map"):
        config.pop(name, None)
    return config | own | {"transformers.js_config": {"dtype": dtype, "use_external_data_format": True}}
