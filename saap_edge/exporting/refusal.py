"""Why a runtime cannot run a model. Shape and family tell, before anything is written."""

from __future__ import annotations

from importlib.util import find_spec

from saap_edge.exporting.gemma import gemma_limit
from saap_edge.exporting.gguf_gemma4 import gemma4_limit
from saap_edge.exporting.gguf_lfm2 import lfm2_limit
from saap_edge.exporting.gguf_qwen35 import qwen35_limit
from saap_edge.families import Refusal
from saap_edge.formats import Format, format_of
from saap_edge.gguf_file.architectures import UNROTATED_PERIOD
from saap_edge.model.blocks import BLOCK
from saap_edge.model.spec import LayerShape, ModelSpec
from saap_edge.registry import resolve

__all__ = [
    "APART", "export_refusal", "gguf_architecture", "gguf_reason", "onnx_reason", "openvino_reason", "optimum_reason",
    "refusal_reason", "shape_reason",
]  # fmt: skip

# Architectures and graphs that gguf.py and onnx.py can write. A family may declare others; its exports are refused
# until a writer exists and its name is added here.
GGUF_WRITERS = (
    "llama", "deci", "qwen3", "openelm", "hunyuan-dense", "gemma2", "gemma3", "gemma4", "smollm3", "lfm2", "qwen35",
    "nemotron_h",
)  # fmt: skip
ONNX_WRITERS = ("llama", "qk-norm", "gemma", "gemma4", "convolutions", "delta-nets", "mamba")
APART = "its layers have embeddings of their own, and caches of two sizes or none"  # of Gemma 4
OPENVINO_WRITERS = ("llama", "qk-norm")  # of the same names
OPENVINO_MODULES = ("openvino", "openvino_tokenizers")
_LIMITS = {"lfm2": lfm2_limit, "qwen35": qwen35_limit, "gemma4": gemma4_limit}
_ALL_BIASES = ("llama", "deci", "nemotron_h")  # architectures that read them
WIDENED_AT_LOAD = 1 << 30  # largest result of constant folding, in bytes (ONNX Runtime, constant_folding.cc)


def gguf_architecture(spec: ModelSpec, per_layer: bool = False) -> str | Refusal:
    """llama.cpp's architecture for a model, or a Refusal. `per_layer`: as if its layers had different widths.

    >>> from saap_edge.model.spec import spec_from_config
    >>> spec = spec_from_config({"model_type": "qwen3", "vocab_size": 100, "hidden_size": 64, "num_attention_heads": 4,
    ...     "intermediate_size": 128, "num_hidden_layers": 2, "tie_word_embeddings": True})
    >>> gguf_architecture(spec), gguf_architecture(spec, per_layer=True)
    ('qwen3', 'openelm')
    """
    exports = spec.family.exports
    one_ffn = len({layer.ffn for layer in spec.layers}) == 1
    if (spec.uniform or (exports.gguf_kv_by_layer and one_ffn)) and not per_layer:
        return exports.gguf_uniform
    untied = exports.gguf_layers_untied
    return untied if untied is not None and not spec.tied else exports.gguf_layers


def export_refusal(spec: ModelSpec, artifact_format: str, per_layer: bool = False) -> str | None:
    """Why a model cannot be exported to a format ("gguf-q4_0", "onnx-int4", ...), and what to do instead; else None.

    `per_layer`: judge it as if its layers had different widths, as is needed before a plan exists.
    """
    reason = refusal_reason(spec, artifact_format, per_layer)
    if reason is None:
        return None
    widths = "layers of different widths" if per_layer or not spec.uniform else "this model"
    uniform = per_layer and refusal_reason(spec, artifact_format) is None
    remedy = f"use --method uniform, or leave {artifact_format} out" if uniform else f"leave {artifact_format} out"
    return f"{spec.family.title}: {widths} cannot go to {artifact_format}: {reason}; {remedy} (export.formats)"


def refusal_reason(spec: ModelSpec, artifact_format: str, per_layer: bool = False) -> str | None:
    """The reason of `export_refusal`, without the remedy."""
    record = format_of(artifact_format)
    reason: str | None = resolve(record.refusal)(spec, record, per_layer) if record.refusal else None
    return reason


def gguf_reason(spec: ModelSpec, format: Format, per_layer: bool) -> str | None:
    """Why llama.cpp cannot run a model, or None."""
    reason, carrier = shape_reason(spec), gguf_architecture(spec, per_layer)
    if reason or isinstance(carrier, Refusal):
        return reason or str(carrier)
    if carrier not in GGUF_WRITERS:
        return f"saap-edge has no writer for architecture '{carrier}' yet"
    return _limit(spec, carrier)


def onnx_reason(spec: ModelSpec, format: Format, per_layer: bool) -> str | None:
    """Why ONNX Runtime cannot run a model, or None."""
    reason, carrier = shape_reason(spec) or onnx_shape_reason(spec), spec.family.exports.onnx
    if reason or isinstance(carrier, Refusal):
        return reason or str(carrier)
    if carrier not in ONNX_WRITERS:
        return f"saap-edge has no writer for graph '{carrier}' yet"
    return _onnx_limit(spec, format)


