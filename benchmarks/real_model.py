"""What a compile run did to a real model: quality by stage, then size, speed and perplexity of every artifact.

    saap-edge compile --model MODEL --target rpi5 --ratio 0.2 --method kfac --tokens 0 --out RUN
    python benchmarks/real_model.py RUN --out RESULT.json --pages README.md docs/results.md

RUN is the folder that the run's --out named. Nothing is computed here: the result is an extract of the documents that
the stages wrote, without the lists of kept structures and without paths. A run that still works, or was stopped, gives
what its finished stages know. Prints the tables, puts them into the pages that are named, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from result import fill, publish

MIB = 2**20
MARK = "real model"


def by_age(paths: Iterable[Path]) -> list[Path]:
    """The oldest first."""
    return sorted(paths, key=lambda path: path.stat().st_mtime)


def document(run: Path, stage: str, name: str) -> dict[str, Any]:
    """A document of the newest folder of a stage; empty where the stage is not done."""
    found = by_age(run.glob(f"stages/{stage}-*/{name}"))
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else {}


def extract(run: Path) -> dict[str, Any]:
    """The run's figures, as its stages wrote them."""
    record, report = document(run, "prune", "stage.json"), document(run, "report", "report.json")
    if not record:
        raise SystemExit(f"'{run}' has no finished prune stage: give the --out folder of a run")
    recipe = record["recipe"]
    bench = report.get("bench") or document(run, "bench", "bench.json")
    prune = {name: value for name, value in document(run, "prune", "prune.json").items() if name != "kept"}
    seconds = {
        stage["stage"]: stage["seconds"]
        for stage in (json.loads(path.read_text(encoding="utf-8")) for path in by_age(run.glob("stages/*/stage.json")))
    }
    verify: Any = document(run, "verify", "verify.json")  # a bare list, of a run of an older version
    return {
        "benchmark": "real_model",
        "model": Path(recipe["model"]).name,
        # A stage may be of an earlier run for another target, if that made no difference to it.
        "target": report["target"]["name"] if report else recipe["target"],
        "prune": {name: recipe["prune"][name] for name in ("method", "ratio", "unit")},
        "recover_tokens": recipe["recover"]["tokens"],
        "plan": document(run, "plan", "plan.json"),
        "quality": prune,
        "recover": document(run, "recover", "recover.json"),
        "artifacts": [
            {"role": role} | {name: entry[name] for name in ("format", "path", "bytes", "sha256")}
            for role, stage in (("dense", "dense"), ("pruned", "export"))
            for entry in document(run, stage, "manifest.json").get("artifacts", [])
        ],
        "verify": verify["artifacts"] if isinstance(verify, dict) and verify else verify or [],
        "machine": {name: bench["machine"][name] for name in ("cpu", "cores", "architecture")} if bench else {},
        "conditions": bench.get("conditions", {}),
        "measured": [measured(entry) for entry in bench.get("artifacts", [])],
        "comparisons": bench.get("comparisons", []),
        "predicted": report.get("predicted", []),
        "versions": record["versions"],
        "seconds": seconds,
    }


def measured(entry: dict[str, Any]) -> dict[str, Any]:
    """An artifact's figures, without the single rounds."""
    metrics = {
        name: {part: number for part, number in value.items() if part != "samples"}
        if isinstance(value, dict)
        else value
        for name, value in entry["metrics"].items()
        if name != "llama_bench"
    }
    return {name: entry[name] for name in ("name", "role", "format")} | metrics


def tables(result: dict[str, Any]) -> list[str]:
    """The tables of README.md, in Markdown: quality by stage, the files, and their speed as far as it was measured."""
    quality = quality_table(result["plan"], result["quality"], result["recover"])
    return [*quality, *file_table(result), *speed_table(result)]


