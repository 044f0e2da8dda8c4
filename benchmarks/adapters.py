"""Added or multiplied: what LoRA and SPP bring to a pruned model, and to a sparse one, with the same tokens.

    OMP_NUM_THREADS=1 python benchmarks/adapters.py --out benchmarks/results/adapters.json

The bundled model, 20 % of its attention and FFN parameters removed (kfac, repaired); and, as "sparse", the dense model
with the smaller half of every projection's weights zero, which nothing repairs. Each is recovered by `recover.adapter`
lora and spp, at several learning rates where pruned, with the same tokens and seed. Perplexity of the
full-precision weights is taken on held-out text, which decides what is kept, and on test text, which decides nothing.
`zeros` is the share of projection weights that are zero. The teacher is the dense model.

About 15 minutes on one core; runs that are there already are found again. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from result import publish

import saap_edge as se
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.folder import load_model, save_model, spec_of
from saap_edge.model.perplexity import perplexity, text_windows
from saap_edge.model.tokenizer import load_tokenizer
from saap_edge.recipe import bundled_model, bundled_text
from saap_edge.recovery.judged import projections

RATES = {
    "pruned": {"lora": (3e-4, 1e-3, 3e-3), "spp": (4e-3, 1e-2)},
    "sparse": {"lora": (1e-3,), "spp": (1e-2,)},
}
RATIO, SPARSITY, TEST = 0.2, 0.5, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--work", type=Path, default=Path("adapters-work"), help="folder of the runs")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for name, folder in (("sparse", sparse(args.work)), ("pruned", pruned(args.work))):
        for adapter, rates in RATES[name].items():
            rows += [row(name, folder, adapter, rate, args) for rate in rates]
            print(*map(json.dumps, rows[-len(rates) :]), sep="\n", flush=True)
    dense = measured(bundled_model())
    result = {
        "benchmark": "adapters", "tokens": args.tokens, "ratio": RATIO, "sparsity": SPARSITY,
        "precision": args.precision, "threads": torch.get_num_threads(), "dense_test": dense, "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


def pruned(work: Path) -> Path:
    """The model folder of the pruned and repaired model."""
    scored = se.score(bundled_model(), out=work / "pruned")
    return se.prune(se.plan(scored, ratio=RATIO, method="kfac")).model


def sparse(work: Path) -> Path:
    """A folder of the dense model with the smaller half of every projection's weights zero."""
    folder = work / "sparse-model"
    if not folder.is_dir():
        model = load_model(bundled_model())
        for _, weight in projections(model, spec_of(model).family):
            weight[weight.abs() < weight.abs().quantile(SPARSITY)] = 0
        save_model(model, bundled_model(), folder)
    return folder


def row(name: str, folder: Path, adapter: str, rate: float, args: argparse.Namespace) -> dict[str, Any]:
    """One recovery, and what it gave."""
    settings = {"adapter": adapter, "weights_learning_rate": rate, "tokens": args.tokens, "precision": args.precision}
    recipe = {"recover": settings, "score": {"precision": args.precision}}
    run = se.recover(folder, recipe=recipe, teacher=str(bundled_model()), out=args.work / name)
    found = json.loads((run.folders["recover"] / "recover.json").read_text(encoding="utf-8"))
    return {
        "model": name, "adapter": adapter, "learning_rate": rate,
        "heldout": [round(found[when]["perplexity_fp"], 3) for when in ("before", "after")],
        "heldout_q4_0": [round(found[when]["perplexity_blocks"], 3) for when in ("before", "after")],
        "test": [measured(folder), measured(run.model)], "zeros": [zeros(folder), zeros(run.model)],
    }  # fmt: skip


@cache
def measured(folder: Path) -> float:
    """Perplexity of the model in a folder on test text."""
    text = bundled_text("test").read_text(encoding="utf-8")
    windows = text_windows(load_tokenizer(bundled_model()), text, 256, TEST)
    return round(perplexity(load_model(folder), windows).value, 3)


def zeros(folder: Path) -> float:
    """Share of the projections' weights in a folder that are zero."""
    weights = [weight for _, weight in projections(load_model(folder), read_spec(folder).family)]
    return round(sum(int((weight == 0).sum()) for weight in weights) / sum(map(torch.Tensor.numel, weights)), 4)


if __name__ == "__main__":
    main()
