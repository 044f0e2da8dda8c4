"""Quality of a model, or of the artifacts that ship."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from saap_edge import api
from saap_edge.cli.base import JsonOption, KvOption, ToConsole, app, console, prepare

__all__: list[str] = []


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="Hugging Face folder, export folder, .gguf, ONNX or OpenVINO folder")], *,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="A .jsonl file or a task of lm-eval by name; may be repeated")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first rows of each task, or the first instructions")
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", help="Text file to measure perplexity on")] = None,
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens of one perplexity window")] = 256,
    format: Annotated[
        list[str] | None, typer.Option("--format", help="Only this artifact of an export folder; may be repeated")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder or .gguf file with the tokenizer, if PATH has none")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, show_default="all CPUs", help="Threads of llama.cpp and ONNX Runtime")
    ] = os.cpu_count() or 1,
    kv: KvOption = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask the model to follow instructions, and check its answers")
    ] = False,
    instructions: Annotated[
        Path | None, typer.Option("--instructions", help="With --chat: a .jsonl file of your own instructions")
    ] = None,
    answer_tokens: Annotated[
        int | None,
        typer.Option("--answer-tokens", min=2, show_default="160", help="With --chat: tokens of an answer at most"),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", help="With --chat: .jsonl file to keep answers in, and to go on from")
    ] = None,
    dense: Annotated[
        Path | None, typer.Option("--dense", help="With --chat: model to compare the answers with")
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure zero-shot accuracy, perplexity and chats, of a model or of the files that ship.

    A Hugging Face folder (dense or pruned) runs in torch, a GGUF file in llama.cpp, an ONNX folder in ONNX Runtime.
    An export folder, as `out/stages/export-HASH`, gives all its artifacts side by side:

    \b
        saap-edge evaluate ./TinyLlama --task piqa.jsonl --task arc_easy.jsonl --limit 200
        saap-edge evaluate out/stages/export-HASH --task piqa.jsonl --text test.txt
        saap-edge evaluate model-q4_0.gguf --task lambada.jsonl
        saap-edge evaluate model-q4_0.gguf --text test.txt --kv q4_0     with keys and values in 4 bits

    lm-eval does the scoring. --task takes a task of lm-eval by name, whose data comes from the network, or a local file
    with one JSON object a line, in one of three forms:

    \b
        {"query": text, "choices": [text, ...], "gold": index}                 acc, acc_norm
        {"context_options": [text, ...], "continuation": text, "gold": index}  acc
        {"context": text, "continuation": text}                                acc (greedy), perplexity

    Every figure comes with its number of rows, its window, and the hash of its text.

    --chat gives the model 80 instructions, or those of a file, through its runtime's own chat entry point, greedily.
    It tells the share of answers that follow their instruction, end by themselves, and repeat themselves; with --dense
    also what was lost against that model:

    \b
        saap-edge evaluate model-q4_0.gguf --chat --answers answers.jsonl
        saap-edge evaluate out/stages/export-HASH --chat --dense out/stages/dense-HASH --limit 40

    Exit codes: 0 ok, 2 bad input.
    """
    prepare()
    document = api.evaluate(
        path, tasks=task or (), limit=limit, text=text, window=window, formats=format or (), tokenizer=tokenizer,
        threads=threads, chat=chat, instructions=instructions, answer_tokens=answer_tokens, answers=answers,
        dense=dense, kv=kv, progress=ToConsole(),
    )  # fmt: skip
    from saap_edge.report.terminal import render_evaluation

    for part in render_evaluation(document):
        console.print(part)
    if as_json:
        print(json.dumps(document))
