"""Models for the tests of ExecuTorch, and three ways to run them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from saap_edge.exporting.executorch import quantise_model
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from tests.conftest import randomise_projections, tiny_model, tiny_tokenizer, write_folder

missing = find_spec("executorch") is None
with_executorch = pytest.mark.skipif(missing, reason="make test-executorch")
IDS = torch.arange(3, 43).view(1, -1)
SPANS = ((0, 7), (7, 30), (30, 31), (31, 32), (32, 40))  # prompts and single tokens, on one cache
# KV heads differ, an FFN is off the grid of 32, and a layer has no attention.
WIDTHS = [LayerShape(8, 4, 100), LayerShape(2, 1, 64)]
DEEP = [LayerShape(0, 0, 72), *WIDTHS]


def pruned(family: str, folder: Path, widths: list[LayerShape], **shape: Any) -> Path:
    """A pruned model that writes nothing but ASCII, and never ends: ExecuTorch's runner for Python fails on parts of a
    character, which random models write."""
    dense = tiny_model(family, tied=False, num_hidden_layers=len(widths), **shape)
    model = randomise_projections(build_pruned(dense, widths))
    words = tiny_tokenizer(family).convert_ids_to_tokens(range(dense.config.vocab_size))
    with torch.no_grad():
        for index, word in enumerate(words):
            if index == 0 or not (word or "\xff").isascii():
                model.get_output_embeddings().weight[index] = 0.0
    return write_folder(model, folder)


def in_torch(folder: Path, quantised: bool, context: int = 64) -> Any:
    """The model as it is exported, run by torch."""
    from saap_edge.exporting.executorch_decoder import Program, use_program_attention

    model: Any = load_model(folder)
    use_program_attention(model)
    if quantised:
        quantise_model(model)
    return Program(model, read_spec(folder), context).eval()


def answers(run: Any) -> torch.Tensor:
    """Logits that follow each of SPANS, [spans, vocab]."""
    with torch.no_grad():
        found = [run(IDS[:, start:end].clone(), torch.arange(start, end)).flatten() for start, end in SPANS]
    return torch.stack(found)


def executed(path: Path) -> Any:
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    return program, lambda tokens, places: method.execute([tokens, places])[0][0].clone()


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
