"""ONNX for stock ONNX Runtime, onnxruntime-genai and optimum. The graph is built (onnx_decoder.py), not traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from saap_edge.errors import SaapError
from saap_edge.exporting.genai import write_genai
from saap_edge.exporting.onnx_decoder import Decoder
from saap_edge.exporting.onnx_gemma import GemmaDecoder
from saap_edge.exporting.onnx_gemma4 import Gemma4Decoder
from saap_edge.exporting.onnx_graph import DATA_FILE, GraphWriter
from saap_edge.exporting.onnx_nemotron_h import NemotronDecoder
from saap_edge.exporting.optimum import write_config
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.weights import ExportWeights, floats_of
from saap_edge.formats import written_by
from saap_edge.model.blocks import BLOCK
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.spec import ModelSpec

__all__ = ["WRITER", "write_onnx"]

WRITER = "saap_edge.exporting.writers:onnx"
GRAPH_FILE = "model.onnx"
IR_VERSION = 10


def write_onnx(folder: Path, out: Path, quantisation: str, group: int = BLOCK) -> dict[str, Any]:
    """Write the model in `folder` (dense, pruned or tuned) as an ONNX folder `out`, and return a summary.

    `out` gets model.onnx, model.onnx.data, genai_config.json, config.json and the tokenizer. Weights by quantisation:

    - "fp32": all float32.
    - "fp16": matrices float16, which the runtime widens when it loads them (`Decoder._floats`).
    - "int4", "int8": projections are MatMulNBits with the blocks of `ExportWeights.layout`. A block has `group` inputs,
      a power of two from 32, unless the folder was tuned with another group. Token embedding and head have the 8-bit
      blocks of `ExportWeights.vocabulary` (one copy if tied; 4 bits in "int4-full").

    Norms and biases are float32. The graph's inputs are input_ids and attention_mask, int64, and
    past_key_values.N.key/.value, float32 [batch_size, kv_heads of layer N, past, head_dim]. Its outputs are logits
    [batch_size, seq, vocab] and present.N.key/.value. The optional input `logits_from` (int64 [1], default 0)
    is the first position that gets logits; -1: only the last one.

    Returns quantisation, initializers (type -> bytes), onnx_bytes, data_bytes, projection_bytes (read per decoded
    token: projections, biases, head, norms), blocks (format and group, None in fp32 and fp16) and padded_layers. Raises
    SaapError for an unknown quantisation, a folder that ExportWeights refuses, a group that MatMulNBits does not
    accept, and shapes that GroupQueryAttention cannot run.
    """
    known = written_by(WRITER)
    if quantisation not in known:
        raise SaapError(f"unknown ONNX quantisation '{quantisation}' (there are: {', '.join(known)})")
    weights = ExportWeights(folder)
    refusal = export_refusal(weights.spec, f"onnx-{quantisation}")
    if refusal:
        raise SaapError(refusal)
    layout = weights.layout(f"onnx-{quantisation}", group)
    if layout and (layout[1] < BLOCK or layout[1] & (layout[1] - 1)):
        raise SaapError(f"{folder}: groups of {layout[1]} inputs: MatMulNBits takes powers of two from {BLOCK}")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / DATA_FILE, "wb") as data:
        graph = GraphWriter(data)
        gemma = weights.spec.gemma
        decoder = NemotronDecoder if weights.spec.mamba else Decoder
        if gemma:
            decoder = Gemma4Decoder if gemma.scaled else GemmaDecoder
        stored = floats_of(f"onnx-{quantisation}") or torch.float32
        decoder(graph, weights, layout, f"onnx-{quantisation}", stored).build()
    model = ir.Model(graph.finish(), ir_version=IR_VERSION, producer_name="saap-edge")
    model.metadata_props.update(
        {"saap_edge.quantisation": quantisation, "saap_edge.context": str(weights.spec.context)}
    )
    ir.save(model, out / GRAPH_FILE)
    write_config(weights.spec, folder, out)
    write_genai(weights.spec, folder, out, GRAPH_FILE)
    return {
        "quantisation": quantisation,
        "initializers": dict(graph.bytes_by_type),
        "onnx_bytes": (out / GRAPH_FILE).stat().st_size,
        "data_bytes": (out / DATA_FILE).stat().st_size,
        "projection_bytes": graph.bytes_per_token,
        "blocks": layout and {"format": layout[0].name, "group": layout[1]},
        "padded_layers": padded_layers(folder, weights.spec),
    }


def padded_layers(folder: Path, padded: ModelSpec) -> dict[int, list[int]]:
    """Layers with an FFN padded to the grid: index -> [width in the folder, width in the file]."""
    pairs = zip(read_spec(folder).layers, padded.layers, strict=True)
    return {index: [old.ffn, new.ffn] for index, (old, new) in enumerate(pairs) if old.ffn != new.ffn}
