"""Formats of artifacts: one record for each, with all that distinguishes it.

Code asks the record and never compares names, so that a format of others is treated as ours. A record is data: what it
names as "module:function" is imported when it is needed, and a board needs little of that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from saap_edge.errors import SaapError
from saap_edge.registry import Registry, resolve

__all__ = [
    "FORMATS", "KINDS", "TABLE_GROUP", "Format", "FormatName", "Kind", "asked_by_llama_cpp", "described", "format_of",
    "kind_of", "of_kind", "register_format", "written_by",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What artifacts are on disk: "gguf", "onnx", "openvino" or "torch".

    Attributes:
        name: its name, with which the names of its formats begin.
        mark: its mark in pictures, as matplotlib names marks.
        usual: a run's --out folder has a link of this name, where it exported such artifacts.
        doubt: why predictions of its speed are less sure; None: they are not.
        wide_queries: where a model has convolutions, its q and o are as wide as the model, whatever heads are left.
        float_matrix: where layers have embeddings of their own, the matrix that makes them is never in blocks.
    """

    name: str
    mark: str = "^"
    usual: bool = False
    doubt: str | None = None
    wide_queries: bool = False
    float_matrix: bool = False


@dataclass(frozen=True)
class Format:
    """A format of artifacts.

    Attributes:
        name: `kind`-`quantisation`, as in recipes.
        kind: what its artifacts are on disk: "gguf", "onnx", "openvino" or "torch".
        engine: name of the engine that runs it (engines/registry.py).
        path: its file or folder, relative to an export folder.
        writer: "module:function" of `writer(folder, out, format, export)`, see exporting/writers.py; None: it is read,
            not written.
        refusal: "module:function" of `refusal(spec, format, per_layer)`, which returns why a model cannot be written
            so, or None.
        token_check: "module:function" that compares the runtime's own tokenizer, see evaluation/token_ids.py.
        shipped: "module:function" that reads the projections back from an artifact whose codes only its maker knows.
        launch: "module:name" of the program that a bundle starts it with; None: no bundle can have it.
        no_bundle: why no bundle can have it.
        bits: bits a weight of projections, as the runtime reads them, scales included. For a mixture of types, their
            mean in a model with Llama 3's proportions (FFN 4 times as wide, 4 query heads a kv head, 32 layers). None:
            not known before it is written.
        table_bits: bits a weight of embedding and head; None: those of projections.
        scale_bits: bits of a scale that `bits` does not include, because the export chooses its group.
        kernel_bits: bits a weight of the type that most products read; predictions of speed use it. None: the file
            must tell.
        kv_bytes: bytes of a number in the KV cache.
        tolerance: relative error of logits that verify always allows (evaluation/parity.py).
        dtype: torch's name of the type of all matrices, where these are floats.
        blocks: block formats (model/blocks.py) of projections; where none of them was tuned, the first is written.
        table_block: block format of embedding and head, where projections are in blocks.
        block: inputs that share a scale; None: as the recipe says (export.group).
        grid: inputs in a block of llama.cpp's own types, which pruned widths should fill; None: the board's own grid.
        made_from: formats that llama.cpp makes this one from: the usual one, then the one for values beyond fp16. Empty
            where saap-edge writes it.
        needs_importance: llama.cpp refuses to make it without an importance matrix.
        widened: the runtime holds matrices in a wider type than the file.
        repacked: llama.cpp keeps matrices twice, where the CPU has kernels for it.
        memory: which coefficients of the fit give the memory that the runtime takes (prediction/prediction.json).
        held: about how many bytes a runtime holds, over those of the model's float32 weights.
        slow: what is slow about it in its runtime, and what is not, in a line; None: nothing is.

    >>> found = format_of("gguf-q4_0")
    >>> found.kind, found.quantisation, found.engine, found.path
    ('gguf', 'q4_0', 'llama.cpp', 'gguf/model-q4_0.gguf')
    """

    name: str
    kind: str
    engine: str
    path: str
    writer: str | None = None
    refusal: str | None = None
    token_check: str | None = None
    shipped: str | None = None
    launch: str | None = None
    no_bundle: str = "no bundle's run.sh can run it"
    bits: float | None = None
    table_bits: float | None = None
    scale_bits: float = 0.0
    kernel_bits: float | None = None
    kv_bytes: int = 4
    tolerance: float = 0.0
    dtype: str | None = None
    blocks: tuple[str, ...] = ()
    table_block: str = "q8_0"
    block: int | None = None
    grid: int | None = None
    made_from: tuple[str, ...] = ()
    needs_importance: bool = False
    widened: bool = False
    repacked: bool = False
    memory: str = ""
    held: float = 0.3
    slow: str | None = None

    @property
    def quantisation(self) -> str:
        """The name without the kind."""
        return self.name.partition("-")[2]

    def weight_bits(self, group: int) -> tuple[float, float]:
        """Bits a weight, scales included: (of projections, of embedding and head). `group` inputs share a scale.

        Raises SaapError where that is not known before the artifact is written.

        >>> format_of("gguf-q4_0").weight_bits(32), format_of("onnx-int4").weight_bits(32)
        ((4.5, 8.5), (5.0, 8.25))
        """
        if self.bits is None:
            raise SaapError(f"the size of '{self.name}' is not known before it is written: leave it out of the fit")
        table = self.bits if self.table_bits is None else self.table_bits
        return self.bits + self.scale_bits / group, table + self.scale_bits / TABLE_GROUP

    def writes(self) -> Any:
        """The function that writes it. Raises SaapError where there is none."""
        if self.writer is None:
            raise SaapError(f"'{self.name}' has no writer: it is read, not exported")
        return resolve(self.writer)


