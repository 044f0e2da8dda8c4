"""A .pte in ExecuTorch's runtime, beside torch. What needs ExecuTorch runs in `make test-executorch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from saap_edge.errors import SaapError
from saap_edge.exporting import executorch as writer
from saap_edge.exporting.executorch import CONTEXT, PIECE, write_executorch
from saap_edge.families import FAMILIES
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model
from tests.conftest import PER_LAYER, STATEFUL, tiny_model, write_folder
from tests.exporting.executorch_support import (
    DEEP,
    IDS,
    SPANS,
    answers,
    executed,
    in_torch,
    missing,
    off,
    pruned,
    with_executorch,
)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("fp32")
    folder = pruned("qwen3", root / "model", DEEP)
    return folder, root / "out", write_executorch(folder, root / "out", "xnnpack-fp32", 64)


@with_executorch
def test_fp32_is_torch(fp32: Any) -> None:
    folder, out, made = fp32
    ends = torch.tensor([end - 1 for _, end in SPANS])
    with torch.no_grad():
        expected = load_model(folder)(IDS).logits[0, ends]
    assert off(answers(executed(out / "model.pte")[1]), expected) < 1e-4
    assert (
        made["error"] < 1e-4
        and made["noise"] == 0
        and made["delegated"] > 0
        and made["pte_bytes"] == (out / "model.pte").stat().st_size
    )


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
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in (*STATEFUL, "gemma4_text")])
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
        expected = load_model(folder)(IDS).logits[0, ends]
        traced = writer._exported(in_torch(folder, quantised=False), 64).module()
        assert off(answers(traced), expected) < 1e-4


@with_executorch
def test_a_program_that_answers_something_else_is_refused(fp32: Any) -> None:
    folder, out, _ = fp32
    asked = writer._asked(read_spec(folder).vocab_size, 64)
    wrong = {name: torch.arange(read_spec(folder).vocab_size).float() for name in asked}
    with pytest.raises(SaapError, match="answers other logits"):
        writer._error(out / "model.pte", asked, wrong, 0.5)
    (out.parent / "broken.pte").write_bytes(b"no program at all")
    with pytest.raises(SaapError, match=r"cannot run the 'broken\.pte'"):
        writer._error(out.parent / "broken.pte", asked, wrong, 0.5)


def test_refusals(tmp_path: Path) -> None:
    folder = write_folder(tiny_model("llama"), tmp_path / "model")
    with pytest.raises(SaapError, match="unknown variant 'int3'"):
        write_executorch(folder, tmp_path / "out", "int3")
    assert not (tmp_path / "out").exists()
    if missing:
        with pytest.raises(SaapError, match=r"pip install 'saap-edge\[executorch\]'"):
            write_executorch(folder, tmp_path / "out", "xnnpack-fp32")
        assert not (tmp_path / "out").exists()
        return
    convolved = write_folder(tiny_model("lfm2"), tmp_path / "lfm2")
    with pytest.raises(SaapError, match="keeps no states of short convolutions, which LFM2 has"):
        write_executorch(convolved, tmp_path / "out", "xnnpack-fp32")
    newer = write_folder(tiny_model("gemma4_text"), tmp_path / "gemma4")
    with pytest.raises(SaapError, match="writes no program of Gemma 4: its layers have embeddings of their own"):
        write_executorch(newer, tmp_path / "out", "xnnpack-fp32")
    odd = write_folder(tiny_model("llama", hidden_size=48, head_dim=8), tmp_path / "odd")
    with pytest.raises(SaapError, match="hidden size 48 is not a multiple of 32"):
        write_executorch(odd, tmp_path / "out", "xnnpack-int4")
