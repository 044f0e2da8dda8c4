"""A .pte in ExecuTorch's runtime and LLM runner, beside torch. What needs ExecuTorch runs in `make test-executorch`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from saap_edge.errors import SaapError
from saap_edge.exporting import executorch as writer
from saap_edge.exporting.executorch import CONTEXT, PIECE, quantise_model, write_executorch
from saap_edge.families import FAMILIES
from saap_edge.layouts.registry import LAYOUTS, Given
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import build_pruned, load_model
from saap_edge.model.spec import LayerShape
from tests.conftest import PER_LAYER, randomise_projections, tiny_model, tiny_tokenizer, write_folder

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
    """Logits that follow each of SPANS."""
    with torch.no_grad():
        return torch.stack([run(IDS[:, start:end].clone(), torch.arange(start, end)) for start, end in SPANS])


def executed(path: Path) -> Any:
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    return program, lambda tokens, places: method.execute([tokens, places])[0][0].clone()


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("fp32")
    folder = pruned("qwen3", root / "model", DEEP)
    return folder, root / "out", write_executorch(folder, root / "out", "fp32", 64)


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """As `export --for executorch` writes it, in 4 bits."""
    root = tmp_path_factory.mktemp("int4")
    folder, out = pruned("llama", root / "model", WIDTHS), root / "out"
    out.mkdir()
    layout = LAYOUTS.find("executorch")
    return folder, out, layout.write()(Given(layout.formats[0], folder, folder, folder), out)


@with_executorch
def test_fp32_is_torch(fp32: Any) -> None:
    folder, out, made = fp32
    ends = torch.tensor([end - 1 for _, end in SPANS])
    with torch.no_grad():
        expected = load_model(folder)(IDS).logits[0, ends]
    assert off(answers(executed(out / "model.pte")[1]), expected) < 1e-4
    assert made["error"] < 1e-4 and made["delegated"] > 0 and made["pte_bytes"] == (out / "model.pte").stat().st_size


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
        assert not weight.zero_point.any() and torch.equal(weight.scale, weight.scale.bfloat16().float()) == (
            groups > 1
        )
        assert codes.abs().max() <= (8 if groups > 1 else 128)
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


@with_executorch
def test_what_runners_ask(fp32: Any) -> None:
    folder, out, _ = fp32
    program, _ = executed(out / "model.pte")
    told = {name: program.load_method(name).execute([]) for name in sorted(program.method_names - {"forward"})}
    assert told == {
        "enable_dynamic_shape": [True], "get_bos_id": [0], "get_eos_ids": [0], "get_max_batch_size": [1],
        "get_max_context_len": [64], "get_max_seq_len": [64], "get_n_layers": [len(DEEP)],
        "get_vocab_size": [read_spec(folder).vocab_size], "use_kv_cache": [True], "use_sdpa_with_kv_cache": [True],
    }  # fmt: skip
    assert PIECE < CONTEXT


@with_executorch
@pytest.mark.parametrize("rope", [None, "dynamic", "llama3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_traced(family: str, rope: str | None, tmp_path: Path) -> None:
    """torch runs the traced graph: windows, caps on scores and rope scaling too. Lowering takes a minute each."""
    if rope and family != "llama":
        return
    scaling = {"rope_type": rope, "factor": 4.0, "original_max_position_embeddings": 64}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if rope == "llama3" else {}
    shape = {"rope_scaling": scaling} if rope else {}
    folder = (
        pruned(family, tmp_path, DEEP, **shape) if family in PER_LAYER else write_folder(tiny_model(family), tmp_path)
    )
    ends = torch.tensor([end - 1 for _, end in SPANS])
    with torch.no_grad():
        expected = load_model(folder)(IDS).logits[0, ends][:, None]
        traced = writer._exported(in_torch(folder, quantised=False), 64).module()
        assert off(answers(traced), expected) < 1e-4


@with_executorch
def test_a_program_that_answers_something_else_is_refused(fp32: Any) -> None:
    folder, out, _ = fp32
    asked = writer._asked(read_spec(folder).vocab_size, 64)
    wrong = {name: torch.ones(read_spec(folder).vocab_size) for name in asked}
    with pytest.raises(SaapError, match="answers other logits"):
        writer._error(out / "model.pte", asked, wrong)
    (out.parent / "broken.pte").write_bytes(b"no program at all")
    with pytest.raises(SaapError, match=r"cannot run the 'broken\.pte'"):
        writer._error(out.parent / "broken.pte", asked, wrong)


def test_refusals(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    with pytest.raises(SaapError, match="unknown quantisation 'int3'"):
        write_executorch(folder, tmp_path / "out", "int3")
    assert not (tmp_path / "out").exists()
    if missing:
        with pytest.raises(SaapError, match=r"pip install 'saap-edge\[executorch\]'"):
            write_executorch(folder, tmp_path / "out", "fp32")
        assert not (tmp_path / "out").exists()
        return
    odd = write_folder(tiny_model("llama", hidden_size=48, head_dim=8), tmp_path / "odd")
    with pytest.raises(SaapError, match="hidden size 48 is not a multiple of 32"):
        write_executorch(odd, tmp_path / "out", "int4")