TABLE_GROUP = 128  # inputs of embedding and head that share a scale at most, where the export chooses groups
_EXPORTING, _IDS, _LAUNCH = "saap_edge.exporting.", "saap_edge.evaluation.token_ids:", "saap_edge.bundle.launch:"
_QK_K, _QK = 256, 32  # inputs a block has in llama.cpp's K and IQ types, and in all others
# Relative RMS error of centred logits that is always tolerated. In full precision, answers differ only because sums
# are taken in another order, on some processors in fp16. Measured on trained models: 6e-7 and 3e-4. A fault in a single
# layer of the demo's model (heads swapped, channels out of order) gives 0.025 to 1.0, a wrong rope 0.4.
_FLOATS_IN_LLAMA_CPP, _FLOATS = 0.005, 0.00005
_NOT_REPACKED = (  # benchmarks/gguf_types.py
    "llama.cpp has no kernel for its matrices as it has for Q4_0's on CPUs with AVX2 or dotprod, so that prompts take "
    "about three times as long and tokens nearly twice: gguf-q4_0 and gguf-iq4_nl are faster"
)
_K_QUANTS = 0.06  # activations are rounded in blocks of 256, which is not predicted; seen: up to 0.03

KINDS: Registry[Kind] = Registry("kind", "saap_edge.kinds")
for _kind in (
    Kind("gguf", "o", usual=True, wide_queries=True, float_matrix=True),
    Kind("onnx", "s", usual=True, doubt="ONNX Runtime (all published rows are of llama.cpp)"),
    Kind("openvino", "P", usual=True, doubt="OpenVINO (all published rows are of llama.cpp)"),
    Kind("torch", doubt="torch (all published rows are of llama.cpp)"),
):
    KINDS.register(_kind)

FORMATS: Registry[Format] = Registry("format", "saap_edge.formats")


def register_format(format: Format) -> Format:
    """Add a format and return it; docs/adding.md has an example. Raises SaapError when its name is another's."""
    return FORMATS.register(format)


def format_of(name: str) -> Format:
    """The record of a format. Raises SaapError that suggests the nearest name for an unknown one."""
    return FORMATS.find(name)


def _known(name: str) -> str:
    try:
        return format_of(name).name
    except SaapError as error:
        raise ValueError(str(error)) from None


FormatName = Annotated[str, AfterValidator(_known)]  # a field of a recipe or a budget


def kind_of(name: str) -> Kind:
    """The kind of that name; a kind without properties where nobody registered it."""
    return KINDS.get(name) or Kind(name)


