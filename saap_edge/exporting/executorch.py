"""ExecuTorch's .pte, for phones: transformers' model through torch.export, lowered to XNNPACK.

torch.export takes the plain classes and our own alike, so that widths per layer, KV heads included, arrive as they are.
`pip install 'saap-edge[executorch]'` makes an environment with all that this needs (docs/executorch.md).
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from saap_edge.engines.worker import cause_of_death, child_environment
from saap_edge.errors import SaapError
from saap_edge.exporting.refusal import APART, shape_reason
from saap_edge.model.blocks import BLOCK
from saap_edge.model.chat import Chat
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model
from saap_edge.model.spec import ModelSpec
from saap_edge.model.tokenizer_files import copy_tokenizer

__all__ = ["CONTEXT", "PIECE", "QUANTISED", "STEPS", "quantise_model", "write_executorch"]

QUANTISED = {"xnnpack-int4": True, "xnnpack-fp32": False}  # variant -> whether weights are rounded
PROGRAM_FILE = "model.pte"
CONTEXT = 2048  # tokens of KV cache at most: its memory is taken when the program is loaded
PIECE = 128  # tokens of a prompt at a time: memory is planned for so many
STEPS = 4  # of the work, as `advance` hears of it
TOLERANCE = 0.001  # of logits in float32, relative


def write_executorch(
    folder: Path, out: Path, variant: str, context: int = CONTEXT, advance: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Write the model in `folder` (dense, pruned or tuned) as model.pte with its tokenizer into the folder `out`.

    - "xnnpack-fp32": all float32.
    - "xnnpack-int4": projections in 4 bits, symmetric, a bfloat16 scale for every 32 inputs; their inputs in 8 bits,
      rounded for each token as it comes (XNNPACK's qd8-f32-qb4w, torchao's 8da4w). Embedding and head in 8 bits, a
      scale a row.

    Norms, biases and the KV cache are float32. `context`: tokens that the cache holds, at most the model's own.
    `advance` is called with 1 after each of STEPS steps.

    The file is run once, beside torch with the same rounding. An input next to a half is rounded to one side here and
    to the other there, and in a deep model such steps add up to what rounding inputs changes at all. Twice that is
    allowed: the distance between torch with and without rounded inputs.

    Returns quantised, context, pte_bytes, delegated (the number of parts that XNNPACK runs), error (of logits beside
    torch's, the largest over prefill and steps) and noise (of rounded inputs). Raises SaapError for an unknown variant,
    where ExecuTorch is not installed, for a folder that `load_model` refuses, for convolutions, DeltaNets and Gemma 4,
    for shapes that nothing quantises, when ExecuTorch's compiler refuses the model, and when the file's answers are not
    torch's.
    """
    quantised = QUANTISED.get(variant)
    if quantised is None:
        raise SaapError(f"unknown variant '{variant}' (there are: {', '.join(QUANTISED)})")
    if find_spec("executorch") is None or find_spec("torchao") is None:
        raise SaapError("ExecuTorch is not installed here: pip install 'saap-edge[executorch]' (docs/executorch.md)")
    spec = read_spec(folder)
    reason = shape_reason(spec) if quantised else None
    if spec.stateful:
        states = f"a program of saap-edge keeps no states of {spec.stateful}"
        reason = f"{states}, which {spec.family.title} has: take GGUF or ONNX"
    if spec.is_gemma4:
        reason = f"saap-edge writes no program of {spec.family.title}: {APART}. Take GGUF or ONNX"
    if reason:
        raise SaapError(f"'{folder}': {reason}")
    context = min(context, spec.context)
    out.mkdir(parents=True, exist_ok=True)
    chat, path = copy_tokenizer(folder, out), out / PROGRAM_FILE
    with _quiet(), torch.no_grad():
        program = _program(folder, spec, quantised, context)
        asked = _asked(spec.vocab_size, context)
        expected = _expected(program, asked)
        with _inputs_not_rounded(program):
            noise = _off(_expected(program, asked), expected)
        advance(1)
        try:
            exported = _exported(program, context)
            advance(1)
            delegated = _lower(exported, _metadata(spec, chat, context), path)
        except Exception as error:  # the compilers raise anything
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise SaapError(f"'{folder}': ExecuTorch's compiler refuses the model ({reason})") from error
        advance(1)
    off = _error(path, asked, expected, TOLERANCE + 2 * noise)
    advance(1)
    return {
        "quantised": quantised, "context": context, "pte_bytes": path.stat().st_size, "delegated": delegated,
        "error": off, "noise": noise,
    }  # fmt: skip