def quality_table(plan: dict[str, Any], prune: dict[str, Any], recover: dict[str, Any]) -> list[str]:
    """`recover`: its document, empty where the stage is not done; its codes are those of the exported files."""
    quality, windows = prune["heldout_perplexity"], prune["heldout_tokens"] // prune["window"]
    dense, pruned = plan["parameters"]
    names = ("dense", "before", "after")
    blocks = {name: f"{recover[name]['perplexity_blocks']:.1f}" for name in names if recover}
    apart = {
        name: " / ".join(f"{recover[name][f'divergence_{key}']:.2f}" for key in ("fp", "blocks"))
        for name in names
        if "divergence_fp" in recover.get(name, {})
    }
    rows = [
        ("dense", dense, quality["dense"], "dense"),
        ("pruned, as cut", pruned, quality["cut"], ""),
        ("pruned, repaired", pruned, quality["repaired"], "before"),
    ]
    if blocks:
        name = f"pruned, repaired, recovered with {recover['tokens']:,} tokens"
        rows.append((name, pruned, recover["after"]["perplexity_fp"], "after"))
    for other in plan["candidates"]:
        # One that was clearly worse was judged on less text: its perplexity is another.
        if other["uniform"] and not other["chosen"] and other.get("heldout_windows", windows) == windows:
            left = round(dense * (1 - other["achieved_ratio"]))
            rows.append(("pruned alike in every layer, repaired", left, other["heldout_perplexity"], ""))
    form = recover.get("format", "4 bits")
    lines = [
        f"| model | weights in attention and FFN | perplexity | as {form} | divergence, of weights / as {form} |",
        "|---|---|---|---|---|",
    ]
    for name, size, value, key in rows:
        lines.append(f"| {name} | {size / 1e6:.1f} M | {value:.1f} | {blocks.get(key, '')} | {apart.get(key, '')} |")
    return lines


def file_table(result: dict[str, Any]) -> list[str]:
    """Sizes, and how far each pruned file's logits are from torch (relative RMS) beside what is allowed."""
    size = {(row["role"], row["format"]): row["bytes"] / MIB for row in result["artifacts"]}
    lines = [
        "",
        "| format | file MiB, dense => pruned | smaller by | off from torch | allowed |",
        "|---|---|---|---|---|",
    ]
    for row in result["verify"]:
        if row["role"] == "pruned":
            dense, pruned = size["dense", row["format"]], size["pruned", row["format"]]
            lines.append(
                f"| {row['format']} | {dense:.1f} => {pruned:.1f} | {1 - pruned / dense:.1%} | "
                f"{row['max_error']:.1g} | {row['tolerance']:.1g} |"
            )
    return lines if result["verify"] else []


def speed_table(result: dict[str, Any]) -> list[str]:
    if not result["comparisons"]:
        return []
    found = {row["name"]: row for row in result["measured"]}
    board = {row["name"]: row["decode_tok_s"] for row in result["predicted"]}
    lines = [
        "",
        f"| format | file MiB | decode tok/s here | speed-up [95 %] | predicted on {result['target']} | perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for pair in result["comparisons"]:
        names, ratio = (pair["base"], pair["candidate"]), pair["ratios"]["decode_tok_s"]
        rows = [found[name] for name in names]
        told = [f"{board[name]['value']:.1f}" for name in names if board.get(name)]
        cells = [
            rows[1]["format"],
            " => ".join(f"{row['file_bytes'] / MIB:.1f}" for row in rows),
            " => ".join(f"{row['decode_tok_s']['median']:.1f}" for row in rows),
            f"{ratio['ratio']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
            " => ".join(told),
            " => ".join(f"{row['perplexity']:.1f}" for row in rows if row["perplexity"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="--out folder of a compile run")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose tables are to be these")
    arguments = parser.parse_args()
    result = extract(arguments.run)
    lines = tables(result)
    for line in lines:
        print(line)
    for page in arguments.pages:
        fill(page, MARK, lines)
    publish(result, arguments.out)


if __name__ == "__main__":
    main()
