"""Pruning a real, pretrained model: which method is best, cut, repaired and recovered, and what becomes of its answers.

    saap-edge bank RUN/stages/score-…                 (after: saap-edge score --model MODEL.gguf --out RUN)
    python benchmarks/real.py methods RUN/stages/bank-… --other TEXT.txt --work WORK
    python benchmarks/real.py recover RUN/stages/bank-… --other TEXT.txt --work WORK --tokens 65536 --methods auto saap
    python benchmarks/real.py answers --tasks FOLDER --limit 100 --work WORK
    python benchmarks/real.py chats --work WORK
    python benchmarks/real.py raw --text wiki.test.raw --work WORK
    python benchmarks/real.py show --work WORK --out benchmarks/results/real-NAME.json

`methods`: every method sees the same scores, bank and calibration windows, and removes the same share of the weights in
attention and FFN. Perplexity is measured on two test texts that nothing was chosen on, as cut and after repair.
`recover` trains some of these plans with the same tokens, writes Q4_0 files (and the dense model's), and measures each
in llama.cpp; banks of other calibration texts may follow in the same WORK. `answers` runs zero-shot tasks on these
files by lm-eval, `chats` asks them to follow the package's instructions, and `raw` gives llama-perplexity's figure.
Each part adds rows to WORK as it goes, and leaves out what is there: a run that was stopped goes on. `show` prints the
tables, then one JSON line.

Windows have 256 tokens, without BOS. Intervals are 95 % of a bootstrap over windows that both models saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from real_answers import answers, chats, raw
from real_methods import methods
from real_recover import recovered
from real_show import show

METHODS = (
    "auto", "kfac", "saap", "llm-pruner-element", "flap", "wanda-sp", "shortgpt", "magnitude", "uniform",
)  # fmt: skip
TASKS = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbook_qa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, metavar="PART")
    first = part(parts, "methods", methods, "plan, cut and repair by every method")
    first.add_argument("--methods", nargs="+", default=list(METHODS))
    second = part(parts, "recover", recovered, "train some plans, and write their files")
    second.add_argument("--methods", nargs="+", default=["auto", "uniform"])
    second.add_argument("--tokens", type=int, default=65_536)
    second.add_argument("--control", action="store_true", help="train the dense model with these tokens too")
    for each in (first, second):
        each.add_argument("bank", type=Path, help="folder of the bank stage")
        each.add_argument("--other", type=Path, required=True, help="second test text, of another domain")
        each.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5, 0.35, 0.1])
        each.add_argument("--windows", type=int, default=64, help="of each test text")
    third = part(parts, "answers", answers, "zero-shot accuracy of the files")
    third.add_argument("--tasks", type=Path, required=True, help="folder of NAME.jsonl")
    third.add_argument("--names", nargs="+", default=list(TASKS))
    third.add_argument("--limit", type=int, default=100, help="rows of each task")
    fourth = part(parts, "chats", chats, "answers of the files to instructions")
    fifth = part(parts, "raw", raw, "perplexity of the files as llama-perplexity counts it")
    fifth.add_argument("--text", type=Path, required=True, help="wiki.test.raw")
    fifth.add_argument("--chunks", type=int, default=40, help="of 512 tokens")
    for each in (third, fourth, fifth):
        each.add_argument("--threads", type=int, default=1)
    sixth = part(parts, "show", show, "print what there is")
    sixth.add_argument(
        "--earlier", type=Path, metavar="RESULT", help="take rows that WORK lacks from an earlier result"
    )
    sixth.add_argument("--out", type=Path)
    sixth.add_argument("--pages", type=Path, nargs="*", default=[], help="pages whose tables are to be these")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.act(arguments)


def part(
    parts: argparse._SubParsersAction[argparse.ArgumentParser], name: str, act: object, told: str
) -> argparse.ArgumentParser:
    parser = parts.add_parser(name, help=told)
    parser.set_defaults(act=act)
    parser.add_argument("--work", type=Path, required=True, help="folder of rows and files; kept")
    return parser


if __name__ == "__main__":
    main()