def _program(folder: Path, spec: ModelSpec, quantised: bool, context: int) -> nn.Module:
    from saap_edge.exporting.executorch_decoder import Program, use_program_attention

    model = load_model(folder)
    use_program_attention(model)
    if quantised:
        quantise_model(model)
    return Program(model, spec, context).eval()


def quantise_model(model: Any) -> None:
    """Round a model's weights as "xnnpack-int4" says, in place; torch then computes with them as XNNPACK does."""
    _pad_ffn(model)
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        if isinstance(module, nn.Linear) and module is not head:
            _set_weight(module, _in_4_bits(module.weight))
    _set_weight(head, _in_8_bits(head.weight, activations=True))
    table = model.get_input_embeddings()
    _set_weight(table, _in_8_bits(table.weight, activations=False))
    table.padding_idx = None  # means nothing without training, and ExecuTorch's embedding does not take it


def _set_weight(module: Any, weight: torch.Tensor) -> None:
    module.weight = nn.Parameter(weight, requires_grad=False)


def _pad_ffn(model: Any) -> None:
    """Add zero channels to each FFN whose width fills no whole group; they change no answer."""
    for layer in model.model.layers:
        ffn = layer.mlp
        missing = -ffn.down_proj.in_features % BLOCK if ffn is not None else 0
        if not missing:
            continue
        for module in (ffn.gate_proj, ffn.up_proj):
            _set_weight(module, nn.functional.pad(module.weight, (0, 0, 0, missing)))
            if module.bias is not None:
                module.bias = nn.Parameter(nn.functional.pad(module.bias, (0, missing)), requires_grad=False)
        _set_weight(ffn.down_proj, nn.functional.pad(ffn.down_proj.weight, (0, missing)))


def _in_4_bits(weight: torch.Tensor) -> torch.Tensor:
    """A matrix in 4 bits, with scales that bfloat16 holds, because XNNPACK's file has no others."""
    from torchao.quantization import IntxUnpackedToInt8Tensor

    make: Any = partial(IntxUnpackedToInt8Tensor.from_hp, weight, (1, BLOCK), getattr(torch, "int4"))  # noqa: B009
    found = make(intx_choose_qparams_algorithm="hqq_scale_only")
    made: torch.Tensor = make(
        intx_choose_qparams_algorithm=None, custom_scale=found.scale.bfloat16().float(),
        custom_zero_point=found.zero_point, activation_quantization="int8_asym_per_token",
    )  # fmt: skip
    return made


def _in_8_bits(weight: torch.Tensor, activations: bool) -> torch.Tensor:
    """A matrix in 8 bits with a scale for every row; `activations`: what it multiplies is rounded, too."""
    from torchao.quantization import IntxUnpackedToInt8Tensor

    make: Any = IntxUnpackedToInt8Tensor.from_hp
    asked = "int8_asym_per_token" if activations else None
    made: torch.Tensor = make(weight, (1, weight.shape[1]), torch.int8, activation_quantization=asked)
    return made


def _exported(program: nn.Module, context: int) -> Any:
    tokens = torch.export.Dim("tokens", min=1, max=min(PIECE, context))
    example = torch.ones(1, 4, dtype=torch.int64), torch.arange(4)
    return torch.export.export(program, example, dynamic_shapes=({1: tokens}, {0: tokens}), strict=False)


