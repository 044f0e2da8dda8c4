"""The layout of ExecuTorch, in 4 bits, in its runtime and LLM runner: `make test-executorch`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from saap_edge.layouts.registry import LAYOUTS, Given
from tests.exporting.executorch_support import (
    WIDTHS,
    answers,
    executed,
    in_torch,
    off,
    pruned,
    with_executorch,
)


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """As `export --for executorch` writes it, in 4 bits."""
    root = tmp_path_factory.mktemp("int4")
    folder, out = pruned("llama", root / "model", WIDTHS), root / "out"
    out.mkdir()
    layout = LAYOUTS.find("executorch")
    return folder, out, layout.write()(Given(layout.formats[0], folder, folder, folder), out)


@with_executorch
def test_int4_is_torch_with_the_same_rounding(laid_out: Any) -> None:
    """Also computed by hand: the codes times their scales, and inputs in 8 bits. Beside that, the rounding itself is
    large in such a small model."""
    folder, out, _ = laid_out
    expected = answers(in_torch(folder, quantised=True, context=128))
    assert off(answers(executed(out / "model.pte")[1]), expected) < 1e-3
    assert off(answers(by_hand(folder)), expected) < 1e-3
    assert off(answers(in_torch(folder, quantised=False, context=128)), expected) > 0.05


def by_hand(folder: Path) -> Any:
    program = in_torch(folder, quantised=True, context=128)
    for module in program.model.modules():
        weight = getattr(module, "weight", None)
        if not hasattr(weight, "qdata"):
            continue
        rows, groups = weight.scale.shape
        codes = weight.qdata.float().reshape(rows, groups, -1)
        four = weight.target_dtype == torch.int4
        assert not weight.zero_point.any() and codes.abs().max() <= (8 if four else 128)
        assert not four or torch.equal(weight.scale, weight.scale.bfloat16().float())
        plain = (codes * weight.scale[..., None]).reshape(rows, -1)
        module.weight = torch.nn.Parameter(plain, requires_grad=False)
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (in_8_bits(inputs[0]),))
    return program


def in_8_bits(values: torch.Tensor) -> torch.Tensor:
    """Each token's values as integers from -128 to 127 between its extremes, of which zero is one."""
    low, high = values.amin(-1, keepdim=True).clamp_max(0), values.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-128 - (low / scale).round()).clamp(-128, 127)
    return (((values / scale).round() + zero).clamp(-128, 127) - zero) * scale


@with_executorch
def test_the_folder_says_how_it_is_run(laid_out: Any) -> None:
    """README.txt's line for Python is run, and writes what torch does."""
    folder, out, notes = laid_out
    assert {path.name for path in out.iterdir()} >= {"model.pte", "tokenizer.json", "README.txt"}
    assert len(notes) == 1, "its tokenizer gives the right ids"
    lines = (out / "README.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and "no chat template" in lines[2] and "128 tokens" in lines[2]
    command = [sys.executable, "-c", lines[1].split("and torch: ")[1]]
    child = subprocess.run(command, cwd=out, capture_output=True, text=True, env=os.environ)
    assert child.returncode == 0, child.stderr[-2000:]
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    program, written, places = in_torch(folder, quantised=True, context=128), [], torch.arange(ids.shape[1])
    with torch.no_grad():
        while len(written) < 64:
            ids = program(ids, places).argmax(-1, keepdim=True)
            places = places[-1:] + 1
            written.append(int(ids))
    assert tokenizer.decode(written) in child.stdout
