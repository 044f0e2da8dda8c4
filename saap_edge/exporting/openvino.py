"""OpenVINO for its runtime and OpenVINO GenAI. The model is built (openvino_decoder.py), not traced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.openvino_folder import MODEL_FILE, SECTION, WEIGHTS_FILE
from saap_edge.errors import SaapError
from saap_edge.exporting.onnx import padded_layers
from saap_edge.exporting.openvino_decoder import OpenvinoDecoder
from saap_edge.exporting.openvino_graph import OpenvinoGraph
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.weights import ExportWeights
from saap_edge.formats import written_by
from saap_edge.model.blocks import BLOCK
from saap_edge.model.checkpoint import open_checkpoint
from saap_edge.model.spec import for_transformers_4
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.model.tokenizer_files import copy_tokenizer

__all__ = ["TOKENIZER_FILES", "WRITER", "write_openvino", "write_tokenizer"]

WRITER = "saap_edge.exporting.writers:openvino"
TOKENIZER_FILES = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
ov, openvino_tokenizers = lazy_import("openvino"), lazy_import("openvino_tokenizers")


def write_openvino(folder: Path, out: Path, quantisation: str, group: int = BLOCK) -> dict[str, Any]:
    """Write the model in `folder` (dense, pruned or tuned) as an OpenVINO folder `out`, and return a summary.

    `out` gets openvino_model.xml and .bin, OpenVINO's tokenizer and detokenizer, config.json and the tokenizer's own
    files: `openvino_genai.LLMPipeline(out, "CPU")` runs it. Projections have the blocks of `ExportWeights.layout`,
    codes of 4 bits in "int4" and of 8 in "int8", with float16 scales. Token embedding and head have the 8-bit blocks of
    `ExportWeights.vocabulary`, one copy if tied. Norms and biases are float32.

    Inputs are input_ids, attention_mask and position_ids, int64 [batch, tokens], and beam_idx, int32 [batch]; the
    output is logits, float32 [batch, tokens, vocab]. Keys and values are the model's state, seen from outside float32
    [batch, kv heads of the layer, tokens, head_dim].

    Returns quantisation, constants (type -> bytes), weight_bytes (of the .bin file), projection_bytes (read per decoded
    token), blocks (format and group) and padded_layers. Raises SaapError for an unknown quantisation, a
    folder that ExportWeights refuses, and a family that OpenVINO cannot run.
    """
    known = written_by(WRITER)
    if quantisation not in known:
        raise SaapError(f"unknown OpenVINO quantisation '{quantisation}' (there are: {', '.join(known)})")
    name, weights = known[quantisation].name, ExportWeights(folder)
    refusal = export_refusal(weights.spec, name)
    if refusal:
        raise SaapError(refusal)
    layout = weights.layout(name, group)
    assert layout  # all are in blocks
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / f"{WEIGHTS_FILE}.part"
    with OpenvinoGraph(scratch) as graph:
        model = OpenvinoDecoder(graph, weights, layout, weights.vocabulary(name)).build()
        told = {
            "quantisation": quantisation, "context": weights.spec.context, "projection_bytes": graph.bytes_per_token,
            "parameters": weights.parameters,
        }  # fmt: skip
        for key, value in told.items():
            model.set_rt_info(str(value), [SECTION, key])
        ov.save_model(model, out / MODEL_FILE, compress_to_fp16=False)
        del model  # its constants lie in the scratch file
    config = for_transformers_4(open_checkpoint(folder).canonical)
    config.pop("auto_map", None)  # the folder does not have torch's modelling file
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_tokenizer(folder, out)
    return {
        "quantisation": quantisation,
        "constants": dict(graph.bytes_by_type),
        "weight_bytes": (out / WEIGHTS_FILE).stat().st_size,
        "projection_bytes": graph.bytes_per_token,
        "blocks": {"format": layout[0].name, "group": layout[1]},
        "padded_layers": padded_layers(folder, weights.spec),
    }


def write_tokenizer(folder: Path, out: Path) -> None:
    """Write the tokenizer of the model in `folder` to `out`, as files and as OpenVINO's two models.

    Raises SaapError as `read_chat`, and when openvino_tokenizers cannot convert it.
    """
    copy_tokenizer(folder, out)
    try:
        made = openvino_tokenizers.convert_tokenizer(load_tokenizer(folder), with_detokenizer=True)
    except Exception as error:  # it raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SaapError(f"openvino_tokenizers cannot convert the tokenizer in '{folder}': {reason[:200]}") from None
    for name, model in zip(TOKENIZER_FILES, made, strict=True):
        ov.save_model(model, out / name)
