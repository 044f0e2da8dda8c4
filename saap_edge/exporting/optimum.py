"""The config.json that optimum needs in an ONNX folder, and optimum's own exporter as one more format.

optimum-onnx 0.1.0 needs transformers before 4.58: `pip install 'saap-edge[optimum]'` makes an environment with both
(docs/onnx.md).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.exporting.refusal import export_refusal
from saap_edge.model.checkpoint import open_checkpoint, read_spec
from saap_edge.model.folder import load_model
from saap_edge.model.spec import PRUNED_TYPE, ModelSpec, for_transformers_4
from saap_edge.model.tokenizer_files import copy_tokenizer

__all__ = ["write_config", "write_optimum"]

TASK = "text-generation-with-past"
OPSET = 18


def write_config(spec: ModelSpec, folder: Path, out: Path) -> None:
    """Write the config.json of an ONNX folder that was made from `folder`; `spec` is the shape of the graph.

    optimum's ORTModelForCausalLM makes the first KV cache from it: in every layer num_key_value_heads heads of
    hidden_size // num_attention_heads, whatever head_dim says. If one such cache fits all layers, these fields say so,
    under the family's own model_type. Else the type stays `saap_edge`, which optimum refuses at once and
    saap_edge.model.optimum loads.
    """
    config = for_transformers_4(open_checkpoint(folder).canonical)
    config.pop("auto_map", None)  # the folder does not have torch's modelling file
    caches = {layer.kv_heads for layer in spec.layers}
    heads = spec.hidden // spec.head_dim
    alike = len(caches) == 1 and not spec.is_gemma4  # whose layers have caches of two sizes, or none
    if alike and heads and spec.hidden // heads == spec.head_dim:
        config |= {"num_key_value_heads": caches.pop(), "num_attention_heads": heads, "head_dim": spec.head_dim}
        if config["model_type"] == PRUNED_TYPE:
            config |= {"model_type": spec.family.model_type, "architectures": None}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_optimum(folder: Path, out: Path) -> dict[str, Any]:
    """Write the model in `folder` with optimum's own exporter: an ONNX folder in float32, with standard operators only.

    Returns quantisation, exporter, onnx_bytes (data included) and projection_bytes (read per decoded token). Raises
    SaapError when optimum is not installed, and for a model with widths per layer.
    """
    refusal = export_refusal(read_spec(folder), "onnx-optimum")
    if refusal:
        raise SaapError(refusal)
    if open_checkpoint(folder).config["model_type"] == PRUNED_TYPE:
        raise SaapError(f"'{folder}' is saved as saap_edge, which optimum's exporter does not know: use onnx-fp32")
    from importlib.metadata import version

    from optimum.exporters.onnx import onnx_export_from_model

    model: Any = load_model(folder)
    out.mkdir(parents=True, exist_ok=True)
    with _quiet():
        onnx_export_from_model(model, out, task=TASK, opset=OPSET, do_validation=False, device="cpu")
    write_config(read_spec(folder), folder, out)
    copy_tokenizer(folder, out)
    head = model.get_output_embeddings().weight
    read = {id(value): value.numel() for name, value in model.named_parameters() if "embed_tokens" not in name}
    return {
        "quantisation": "fp32",
        "exporter": f"optimum-onnx {version('optimum-onnx')}",
        "onnx_bytes": sum(path.stat().st_size for path in out.glob("model.onnx*")),
        "projection_bytes": 4 * sum((read | {id(head): head.numel()}).values()),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of tracing about every Python value. The result is verified against torch anyway."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
