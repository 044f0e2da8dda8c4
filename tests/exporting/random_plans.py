"""Random models of every family, pruned by random valid plans: are their files right in both runtimes?

A family's cases are drawn from their numbers alone. A case is checked like this, whole prompts and single steps:

- GGUF F32 with a float32 cache and without flash attention, and ONNX fp32: every logit within 1e-4 of torch's (but
  Gemma in llama.cpp, whose GELU is a table of fp16 numbers: within 0.001 of the logits' own size, of torch with such a
  table, where a rounding may fall the other way);
- another GGUF type and another ONNX format, chosen by chance, with flash attention and without: within what `verify`
  tolerates, twice the deviation predicted for these tokens (saap_edge/evaluation/arithmetic.py);
- a format that cannot hold the model: refused, in words, before a file is there.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saap_edge.engines.worker import cause_of_death, child_environment
from saap_edge.errors import SaapError
from saap_edge.evaluation.arithmetic import runtime_arithmetic
from saap_edge.evaluation.parity import logits, relative_error, shipped_model, tolerated
from saap_edge.exporting.refusal import export_refusal
from saap_edge.exporting.weights import ExportWeights
from saap_edge.exporting.write import write_artifact
from saap_edge.families import FAMILIES, Refusal
from saap_edge.model.folder import load_model, save_model, spec_of
from saap_edge.model.spec import ModelSpec, attends_nowhere, mixed_as
from saap_edge.pruning.plan import check_plan, make_plan
from saap_edge.pruning.space import Space, Widths, model_cost, shape_widths
from saap_edge.pruning.surgery import Kept, cut, output_projections
from tests.conftest import tiny_model, tiny_tokenizer
from tests.exporting.llama_support import with_gelu_table

EXACT = 1e-4  # absolute, on logits
GELU_TABLE = 1e-3  # relative; that GELU is all of it test_gelu_in_llama_cpp_is_a_table_of_fp16 shows
TOKENS = 24
OTHERS = {
    "gguf": ("gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_1"),
    "onnx": ("onnx-fp16", "onnx-int4", "onnx-int4-full", "onnx-int8"),
}  # fmt: skip
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0},
)


@dataclass(frozen=True)
class Run:
    """One file in one way of running it, and what it must answer."""

    case: str
    format: str
    engine: str  # "exact": llama.cpp without flash attention and with a float32 cache
    path: Path
    tokens: list[int]
    expected: np.ndarray
    tolerance: float
    absolute: bool  # the error is the largest of any logit, not relative to all of them

    def error(self, answer: np.ndarray) -> float:
        if self.absolute:
            return float(np.abs(answer - self.expected).max())
        return relative_error(answer, self.expected)


@dataclass
class Outcome:
    """Faults in words, files by format, and for every way of running one the largest error over its tolerance."""

    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, other: Outcome) -> None:
        """Take what another batch has seen, too."""
        self.faults += other.faults
        self.counts += other.counts
        self.worst |= {way: max(error, self.worst.get(way, 0.0)) for way, error in other.worst.items()}

    def judge(self, run: Run, answers: dict[str, np.ndarray]) -> None:
        for mode, answer in answers.items():
            error, way = run.error(answer), f"{run.format} in {run.engine}"
            self.worst[way] = max(self.worst.get(way, 0.0), error / run.tolerance)
            if not error <= run.tolerance:
                self.faults.append(f"{run.case}, {way}, {mode}: error {error:.2g}, tolerance {run.tolerance:.2g}")


def dense_model(dice: random.Random, family: str) -> Any:
    """A random model of random shape."""
    declared = FAMILIES[family]
    kv_heads, slots = dice.choice([(1, 4), (2, 1), (2, 2), (2, 3), (4, 1), (4, 2)])
    head_dim = dice.choice([16, 32] if declared.gemma else [8, 16, 32])
    if kv_heads * slots * head_dim % 32:
        head_dim = 16
    hidden = [size for size in (64, 96) if size % (kv_heads * slots) == 0]  # as transformers' classes want it
    overrides: dict[str, Any] = {
        "num_attention_heads": kv_heads * slots, "num_key_value_heads": kv_heads, "head_dim": head_dim,
        "hidden_size": dice.choice(hidden), "num_hidden_layers": dice.randint(1, 5),
        "intermediate_size": dice.choice([64, 128, 160, 44, 172]),
    }  # fmt: skip
    if family == "lfm2":  # llama.cpp wants heads that fill the hidden size
        filled = kv_heads * slots * head_dim if dice.random() < 0.9 else overrides["hidden_size"]
        layers = dice.randint(2, 6)
        kinds = ["full_attention", *(dice.choice(["conv", "conv", "full_attention"]) for _ in range(layers - 1))]
        dice.shuffle(kinds)
        overrides |= {"num_hidden_layers": layers, "layer_types": kinds}
        overrides |= {"hidden_size": filled, "conv_L_cache": dice.randint(2, 5)}
    if family == "qwen3_5_text":  # llama.cpp wants keys and values of one size, in whole blocks
        layers, shared = dice.randint(2, 5), dice.choice([1, 1, 2, 3])
        kinds = ["full_attention", *(dice.choice(["linear_attention", "full_attention"]) for _ in range(layers - 1))]
        dice.shuffle(kinds)
        overrides |= {
            "num_hidden_layers": layers,
            "layer_types": kinds,
            "linear_num_key_heads": (keys := dice.choice([2, 4])),
        }
        overrides |= {"linear_num_value_heads": keys * shared, "linear_conv_kernel_dim": dice.randint(2, 5)}
        sizes = dice.choice([(32, 32)] * 4 + [(16, 16), (16, 32)])
        overrides |= dict(zip(("linear_key_head_dim", "linear_value_head_dim"), sizes, strict=True))
        share = dice.choice([0.25, 0.5, 1.0]) if head_dim > 8 else 1.0
        overrides["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}
    if family == "nemotron_h":
        every = ["linear_attention", "full_attention", "mlp"]
        kinds = [*every[:2], *dice.choices(every, k=4)]
        dice.shuffle(kinds)
        groups, shared = dice.choice([1, 2, 4]), dice.choice([1, 2, 3])
        overrides |= {
            "layers_block_type": kinds, "n_groups": groups, "mamba_num_heads": groups * shared,
            "mamba_head_dim": dice.choice([32, 64] if groups * shared % 2 else [16, 32, 64]),  # together whole blocks
            "ssm_state_size": dice.choice([8, 16, 32]),
            "conv_kernel": dice.randint(2, 5), "use_conv_bias": dice.random() < 0.7, "mlp_bias": dice.random() < 0.25,
        }  # fmt: skip
    if family == "gemma4_text":
        overrides |= gemma4_shape(dice, head_dim, kv_heads)
    elif declared.gemma:
        overrides |= {"query_pre_attn_scalar": head_dim, "sliding_window_pattern": 6 if family == "gemma3_text" else 2}
    if family == "smollm3":  # llama.cpp leaves every fourth layer unrotated
        overrides |= {"num_hidden_layers": dice.randint(3, 6), "no_rope_layer_interval": dice.choice([4, 4, 4, 2])}
    if family in ("llama", "qwen3", "hunyuan_v1_dense") and dice.random() < 0.25:
        overrides["attention_bias"] = True
    if family in ("llama", "granite") and dice.random() < 0.25:
        overrides["mlp_bias"] = True
    if family == "ernie4_5" and dice.random() < 0.25:
        overrides["use_bias"] = True
    scaled = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "ernie4_5", "hunyuan_v1_dense", "lfm2")
    if family in scaled and dice.random() < 0.4:
        rope = {"rope_theta": 1e4, "original_max_position_embeddings": 32} | dice.choice(ROPES)
        overrides["rope_parameters"] = rope
    tied = family == "gemma2" or dice.random() < 0.5
    model = tiny_model(family, tied, dice.randrange(2**31), **overrides)
    if declared.centred_norms and declared.gemma:  # 1 is added to these weights: trained ones lie around 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.sub_(1)
    return model


def gemma4_shape(dice: random.Random, head_dim: int, kv_heads: int) -> dict[str, Any]:
    """What only Gemma 4 has. llama.cpp wants a layer with a window, and what is lent just before the first borrower."""
    window, whole = "sliding_attention", "full_attention"
    borrowed = dice.choice([0, 0, 1, 2, 3])
    own = [dice.choice([window, window, whole]) for _ in range(dice.randint(0, 2))]
    lenders = [window, whole] if dice.random() < 0.9 else [whole, window]
    kinds = [*own, *lenders, *(dice.choice([window, whole]) for _ in range(borrowed))]
    kinds[-1] = whole
    if not borrowed and dice.random() < 0.1:
        kinds = [whole] * len(kinds)
    overrides: dict[str, Any] = {
        "layer_types": kinds, "num_hidden_layers": len(kinds), "num_kv_shared_layers": borrowed,
        "global_head_dim": head_dim * dice.choice([1, 2]), "use_double_wide_mlp": dice.random() < 0.5,
        "hidden_size_per_layer_input": dice.choice([32, 64] if borrowed else [0, 32, 64]),
        "sliding_window": dice.choice([4, 8, 64]),
        "final_logit_softcapping": dice.choice([None, 5.0, 30.0]),
    }  # fmt: skip
    if dice.random() < 0.3:
        overrides |= {"attention_k_eq_v": True, "num_global_key_value_heads": max(kv_heads // 2, 1)}
    share = dice.choice([0.25, 0.3, 0.5, 1.0])
    rope = {"rope_type": "proportional", "partial_rotary_factor": share} if share < 1 else {"rope_type": "default"}
    overrides["rope_parameters"] = {
        window: {"rope_type": "default", "rope_theta": 1e4}, whole: rope | {"rope_theta": dice.choice([1e4, 1e6])},
    }  # fmt: skip
    return overrides


def random_widths(dice: random.Random, spec: ModelSpec, depth: bool) -> Widths:
    """Widths of a random plan: every layer its own, or all alike."""
    uniform = spec.family.uniform_only
    cost = model_cost(spec, "parameters")
    space = Space(spec.layers, spec.hidden, spec.head_dim, cost, slots=True, depth=depth, uniform_only=uniform)
    only_alike = isinstance(spec.family.exports.gguf_layers, Refusal)  # in GGUF
    alike = bool(uniform) or dice.random() < (0.5 if only_alike else 0.2)
    first = next(index for index, shape in enumerate(spec.layers) if shape.attends)
    linear = next((index for index, shape in enumerate(spec.layers) if shape.linear), first)
    wide = next((index for index, shape in enumerate(spec.layers) if shape.ffn), first)

    def layer(index: int) -> dict[str, int]:
        while True:
            widths = {kind: dice.choice(space.options(index, kind)) for kind in ("attention", "slots", "ffn")}
            if space.fits(index, widths) and not (alike and space.shape(widths).gone):
                return widths

    if alike:
        of_attention, of_nets = layer(first), layer(linear)
        ffn = {"ffn": of_attention["ffn"] if space.dense()[first]["ffn"] else layer(wide)["ffn"]}
        wanted = [(of_nets if shape.linear else of_attention) | ffn for shape in spec.layers]
        widths = [
            {kind: width if own[kind] else 0 for kind, width in each.items()}
            for each, own in zip(wanted, space.dense(), strict=True)
        ]
        if spec.is_gemma4:  # FFNs may be twice as wide where keys and values are borrowed
            wide = [shape.ffn // spec.layers[first].ffn for shape in spec.layers]
            each = [
                layer | {"attention": shape_widths(shape)["attention"], "ffn": layer["ffn"] * times}
                for layer, shape, times in zip(widths, spec.layers, wide, strict=True)
            ]
            dense = space.dense()
            fits = all(
                space.fits(index, layer) and layer["slots"] <= dense[index]["slots"] for index, layer in enumerate(each)
            )
            widths = each if fits else dense
    else:
        widths = [layer(index) for index in range(len(spec.layers))]
    after = mixed_as([space.shape(kinds) for kinds in widths], spec.layers)
    if all(shape.gone for shape in after) or attends_nowhere(after):
        widths[first] = space.dense()[first]
    check_plan(
        make_plan("random", "first", 0.0, space, widths), list(spec.layers), spec.head_dim,
        uniform_only=uniform, no_depth=spec.no_depth if not depth else None, delta=spec.delta,
    )  # fmt: skip
    return widths


def write_case(family: str, number: int, folder: Path) -> str:
    """Write the pruned model of a case and say what it is."""
    dice = random.Random(f"{family} {number}")
    dense = dense_model(dice, family)
    spec, biased = spec_of(dense), not FAMILIES[family].uniform_only and dice.random() < 0.2
    depth = not (spec.no_depth or biased) and dice.random() < 0.5
    if biased:  # as repair may add them, to single layers
        for layer in dense.model.layers[:: dice.choice([1, 2])]:
            for module in output_projections(layer).values():
                module.bias = torch.nn.Parameter(torch.randn(spec.hidden) * 0.1)
    widths = random_widths(dice, spec, depth)
    kept = [
        {kind: np.array(sorted(dice.sample(range(size), layer[kind])), dtype=np.int64) for kind, size in sizes.items()}
        for layer, sizes in zip(widths, Space(spec.layers, spec.hidden, spec.head_dim).dense(), strict=True)
    ]  # fmt: skip
    pruned = cut(dense, Kept(kept))
    folder.mkdir()
    tiny_tokenizer(family).save_pretrained(folder)
    save_model(pruned, folder, folder)
    shapes = [f"{shape.heads}/{shape.kv_heads}{'L' * shape.linear}/{shape.ffn}" for shape in spec_of(pruned).layers]
    return f"case {number}: {family}, head_dim {spec.head_dim}, tied {spec.tied}, biased {biased}, {' '.join(shapes)}"


def prepare(family: str, number: int, scratch: Path, counts: Counter[str]) -> list[Run]:
    """Write a case's files: what is to be run. Counts what was written and what was refused."""
    folder, dice = scratch / f"model-{number}", random.Random(f"{family} {number} files")
    case = write_case(family, number, folder)
    weights = ExportWeights(folder)
    tokens = [dice.randrange(1, weights.spec.vocab_size) for _ in range(TOKENS)]
    runs = []
    for artifact_format in ("gguf-f32", dice.choice(OTHERS["gguf"]), "onnx-fp32", dice.choice(OTHERS["onnx"])):
        group = dice.choice([32, 64, 128]) if artifact_format.startswith("onnx") else 32
        path = scratch / f"{artifact_format}-{number}{'.gguf' if artifact_format.startswith('gguf') else ''}"
        refusal = export_refusal(weights.spec, artifact_format)
        counts[f"{artifact_format} refused" if refusal else artifact_format] += 1
        if refusal:
            assert_refused(folder, path, artifact_format, refusal)
            continue
        write_artifact(folder, path, artifact_format, group)
        runs += runs_of(case, folder, path, artifact_format, group, tokens)
    return runs


