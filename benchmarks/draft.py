"""Pruned models as drafts of their parent: acceptance, predicted and measured speed-up (docs/draft.md).

    python benchmarks/draft.py --model dense-q4_0.gguf 20-q4_0.gguf 35-q4_0.gguf --out draft.json
    python benchmarks/draft.py --show benchmarks/results/draft-smollm2-135m.json --pages docs/draft.md

Runs `saap-edge draft --measure` with these files on this machine, whose figures are those of the tables; the prediction
is for `--target`. Ends with one JSON line: the draft document with the machine's state.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from result import fill, publish
from rich.console import Console

import saap_edge as se
from saap_edge.documents.draft import Draft
from saap_edge.machine.facts import machine_facts
from saap_edge.report.draft import render_draft
from saap_edge.targets import load_target

console = Console(width=150, stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drafts", nargs="*", type=Path, help="pruned .gguf files")
    parser.add_argument("--model", type=Path, help="the dense .gguf file")
    parser.add_argument("--target", default="rpi5")
    parser.add_argument("--threads-here", type=int, default=1)
    for name, value in (("prompts", 4), ("tokens", 48), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--show", type=Path, help="print the tables of a result instead of running")
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose tables are written anew")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.show:
        result = json.loads(args.show.read_text(encoding="utf-8"))
    else:
        before = machine_facts()
        found = se.draft(
            args.drafts, args.target, model=args.model, prompts=args.prompts, tokens=args.tokens, measure=True,
            rounds=args.rounds, threads_here=args.threads_here, progress=lambda what, done, total: None,
        )  # fmt: skip
        result = {"machine": before, "draft": found.as_dict()}
    document = Draft.parse(result["draft"], "the result")
    for part in render_draft(document, load_target(document.target).title):
        console.print(part)
    for page in args.pages:
        fill(page, "draft", tables(result))
    publish(result, args.out)


def tables(result: dict[str, Any]) -> list[str]:
    """Acceptance, then costs and speed, as Markdown."""
    document = Draft.parse(result["draft"], "the result")
    lines = [
        "| draft | bytes a token | answers | tokens | accepted | runs of 1, 2, 4 and more |",
        "|---|---|---|---|---|---|",
    ]
    for each in document.drafts:
        for kind in each.kinds:
            share, runs = kind.acceptance, ", ".join(f"{kind.runs[length - 1]:.0%}" for length in (1, 2, 4))
            lines.append(
                f"| {each.draft.name} | {each.bytes_ratio:.2f} | {kind.kind} | {kind.positions} | "
                f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}] | {runs} |"
            )
    lines += [
        "", f"| draft | speed-up predicted on {document.target} | a token of the draft here | 2, 4, 8 tokens at once "
        "here | expected from these | measured here | in CPU time | tokens/s, alone => with |", "|---|" + "---|" * 7,
    ]  # fmt: skip
    for each in document.drafts:
        told, guess = each.measured, each.speedup
        assert told and guess
        at_once = ", ".join(f"{batch.cost.ratio:.2f}" for batch in told.batches if batch.tokens in (2, 4, 8))
        measured, cpu = (
            f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio else "answers differ"
            for ratio in (told.speedup, told.speedup_cpu)
        )
        with_it = f"{told.drafted_tok_s:.0f}" if told.drafted_tok_s else "-"
        lines.append(
            f"| {each.draft.name} | {guess.value:.2f} [{guess.low:.2f}, {guess.high:.2f}] | {told.draft.ratio:.2f} | "
            f"{at_once} | {told.expected:.2f} | {measured} | {cpu} | {told.alone_tok_s:.0f} => {with_it} |"
        )
    return lines


if __name__ == "__main__":
    main()