def openvino_reason(spec: ModelSpec, format: Format, per_layer: bool) -> str | None:
    """Why OpenVINO cannot run a model, or saap-edge cannot write it for OpenVINO, or None."""
    missing = [name for name in OPENVINO_MODULES if find_spec(name) is None]
    if missing:
        return f"{missing[0]} is not installed (pip install 'saap-edge[openvino]')"
    reason, carrier = shape_reason(spec), spec.family.exports.onnx
    if reason or isinstance(carrier, Refusal):
        return reason or str(carrier)
    if spec.stateful:
        return f"saap-edge writes no states of {spec.stateful} for OpenVINO GenAI"
    if spec.is_gemma4:
        return f"saap-edge writes no {spec.family.title} for OpenVINO: {APART}"
    if carrier not in OPENVINO_WRITERS:
        return (
            "OpenVINO GenAI's paged attention has no soft caps, and takes sliding windows only from graphs of a form "
            "that saap-edge does not write"
        )
    return None


def shape_reason(spec: ModelSpec) -> str | None:
    """Which shape of a model no runtime can run or quantise, or None."""
    if spec.hidden % BLOCK:
        return f"hidden size {spec.hidden} is not a multiple of {BLOCK}: no runtime quantises such rows"
    if spec.mamba and spec.mamba.inner % BLOCK:
        return (
            f"{spec.mamba.heads} heads of a Mamba-2 of {spec.mamba.width} are {spec.mamba.inner} wide, not a multiple "
            f"of {BLOCK}: out_proj could not be quantised"
        )
    if spec.per_layer % BLOCK:
        return (
            f"embeddings of {spec.per_layer} for each layer are no multiple of {BLOCK}: no runtime quantises such rows"
        )
    for index, layer in enumerate(spec.layers):
        if (width := spec.heads_width(layer)) % BLOCK:
            return (
                f"layer {index}: {layer.heads} heads of {width // layer.heads} are {width} wide, not a multiple of "
                f"{BLOCK}: {'out_proj' if layer.linear else 'o_proj'} could not be quantised"
            )
    return None


def onnx_shape_reason(spec: ModelSpec) -> str | None:
    """Which shape of a model the CPU kernel of GroupQueryAttention refuses, or None."""
    if odd := next((size for size in spec.head_dims if size % 8), None):
        return f"head_dim {odd} is not a multiple of 8: ONNX Runtime's attention refuses it"
    return None


def _onnx_limit(spec: ModelSpec, format: Format) -> str | None:
    """What makes a format slow in ONNX Runtime for this model, or None."""
    # q, k and v are one matrix, gate and up another (onnx_decoder.py).
    stacked = (max(_mixer_rows(spec, layer), 2 * layer.ffn) for layer in spec.layers)
    rows = max(spec.vocab_size, 3 * spec.hidden if spec.taps else 0, *stacked)
    if format.widened and 4 * rows * spec.hidden > WIDENED_AT_LOAD:
        return (
            f"ONNX Runtime widens matrices of up to 1 GiB in float32 as it loads, and larger ones ({rows} x "
            f"{spec.hidden}) anew at every token"
        )
    return None


def _mixer_rows(spec: ModelSpec, layer: LayerShape) -> int:
    """Rows of the one matrix of what takes a layer's input."""
    if layer.mamba and spec.mamba:
        return spec.mamba.rows
    if layer.linear and spec.delta:
        return 2 * layer.kv_heads * spec.delta.keys + layer.heads * (2 * spec.delta.values + 2)
    keys = 2 * layer.kv_heads * layer.caches
    return ((1 + spec.family.gated) * layer.heads + keys) * spec.head_size(layer)


def optimum_reason(spec: ModelSpec, format: Format, per_layer: bool) -> str | None:
    """Why optimum's exporter cannot write a model, or None."""
    if find_spec("optimum") is None or find_spec("optimum.exporters.onnx") is None:
        return "optimum is not installed (pip install 'saap-edge[compile,optimum]')"
    if spec.family.norms_after_rope or spec.stateful or spec.is_gemma4:
        return f"optimum's exporter does not know {spec.family.title}"
    repaired = (spec.o_bias and not spec.qkv_bias) or (spec.down_bias and not spec.gate_up_bias)
    if per_layer or not spec.uniform or repaired:
        return "optimum's exporter knows the families' plain classes only, whose layers are all alike"
    return None


def _limit(spec: ModelSpec, architecture: str) -> str | None:
    """What this model has that its architecture in llama.cpp would ignore, or None."""
    period = UNROTATED_PERIOD.get(architecture, 0)
    if spec.unrotated != frozenset(range(len(spec.layers))[period - 1 :: period] if period else ()):
        where = ", ".join(map(str, sorted(spec.unrotated))) or "none"
        kept = f"in all but every {period}th layer" if period else "in all layers"
        return f"llama.cpp's '{architecture}' has rotary positions {kept}, this model has none in layers {where}"
    if architecture in ("llama", "deci"):
        return None
    if spec.biased and architecture not in _ALL_BIASES:
        return f"llama.cpp's '{architecture}' does not read all of the biases"  # those of q, k and v at most
    scaling = spec.rope_scaling or {"rope_type": "linear"}
    if scaling["rope_type"] not in ("linear", "yarn"):
        return f"llama.cpp's '{architecture}' has no {scaling['rope_type']} rope scaling"
    if (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1, scaling.get("truncate", True)) != (32, 1, True):
        return f"llama.cpp's '{architecture}' has yarn rope scaling between whole pairs of 32 and 1 turns only"
    if architecture in _LIMITS:
        return _LIMITS[architecture](spec)
    return gemma_limit(spec, spec.gemma, architecture) if spec.gemma else None
