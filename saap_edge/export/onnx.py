"""ONNX for stock ONNX Runtime, onnxruntime-genai and optimum: a graph built directly (onnx_decoder.py), not traced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from saap_edge.errors import SaapError
from saap_edge.export.onnx_decoder import KINDS, Decoder
from saap_edge.export.onnx_gemma import GemmaDecoder
from saap_edge.export.onnx_graph import DATA_FILE, GraphWriter
from saap_edge.export.optimum import write_config
from saap_edge.export.refusal import export_refusal
from saap_edge.export.weights import FLOATS, ExportWeights
from saap_edge.model.blocks import BLOCK
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import copy_tokenizer
from saap_edge.model.spec import ModelSpec

__all__ = ["QUANTISATIONS", "write_onnx"]

QUANTISATIONS = ("fp32", "fp16", "int4", "int4-full", "int8")
GRAPH_FILE, GENAI_FILE = "model.onnx", "genai_config.json"
IR_VERSION = 10


def write_onnx(folder: Path, out: Path, quantisation: str, group: int = BLOCK) -> dict[str, Any]:
    """Write the model in `folder` (dense, pruned or tuned) as an ONNX folder `out`, and say what it holds.

    `out` gets model.onnx, model.onnx.data, genai_config.json, config.json and the tokenizer. In "fp32" all weights are
    float32, in "fp16" all matrices are stored in half of that and widened as the runtime loads them
    (`Decoder._floats`); in "int4" and "int8" projections are MatMulNBits with the blocks of `ExportWeights.layout`
    (`group` inputs a block, a power of two from 32, unless they were tuned in another), token embedding and head the
    8-bit blocks of `ExportWeights.vocabulary` (one copy when tied; 4 bits in "int4-full"), norms and biases float32.

    The graph takes input_ids, attention_mask int64 and past_key_values.N.key/.value float32 [batch, kv_heads of layer
    N, past, head_dim]; it gives logits [batch, seq, vocab] and present.N.key/.value. The optional input
    `logits_from` (int64 [1], default 0: all) starts the logits at that position; -1 computes the last one only.

    Returns quantisation, initializers (type -> bytes), onnx_bytes, data_bytes, projection_bytes (read per decoded
    token: projections, biases, head, norms), blocks (format and group, None in fp32 and fp16) and padded_layers. Raises
    SaapError on an unknown quantisation, on a folder that ExportWeights refuses, on a group that MatMulNBits does not
    take, and on shapes that GroupQueryAttention cannot run.
    """
    if quantisation not in QUANTISATIONS:
        raise SaapError(f"unknown ONNX quantisation '{quantisation}' (there are: {', '.join(QUANTISATIONS)})")
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
        decoder = GemmaDecoder if weights.spec.gemma else Decoder
        vocabulary = weights.vocabulary(f"onnx-{quantisation}")
        stored = FLOATS.get(f"onnx-{quantisation}", torch.float32)
        decoder(graph, weights, layout, vocabulary, stored).build()
    model = ir.Model(graph.finish(), ir_version=IR_VERSION, producer_name="saap-edge")
    model.metadata_props.update(
        {"saap_edge.quantisation": quantisation, "saap_edge.context": str(weights.spec.context)}
    )
    ir.save(model, out / GRAPH_FILE)
    (out / GENAI_FILE).write_text(json.dumps(genai_config(weights.spec, folder), indent=2) + "\n", encoding="utf-8")
    write_config(weights.spec, folder, out)
    copy_tokenizer(folder, out)
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
    """Layers whose FFN was padded to the grid: index -> [width in the folder, width in the file]."""
    pairs = zip(read_spec(folder).layers, padded.layers, strict=True)
    return {index: [old.ffn, new.ffn] for index, (old, new) in enumerate(pairs) if old.ffn != new.ffn}


def genai_config(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """genai_config.json: what onnxruntime-genai must know to load the folder.

    Its `type` only picks the decoder-only runtime; per-layer widths come from the graph's own input shapes. genai's
    tokenizer adds no BOS unless asked (`tokenizer.update_options(add_special_tokens="true")`): that is its rule for
    every model, no fault of the folder.
    """
    widest = max(spec.layers, key=lambda layer: layer.heads)
    ends = end_tokens(spec, folder)
    names = {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in KINDS}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": GRAPH_FILE,
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": widest.heads,
        "num_hidden_layers": len(spec.layers),
        "num_key_value_heads": widest.kv_heads,
    }
    model = {
        "type": "llama",
        "bos_token_id": -1 if spec.bos_token_id is None else spec.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": pad_token(folder, ends[0] if ends else 0),
        "context_length": spec.context,
        "vocab_size": spec.vocab_size,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": spec.context, "past_present_share_buffer": True}
    return {"model": model, "search": search}


def end_tokens(spec: ModelSpec, folder: Path) -> list[int]:
    """Ids that end generation: those of generation_config.json (chat models add theirs there), else of config.json."""
    path = Path(folder) / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    if isinstance(ends, int):
        ends = [ends]
    return list(ends or spec.eos_token_ids)


def pad_token(folder: Path, otherwise: int) -> int:
    """The model's padding id, or `otherwise`: genai demands one."""
    pad = read_json(Path(folder) / "config.json").get("pad_token_id")
    return otherwise if pad is None else int(pad)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises SaapError when the file holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SaapError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise SaapError(f"{path}: not a JSON object")
    return content
