"""The layout of transformers.js (@huggingface/transformers 4): an ONNX folder as it lies on the Hugging Face hub.

It finds a graph by the name of its type of weights, takes the KV cache's shape from the graph, so that layers may
differ, and knows model types of its own. The embedding is standard operators: the build of onnxruntime-web that it uses
in browsers has no GatherBlockQuantized on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saap_edge.engines.onnx_folder import GENAI_FILE
from saap_edge.errors import SaapError
from saap_edge.formats import Format, format_of
from saap_edge.layouts.ollama import place
from saap_edge.layouts.onnx_graph import rewrite, standard_embedding
from saap_edge.layouts.registry import Given
from saap_edge.model.chat import DEFAULT, read_chat
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.spec import PRUNED_TYPE

__all__ = ["GRAPH", "complete_tokenizer", "config_of", "copy_rest", "dtype_of", "file_of", "write", "write_graph"]

GRAPH, DATA, CONFIG = "model.onnx", "model.onnx.data", "config.json"
# Its name of a type of weights, and what that adds to the name of the graph's file: by torch's name of the type, and by
# the bits of a block's codes.
_FLOATS = {"float32": ("fp32", ""), "float16": ("fp16", "_fp16")}
_CODES = {4: ("q4", "_q4"), 8: ("q8", "_quantized")}


def dtype_of(record: Format) -> tuple[str, str]:
    """transformers.js's name of a format's type, and what it adds to the name of the graph's file.

    Raises SaapError where it has none.

    >>> dtype_of(format_of("onnx-int4"))
    ('q4', '_q4')
    """
    found = _FLOATS.get(record.dtype) if record.dtype else _CODES.get(int(record.bits or 0))
    if found is None:
        raise SaapError(f"transformers.js has no name for the weights of {record.name}: take another --format")
    return found


def write(given: Given, out: Path) -> list[str]:
    """Write the layout of an ONNX folder into the empty folder `out`; returns what the user should read."""
    dtype, _ = dtype_of(format_of(given.format))
    write_graph(given, out / file_of(given.format), standard_embedding)
    copy_rest(given.path, out)
    complete_tokenizer(given.model, out / "tokenizer_config.json")
    (out / CONFIG).write_text(json.dumps(config_of(given), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [f"the dtype is {dtype!r}, which config.json says too: no option is needed"]


def file_of(format: str) -> str:
    """Where it looks for a format's graph, in its folder. Raises SaapError as `dtype_of`.

    >>> file_of("onnx-int8")
    'onnx/model_quantized.onnx'
    """
    return f"onnx/model{dtype_of(format_of(format))[1]}.onnx"


def write_graph(given: Given, path: Path, *edits: Callable[[Any], object]) -> None:
    """Write an ONNX folder's graph as `path`, edited, and its weights beside it."""
    data = rewrite(given.path / GRAPH, path, *edits)
    place(given.path / DATA, path.with_name(data))


def copy_rest(folder: Path, out: Path) -> None:
    """Copy the tokenizer's files and generation_config.json: all of an ONNX folder but the graph and its configs."""
    left_out = {GRAPH, DATA, CONFIG, GENAI_FILE}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in left_out:
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())


def complete_tokenizer(model: Path, path: Path) -> None:
    """Complete tokenizer_config.json, which is all that transformers.js reads beside tokenizer.json.

    The chat templates may be in files of their own, and where nothing is said of spaces before punctuation,
    transformers.js takes them out and transformers does not.
    """
    config, templates = json.loads(path.read_text(encoding="utf-8")), read_chat(model).templates
    if templates:
        named = [{"name": name, "template": template} for name, template in templates.items()]
        config["chat_template"] = templates[DEFAULT] if list(templates) == [DEFAULT] else named
    config.setdefault("clean_up_tokenization_spaces", False)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def config_of(given: Given) -> dict[str, Any]:
    """config.json under the type of the graph's arithmetic, which transformers.js knows; it reads no widths from it."""
    config, spec = json.loads((given.path / CONFIG).read_text(encoding="utf-8")), read_spec(given.model)
    said, dtype = config["model_type"], dtype_of(format_of(given.format))[0]
    own = {
        "model_type": spec.family.model_type if said == PRUNED_TYPE else said, "architectures": None,
        "num_hidden_layers": len(spec.layers),
        "head_dim": spec.head_dim, "num_key_value_heads": max(layer.kv_heads for layer in spec.layers),
    }  # fmt: skip
    for name in ("layer_widths", "base_model_type", "auto_map"):
        config.pop(name, None)
    found: dict[str, Any] = config | own
    return found | {"transformers.js_config": {"dtype": dtype, "use_external_data_format": True}}
