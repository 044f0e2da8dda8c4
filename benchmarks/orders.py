"""Which order of removal, and how much weight for fluctuation? Held-out perplexity after cut and repair, no training.

    python benchmarks/orders.py --data FOLDER [--model FOLDER] --out benchmarks/results/orders.json

FOLDER holds calibration.txt and heldout.txt. Builds the plan of every method at every ratio, and the paper's (`saap`)
at several weights lambda of fluctuation. Prints a table, then one JSON line; about a minute on a model of 5 M.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from saap_edge.evaluate.perplexity import perplexity, text_hash, text_windows
from saap_edge.model.folder import load_model, load_tokenizer
from saap_edge.prune.choose import choose_plan
from saap_edge.prune.score import score_model
from saap_edge.prune.search import plan_from_scores
from saap_edge.recipe import bundled_model, bundled_text

WINDOW, SAMPLES, HELDOUT = 256, 64, 24
ORDERS = (("saap", 0.0), ("saap", 0.5), ("saap", 1.0), ("taylor", 0.0), ("uniform", 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model())
    parser.add_argument("--data", type=Path, default=bundled_text("heldout").parent)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.35, 0.5])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model, tokenizer = load_model(args.model), load_tokenizer(args.model)
    texts = {name: (args.data / f"{name}.txt").read_text(encoding="utf-8") for name in ("calibration", "heldout")}
    windows = text_windows(tokenizer, texts["calibration"], WINDOW, SAMPLES)
    heldout = text_windows(tokenizer, texts["heldout"], WINDOW, HELDOUT)
    scores = score_model(model, list(torch.tensor_split(windows, 16)), {})
    rows = []
    for ratio in args.ratios:
        for method, weight in ORDERS:
            plan = plan_from_scores(scores, method, ratio, weight)
            judged = choose_plan(model, scores, [plan], method, windows, heldout).candidates[0]
            figures = {"removed": round(judged.achieved_ratio, 4), "perplexity": round(judged.heldout_perplexity, 2)}
            rows.append({"ratio": ratio, "method": method, "lambda": weight, **figures})
    table = Table("ratio", "method", "lambda", "removed", "perplexity")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=100).print(table)
    result = {
        "benchmark": "orders", "model": args.model.resolve().name, "dense": round(perplexity(model, heldout).value, 2),
        "window": WINDOW, "calibration_windows": len(windows), "heldout_windows": len(heldout),
        "heldout_sha256": text_hash(args.data / "heldout.txt"), "rows": rows,
    }  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