def described(name: str) -> Format:
    """The record of a format, of a format that saap-edge does not know, too.

    A file made by others is named after the type of most of its tensors; its record knows what the name tells. Raises
    SaapError for an unknown kind.

    >>> described("gguf-q5_k").kernel_bits, described("gguf-q5_k").writer
    (5.5, None)
    """
    found = FORMATS.get(name)
    if found is not None:
        return found
    kind, _, quantisation = name.partition("-")
    digits = re.match(r"\D*(\d)", quantisation)
    bits = float(digits[1]) + 0.5 if digits and quantisation.lstrip("i").startswith("q") else None
    made = {"gguf": _gguf, "onnx": _onnx}.get(kind)
    return made(quantisation, None, writer=None, kernel_bits=bits) if made else format_of(name)


def of_kind(kind: str) -> list[Format]:
    """The formats of a kind: "gguf", "onnx", "openvino" or "torch"."""
    return [format for format in FORMATS.values() if format.kind == kind]


def written_by(writer: str) -> dict[str, Format]:
    """The formats of a writer ("module:function"), by quantisation."""
    return {format.quantisation: format for format in FORMATS.values() if format.writer == writer}


def asked_by_llama_cpp(names: Any) -> bool:
    """Whether llama.cpp makes one of these formats, and so wants calibration text for their importance matrix."""
    return any(format_of(name).made_from for name in names)


REPACKED = ("q4_0", "q4_k", "iq4_nl")  # llama.cpp keeps these twice where the CPU has kernels for it


def _gguf(quantisation: str, bits: float | None, **more: Any) -> Format:
    usual: dict[str, Any] = {
        "writer": f"{_EXPORTING}writers:gguf", "refusal": f"{_EXPORTING}refusal:gguf_reason",
        "token_check": f"{_IDS}by_llama_cpp", "launch": f"{_LAUNCH}IN_LLAMA_CPP", "kv_bytes": 2, "block": _QK,
        "table_bits": bits and max(bits, 8.5), "memory": "gguf", "repacked": quantisation.startswith(REPACKED),
    }  # fmt: skip
    return Format(f"gguf-{quantisation}", "gguf", "llama.cpp", f"gguf/model-{quantisation}.gguf", bits=bits,
                  **(usual | more))  # fmt: skip


def _llama_cpp(quantisation: str, bits: float, kernel_bits: float, **more: Any) -> Format:
    """A type that llama.cpp makes, K or IQ."""
    usual: dict[str, Any] = {
        "writer": f"{_EXPORTING}writers:by_llama_cpp", "shipped": f"{_EXPORTING}kquants:held_projections",
        "made_from": ("gguf-f16", "gguf-f32"), "tolerance": _K_QUANTS, "grid": _QK_K, "kernel_bits": kernel_bits,
    }  # fmt: skip
    return _gguf(quantisation, bits, **(usual | more))


def _onnx(quantisation: str, bits: float | None, **more: Any) -> Format:
    usual: dict[str, Any] = {
        "writer": f"{_EXPORTING}writers:onnx", "refusal": f"{_EXPORTING}refusal:onnx_reason",
        "token_check": f"{_IDS}by_genai", "launch": f"{_LAUNCH}IN_GENAI", "memory": "onnx-codes",
    }  # fmt: skip
    return Format(f"onnx-{quantisation}", "onnx", "onnxruntime", f"onnx/{quantisation}", bits=bits, **(usual | more))


def _floats(dtype: str, bits: float, held: float, tolerance: float = _FLOATS, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "bits": bits, "kernel_bits": bits, "held": held, "tolerance": tolerance, **more}


def _in_onnx(quantisation: str, bits: int, table_bits: int, kernel_bits: float, **more: Any) -> Format:
    """Blocks of ONNX Runtime, whose scales are float32; `more` has what they hold."""
    return _onnx(quantisation, bits, table_bits=table_bits, scale_bits=32, kernel_bits=kernel_bits, **more)


