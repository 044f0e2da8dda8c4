"""What every part of the program makes of a checkpoint, against transformers' own loading of the same folder."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from saap_edge.chain.context import open_context
from saap_edge.engines.worker import cause_of_death, child_environment
from saap_edge.errors import SaapError
from saap_edge.evaluation.subjects import Settings, evaluate_path
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.write import write_artifact
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model
from saap_edge.progress import no_bar
from saap_edge.recipe import Recipe
from tests.conftest import TEXT

__all__ = ["Answer", "Judged", "judge", "other_formats", "run_files", "texts", "truth"]

IDS = torch.arange(1, 25).view(1, -1)
TOLERANCE = 1e-5  # of logits, absolute and relative, as for every family in tests/families
IN_RUNTIME = 1e-4  # absolute, of a float32 file
GELU_TABLE = 1e-3  # relative: llama.cpp's GELU is a table of fp16 numbers
FILES = {"gguf-f32": "model-f32.gguf", "onnx-fp32": "fp32"}


@dataclass(frozen=True)
class Answer:
    """What an entry point did: gave logits (None: it does not give any), or refused in a line."""

    entry: str
    logits: torch.Tensor | None = None
    refusal: str | None = None


@dataclass
class Judged:
    """A case: what each entry point did, what went wrong in words, the files to run."""

    answers: list[Answer] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def refusals(self) -> list[str]:
        return [answer.refusal for answer in self.answers if answer.refusal is not None]

    def refused_by(self, entry: str) -> bool:
        return any(answer.entry == entry and answer.refusal is not None for answer in self.answers)


@cache
def texts(folder: Path) -> dict[str, str]:
    """The texts of a recipe, written once."""
    roles = {role: folder / f"{role}.txt" for role in ("calibration", "heldout", "test")}
    for path in roles.values():
        path.write_text(TEXT, encoding="utf-8")
    return {role: str(path) for role, path in roles.items()}


def recipe_of(folder: Path, scratch: Path, artifact_format: str) -> Recipe:
    """What `compile --model folder` asks for, in windows that the tiny model's context holds."""
    return Recipe.model_validate({
        "model": str(folder), "data": texts(scratch), "score": {"window": 32},
        "prune": {"method": "uniform", "ratio": 0.1}, "export": {"formats": [artifact_format]},
        "bench": {"prompt_tokens": 16, "decode_tokens": 8},
    })  # fmt: skip


def truth(folder: Path) -> torch.Tensor | str:
    """transformers' own logits in float32, or why it has none: it refuses, or would make weights up."""
    try:
        config = AutoConfig.from_pretrained(folder)
        if hasattr(config, "quantization_config"):  # of plain weights: no library of any quantiser is to be loaded
            del config.quantization_config
        config.output_hidden_states, config.return_dict = False, True  # of a call, not of the model
        if isinstance(config.pad_token_id, int) and config.pad_token_id >= config.vocab_size:
            config.pad_token_id = None  # left out with a note; transformers cannot make the embedding
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if told["missing_keys"] or told["mismatched_keys"]:
            return "weights made up"
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(IDS, return_dict=True).logits
        return logits if bool(torch.isfinite(logits).all()) else "no finite answer"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, atol=TOLERANCE, rtol=TOLERANCE)


def _entries(
    folder: Path, scratch: Path, out: Path, name: str, pruned: bool
) -> dict[str, Callable[[], torch.Tensor | None]]:
    """What the commands call: compile and its stages, evaluate, export."""

    def job() -> None:
        open_context(recipe_of(folder, scratch, name), None, no_bar, tune=pruned)

    def load() -> torch.Tensor:
        with torch.no_grad():
            return load_model(folder)(IDS[:, : read_spec(folder).context]).logits

    def evaluate() -> None:
        settings = Settings(text=Path(texts(scratch)["test"]), window=64)
        document = evaluate_path(folder, settings, no_bar)
        assert np.isfinite(document["perplexity"][0]["value"])

    def export() -> None:
        write_artifact(folder, out / FILES[name], name)

    return {"compile": job, "load": load, "evaluate": evaluate, "export": export}