def assert_refused(folder: Path, path: Path, artifact_format: str, reason: str) -> None:
    try:
        write_artifact(folder, path, artifact_format)
    except SaapError as error:
        assert str(error) == reason and not path.exists()
        return
    raise AssertionError(f"{artifact_format} was written, but: {reason}")


def runs_of(case: str, folder: Path, path: Path, artifact_format: str, group: int, tokens: list[int]) -> list[Run]:
    """The ways a file is run, and what it must answer."""
    model = shipped_model(folder, artifact_format, group)
    expected = logits(model, tokens)
    with runtime_arithmetic(model, ExportWeights(folder), artifact_format, group):
        tolerance = tolerated(relative_error(logits(model, tokens), expected), artifact_format)

    def run(
        engine: str, tolerance: float = tolerance, absolute: bool = False, expected: np.ndarray = expected
    ) -> Run:  # fmt: skip
        return Run(case, artifact_format, engine, path, tokens, expected, tolerance, absolute)

    if artifact_format in ("gguf-f32", "onnx-fp32"):
        exact = logits(load_model(folder), tokens)
        assert np.array_equal(exact, expected), f"{case}: fp32 does not ship the model's own weights"
    if artifact_format == "onnx-fp32":
        return [run("onnxruntime", EXACT, absolute=True)]
    if artifact_format.startswith("onnx"):
        return [run("onnxruntime")]
    if artifact_format == "gguf-f32":
        if spec_of(model).gemma is None:
            return [run("llama.cpp"), run("exact", EXACT, absolute=True)]
        as_there = logits(with_gelu_table(load_model(folder)), tokens)
        return [run("llama.cpp"), run("exact", GELU_TABLE, expected=as_there)]
    return [run("llama.cpp"), run("exact")]


def check(family: str, numbers: Sequence[int], scratch: Path) -> Outcome:
    """Write the files of these cases of a family, and run them all in one child process."""
    outcome = Outcome()
    runs = [run for number in numbers for run in prepare(family, number, scratch, outcome.counts)]
    jobs = [{"engine": run.engine, "path": str(run.path), "tokens": run.tokens} for run in runs]
    (scratch / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-m", "tests.exporting.random_plans_child", str(scratch)], capture_output=True,
        env=child_environment() | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for index, run in enumerate(runs):
        answers = scratch / f"answers-{index}.npz"
        if not answers.is_file():
            cause = cause_of_death(child.returncode, child.stderr)
            outcome.faults.append(f"{run.case}: {run.format} in {run.engine} ended the process with {cause}")
            break
        with np.load(answers, allow_pickle=False) as found:
            outcome.judge(run, dict(found))
    return outcome