def _openvino(quantisation: str, bits: int, blocks: tuple[str, ...]) -> Format:
    """Blocks of OpenVINO, whose scales are float16. verify compares float32 arithmetic."""
    return Format(
        f"openvino-{quantisation}", "openvino", "openvino", f"openvino/{quantisation}", bits=bits, table_bits=8,
        scale_bits=16, kernel_bits=bits + 0.5, kv_bytes=1, tolerance=_FLOATS, blocks=blocks, memory="openvino",
        writer=f"{_EXPORTING}writers:openvino", refusal=f"{_EXPORTING}refusal:openvino_reason",
        token_check=f"{_IDS}by_openvino", launch=f"{_LAUNCH}IN_OPENVINO",
    )  # fmt: skip


_FOUR, _EIGHT = ("q4_0", "int4_zp"), ("q8_0", "int8_zp")
_WIDENED: dict[str, Any] = {"memory": "onnx-floats", "table_bits": 32.0}  # ONNX Runtime holds all floats in 32 bits
for _format in (
    _gguf("f32", **_floats("float32", 32.0, 1.0, _FLOATS_IN_LLAMA_CPP)),
    _gguf("f16", **_floats("float16", 16.0, 0.5, _FLOATS_IN_LLAMA_CPP)),
    _gguf("bf16", **_floats("bfloat16", 16.0, 0.5, 0.0)),
    _gguf("q8_0", 8.5, kernel_bits=8.5, blocks=("q8_0",)),
    _gguf("q4_0", 4.5, kernel_bits=4.5, blocks=("q4_0",)),
    _gguf("q4_1", 5.0, kernel_bits=4.5, blocks=("q4_1",), slow=_NOT_REPACKED),
    _onnx("fp32", **_floats("float32", 32.0, 1.2, **_WIDENED)),
    _onnx("fp16", **_floats("float16", 32.0, 1.2, **_WIDENED), widened=True),
    _in_onnx("int4", 4, 8, 4.5, blocks=_FOUR),
    _in_onnx("int4-full", 4, 4, 4.5, blocks=_FOUR, table_block="q4_0"),
    _in_onnx("int8", 8, 8, 8.5, blocks=_EIGHT),
    Format(
        "onnx-optimum", "onnx", "optimum", "onnx/optimum", writer=f"{_EXPORTING}writers:optimum",
        refusal=f"{_EXPORTING}refusal:optimum_reason", token_check=f"{_IDS}by_genai", dtype="float32",
        tolerance=_FLOATS, kernel_bits=32.0, memory="onnx-floats", held=1.2,
        no_bundle="no bundle's run.sh can run its graph: take onnx-fp32",
    ),
    _llama_cpp("q6_k", 6.56, 6.5), _llama_cpp("q5_k_m", 5.66, 5.5), _llama_cpp("q4_k_m", 4.80, 4.5),
    _llama_cpp("q4_k_s", 4.54, 4.5), _llama_cpp("q3_k_m", 3.84, 3.5), _llama_cpp("q3_k_s", 3.44, 3.5),
    _llama_cpp("q2_k", 2.94, 2.5), _llama_cpp("iq4_nl", 4.52, 4.5, grid=_QK), _llama_cpp("iq4_xs", 4.27, 4.5),
    _llama_cpp("iq3_m", 3.57, 3.5), _llama_cpp("iq3_s", 3.46, 3.5),
    _llama_cpp("iq3_xxs", 3.07, 3.5, needs_importance=True), _llama_cpp("iq2_m", 2.69, 2.5, needs_importance=True),
    _llama_cpp("iq2_s", 2.47, 2.5, needs_importance=True), _llama_cpp("iq2_xs", 2.36, 2.5, needs_importance=True),
    _llama_cpp("iq2_xxs", 2.12, 2.5, needs_importance=True),
    _openvino("int4", 4, _FOUR), _openvino("int8", 8, _EIGHT),
    Format(
        "torch-f32", "torch", "torch", "torch/f32", writer=f"{_EXPORTING}writers:hugging_face", dtype="float32",
        bits=32.0, kernel_bits=32.0, tolerance=_FLOATS, held=1.2,
    ),
):  # fmt: skip
    register_format(_format)
