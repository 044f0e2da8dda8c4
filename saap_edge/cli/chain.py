"""The whole chain, and each of its stages on the folder of the stage before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from saap_edge import api
from saap_edge.cli.base import (
    BudgetOption,
    DataOption,
    EffortOption,
    FolderArgument,
    JsonOption,
    MethodOption,
    ModelOption,
    OutOption,
    PlanOption,
    RatioOption,
    RecipeArgument,
    TargetOption,
    ToConsole,
    TokensOption,
    app,
    console,
    finish,
    prepare,
)  # fmt: skip
from saap_edge.errors import EXIT_OK, SaapError
from saap_edge.layouts.registry import OWN

__all__: list[str] = []

_LAYOUTS = ", ".join(layout.name for layout in OWN)


@app.command()
def compile(
    recipe: RecipeArgument = None, *, model: ModelOption = None, target: TargetOption = None, ratio: RatioOption = None,
    method: MethodOption = None, effort: EffortOption = None, tokens: TokensOption = None, data: DataOption = None,
    plan: PlanOption = None, budget: BudgetOption = None, out: OutOption, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run the whole chain: score, bank, plan, prune, recover, export, verify, bench, gate, report.

    Writes one folder a stage into OUT/stages, and links to the results into OUT.
    """
    prepare()
    finish(
        api.compile(
            model, recipe=recipe, target=target, ratio=ratio, method=method, effort=effort, tokens=tokens,
            data=data, plan=plan, budget=budget, out=out, progress=ToConsole(),
        ),
        as_json,
    )  # fmt: skip


@app.command()
def write(
    recipe: RecipeArgument = None, *, model: ModelOption = None, data: DataOption = None, out: OutOption,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Let the model write its own calibration text, which `--data self` makes the other stages learn from.

    The stage's folder holds text.txt, its tokens, and write.json: what was dropped, and how fast it went.
    data.self_tokens in the recipe says how much is written.
    """
    prepare()
    finish(api.write(model, recipe=recipe, data=data, out=out, progress=ToConsole()), as_json)


@app.command()
def score(
    recipe: RecipeArgument = None, *, model: ModelOption = None, data: DataOption = None, out: OutOption,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure the importance of every KV group, query slot and FFN channel, per calibration batch.

    \b
        saap-edge score --model ./TinyLlama --out out
        torchrun --nproc_per_node 4 -m saap_edge score --model ./TinyLlama --out out         batches shared out

    Processes of a launch, on one machine or several, share out the batches; each holds the whole model
    (docs/clusters.md).
    """
    prepare()
    finish(api.score(model, recipe=recipe, data=data, out=out, progress=ToConsole()), as_json)


@app.command()
def bank(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Find, for every sublayer, the order of removal and the repaired weights at every width.

    One bank serves all budgets and all targets.
    """
    prepare()
    finish(api.bank(folder, progress=ToConsole()), as_json)


@app.command()
def plan(
    folder: FolderArgument, *, ratio: RatioOption = None, method: MethodOption = None, effort: EffortOption = None,
    plan: PlanOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Choose the widths of every layer, from saved scores and bank. Another budget needs no new scores."""
    prepare()
    finish(api.plan(folder, ratio=ratio, method=method, effort=effort, plan=plan, progress=ToConsole()), as_json)


@app.command()
def prune(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Cut the model to its plan, repair it, and write a Hugging Face folder."""
    prepare()
    finish(api.prune(folder, progress=ToConsole()), as_json)


@app.command()
def recover(
    folder: Annotated[Path, typer.Argument(help="Folder of the prune stage, Hugging Face folder or .gguf file")], *,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Recipe (YAML); only with a model")] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="Dense model to learn from (default: the model itself)")
    ] = None,
    tokens: TokensOption = None, data: DataOption = None,
    shard: Annotated[
        bool | None, typer.Option("--shard", help="Share frozen weights out over the processes of a launch (FSDP2)")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; only with a model")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Train the pruned model and find codes for it, in the blocks of the exported files.

    On held-out text the result is never further from the dense model than what
    came in.

    On the folder of the prune stage, it is the next stage of that run. On a model (a Hugging Face folder or a .gguf
    file, pruned or dense) it stands alone, and export, verify, bench and gate go on from what it writes:

    \b
        saap-edge recover out/stages/prune-HASH --tokens 1000000
        saap-edge recover ./pruned --teacher ./dense --data ./texts --out out
        saap-edge recover ./dense --out out                      better 4-bit files without pruning
        accelerate launch -m saap_edge recover ./pruned ...      on several GPUs
        torchrun --nproc_per_node 2 -m saap_edge recover ./pruned ...         or in several processes of a CPU
        torchrun --nproc_per_node 4 -m saap_edge recover ./pruned --shard ...   a model that no GPU holds alone

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    prepare()
    run = api.recover(
        folder, recipe=recipe, teacher=teacher, tokens=tokens, shard=shard, data=data, out=out, progress=ToConsole()
    )
    finish(run, as_json)


@app.command()
def export(
    folder: Annotated[
        Path, typer.Argument(help="Folder of the recover stage; with --for, a run's --out folder or its export stage")
    ], *,
    layout: Annotated[str | None, typer.Option("--for", help=f"Runtime to lay it out for: {_LAYOUTS}")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; only with --for")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Which artifact; only with --for (default: the layout's usual one)")
    ] = None,
    packages: Annotated[
        Path | None, typer.Option("--packages", help="Folder with the npm packages, instead of fetching them")
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write the model as GGUF and ONNX, in the formats of the recipe.

    With --for, lay out one verified artifact of a finished run so that a runtime takes it. OUT appears whole or not at
    all; only a folder that this command wrote is replaced.

    \b
        saap-edge export out/stages/recover-HASH                       the stage
        saap-edge export out --for ollama --out ollama                 GGUF and Modelfile
        saap-edge export out --for gpt4all --out gpt4all               GGUF with heads of zeros, mistralrs too
        saap-edge export out --for transformers.js --format onnx-int4 --out web-model
        saap-edge export out --for browser --out page                  a page that runs the model
        saap-edge export out --for executorch --out phone              a .pte for phones, in 4 bits
    """
    prepare()
    if layout is None:
        if out or format or packages:
            raise SaapError("--out, --format and --packages go with --for: without it, export is a stage of a run")
        finish(api.export(folder, progress=ToConsole()), as_json)
    if out is None:
        raise SaapError(f"--for {layout} writes a folder: say with --out where")
    made = api.export_for(folder, layout, out=out, format=format, packages=packages, progress=ToConsole())
    size = sum(file.bytes for file in made.files) / 2**20
    console.print(f"[bold]{escape(made.layout)}[/]  {escape(str(out))}", soft_wrap=True)
    console.print(f"  {made.format}, {len(made.files)} files, {size:.1f} MiB")
    for note in made.notes:
        console.print(f"  {escape(note)}", soft_wrap=True)
    if as_json:
        print(json.dumps({"exit_code": EXIT_OK, "out": str(out), **made.as_dict()}))


@app.command()
def report(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Write report.json and report.html, and print the tables."""
    prepare()
    finish(api.write_report(folder, progress=ToConsole()), as_json)