def judge(
    folder: Path, scratch: Path, out: Path, artifact_format: str, pruned: bool = False, words: tuple[str, ...] = ("",),
    expected: torch.Tensor | None = None,
) -> Judged:  # fmt: skip
    """Give a checkpoint to every entry point.

    `artifact_format`: one that the model can go to. `pruned`: it is tuned as it is, instead of compiled. `words`: one
    of them has to be in a refusal. `expected`: the right answer, that of transformers where it is None.
    """
    judged, before = Judged(), _state(folder)
    out.mkdir()
    for entry, call in _entries(folder, scratch, out, artifact_format, pruned).items():
        try:
            judged.answers.append(Answer(entry, logits=call()))
        except SaapError as error:
            line = str(error)
            judged.answers.append(Answer(entry, refusal=line))
            told = [word.removeprefix("backbone.") for word in words]  # which transformers calls "model."
            if "\n" in line or not any(word in line for word in (*told, "nothing to evaluate")):
                judged.faults.append(f"{entry}: refused in no good words: {line!r}")
        except BaseException as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            judged.faults.append(f"{entry}: {type(error).__name__}: {str(error)[:200]} ({last.filename}:{last.lineno})")
    _check(judged, folder, out, expected)
    if _state(folder) != before:
        judged.faults.append("the model's folder was changed")
    return judged


def _check(judged: Judged, folder: Path, out: Path, expected: torch.Tensor | None) -> None:
    by_entry = {answer.entry: answer for answer in judged.answers}
    refused = {entry for entry, answer in by_entry.items() if answer.refusal is not None}
    if "compile" in by_entry and "compile" not in refused and refused:
        judged.faults.append(f"accepted before work begins, then refused by {sorted(refused)}: {judged.refusals[0]}")
    left = sorted(path.name for path in out.rglob("*"))
    if "export" in refused and left:
        judged.faults.append(f"refused, and left behind: {left}")
    elif "export" in by_entry and "export" not in refused:
        judged.files = [path for path in (out / file for file in FILES.values()) if path.exists()]
    loaded = by_entry.get("load")
    if (loaded and loaded.logits is not None) or judged.files:
        right = truth(folder) if expected is None else expected
        if not isinstance(right, str):
            right = right[:, : read_spec(folder).context]
        if isinstance(right, str):
            judged.faults.append(f"an answer where transformers has none ({right})")
        elif loaded and loaded.logits is not None and not same(loaded.logits, right):
            error = float((loaded.logits - right).abs().max()) if loaded.logits.shape == right.shape else "other shape"
            judged.faults.append(f"SILENTLY WRONG: load_model is off by {error}")
        else:
            np.save(out / "expected.npy", right[0].numpy())


def _state(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.lstat().st_size) for path in folder.rglob("*"))


def run_files(files: list[Path], scratch: Path) -> dict[Path, str]:
    """Faults of exported files (expected.npy lies beside each), run by llama.cpp or onnxruntime in one child."""
    jobs = []
    for path in files:
        engine = "exact" if path.suffix == ".gguf" else "onnxruntime"
        length = len(np.load(path.parent / "expected.npy"))
        context = {} if length == IDS.shape[1] else {"context": length}  # cut off where the model's own ends
        jobs.append({"engine": engine, "path": str(path), "tokens": IDS[0, :length].tolist()} | context)
    (scratch / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-m", "tests.exporting.random_plans_child", str(scratch)], capture_output=True,
        env=child_environment() | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    faults = {}
    for index, path in enumerate(files):
        answers, expected = scratch / f"answers-{index}.npz", np.load(path.parent / "expected.npy")
        if not answers.is_file():
            faults[path] = f"{path.name} ended the process with {cause_of_death(child.returncode, child.stderr)}"
            break
        with np.load(answers) as found:
            for way, answer in found.items():
                error = float(np.abs(answer - expected).max())
                if not error <= max(IN_RUNTIME, GELU_TABLE * float(np.abs(expected).max())):
                    faults[path] = f"SILENTLY WRONG: {path.name}, {way}: off by {error:.2g}"
    return faults


def other_formats(folder: Path) -> list[str]:
    """Float32 files that a checkpoint can become."""
    return [name for name in FILES if export_refusal(read_spec(folder), name) is None]