def _metadata(spec: ModelSpec, chat: Chat, context: int) -> dict[str, Any]:
    """The methods that answer what ExecuTorch's LLM runners ask (extension/llm/runner/constants.h)."""
    known = {
        "get_vocab_size": spec.vocab_size, "get_max_seq_len": min(PIECE, context), "get_max_context_len": context,
        "get_bos_id": chat.bos, "get_eos_ids": list(chat.ends), "get_n_layers": len(spec.layers),
        "get_max_batch_size": 1, "use_kv_cache": True, "use_sdpa_with_kv_cache": True, "enable_dynamic_shape": True,
    }  # fmt: skip
    return {name: value for name, value in known.items() if value is not None and value != []}


def _lower(exported: Any, metadata: dict[str, Any], path: Path) -> int:
    """Compile for XNNPACK and write the file; returns the number of parts that XNNPACK runs."""
    import executorch.kernels.quantized  # noqa: F401 (registers the operators of quantised embeddings with torch)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass

    edge = to_edge_transform_and_lower(
        exported, partitioner=[XnnpackPartitioner()], constant_methods=metadata,
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )  # fmt: skip
    made = edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            do_quant_fusion_and_const_prop=True,
            memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
        )
    )
    with open(path, "wb") as file:
        made.write_to_file(file)
    return sum("call_delegate" in str(node.target) for node in made.exported_program().graph.nodes)


def _asked(vocabulary: int, context: int) -> dict[str, torch.Tensor]:
    """Token ids of a short text: a prompt, single tokens, and a few more at once."""
    ids, ends = (torch.arange(context) * 37 + 1) % vocabulary, (0, 12, 13, 14, 20)
    spans = pairwise(ends)
    return {f"{start:02}": ids[start:end].clone() for start, end in spans if end <= context}


def _expected(program: nn.Module, asked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    places = {name: torch.arange(int(name), int(name) + len(tokens)) for name, tokens in asked.items()}
    return {name: program(tokens[None], places[name])[0] for name, tokens in asked.items()}


@contextmanager
def _inputs_not_rounded(program: nn.Module) -> Iterator[None]:
    """Let the program multiply inputs as they are. Weights stay rounded."""
    weights = [getattr(module, "weight", None) for module in program.modules()]
    rounding: list[Any] = [weight for weight in weights if getattr(weight, "activation_quantization", None)]
    asked = [weight.activation_quantization for weight in rounding]
    for weight in rounding:
        weight.activation_quantization = None
    yield
    for weight, kind in zip(rounding, asked, strict=True):
        weight.activation_quantization = kind


def _off(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest distance of logits over their spread. What all logits have in common changes no answer.

    >>> round(_off({"00": torch.tensor([5.0, 6.0, 7.1])}, {"00": torch.tensor([0.0, 1.0, 2.0])}), 3)
    0.058
    """
    spreads = {name: logits - logits.mean() for name, logits in expected.items()}
    return max(
        float((found[name] - found[name].mean() - spread).norm() / spread.norm()) for name, spread in spreads.items()
    )


def _error(path: Path, asked: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], allowed: float) -> float:
    """The file's error (`_off`). Raises SaapError when it does not run, or answers something else."""
    with tempfile.TemporaryDirectory() as scratch:
        tokens, answers = Path(scratch) / "tokens.safetensors", Path(scratch) / "answers.safetensors"
        save_file(asked, tokens)
        command = [sys.executable, "-m", "saap_edge.exporting.executorch_child", str(path), str(tokens), str(answers)]
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=child_environment())
        if child.returncode:
            cause = cause_of_death(child.returncode, child.stderr)
            raise SaapError(f"ExecuTorch cannot run the '{path.name}' that it made: {cause}")
        found = load_file(answers)
    error = _off(found, expected)
    if not error <= allowed:
        raise SaapError(
            f"'{path.name}' answers other logits than torch with the same rounding, {error:.2g} off where "
            f"{allowed:.2g} is allowed: it is of no use"
        )
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the compilers' remarks on themselves. The file is run beside torch anyway."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
