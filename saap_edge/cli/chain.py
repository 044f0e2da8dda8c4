"""The whole chain, and each of its stages on the folder of the stage before it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saap_edge.cli.base import (
    BudgetOption,
    DataOption,
    FolderArgument,
    JsonOption,
    MethodOption,
    ModelOption,
    OutOption,
    PlanOption,
    RatioOption,
    RecipeArgument,
    TargetOption,
    TokensOption,
    app,
    read_recipe,
    run_after,
    run_chain,
)  # fmt: skip
from saap_edge.errors import SaapError

__all__: list[str] = []


@app.command()
def compile(
    recipe: RecipeArgument = None, *, model: ModelOption = None, target: TargetOption = None, ratio: RatioOption = None,
    method: MethodOption = None, tokens: TokensOption = None, data: DataOption = None, plan: PlanOption = None,
    budget: BudgetOption = None, out: OutOption, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run the whole chain: score, bank, plan, prune, recover, export, verify, bench, gate, report."""
    from saap_edge.chain.chains import ORDER

    settings = read_recipe(
        recipe, model=model, target=target, ratio=ratio, method=method, tokens=tokens, data=data, budget=budget
    )
    run_chain(settings, ORDER, {}, out, plan, as_json)


@app.command()
def score(
    recipe: RecipeArgument = None, *, model: ModelOption = None, data: DataOption = None, out: OutOption,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Importance of every KV group and FFN channel, per calibration batch."""
    run_chain(read_recipe(recipe, model=model, data=data), ("score",), {}, out, None, as_json)


@app.command()
def bank(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Order of removal and repaired weights of every sublayer, at every width: one bank serves all budgets."""
    run_after(folder, "bank", as_json)


@app.command()
def plan(
    folder: FolderArgument, *, ratio: RatioOption = None, method: MethodOption = None, plan: PlanOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Search widths per layer from saved scores and bank: another budget needs no scoring again."""
    run_after(folder, "plan", as_json, plan_file=plan, ratio=ratio, method=method)


@app.command()
def prune(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Cut the model to its plan and repair it: a Hugging Face folder."""
    run_after(folder, "prune", as_json)


@app.command()
def recover(
    folder: Annotated[Path, typer.Argument(help="Folder of the prune stage, Hugging Face folder or .gguf file")], *,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Recipe YAML, for a model")] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="Dense model to learn from (default: the model itself)")
    ] = None,
    tokens: TokensOption = None, data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write, for a model")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Group fine-tuning in the export's blocks; never returns worse than it got.

    On the folder of the prune stage it is the next stage of that run. On a model, pruned or dense, a Hugging Face
    folder or a .gguf file, it stands alone, and export, verify, bench and gate go on from what it writes:

    \b
        saap-edge recover out/stages/prune-HASH --tokens 1000000
        saap-edge recover ./pruned --teacher ./dense --data ./texts --out out
        saap-edge recover ./dense --out out                      better 4-bit files without pruning
        accelerate launch -m saap_edge recover ./pruned ...      on several GPUs
        torchrun --nproc_per_node 2 -m saap_edge recover ./pruned ...         or in several processes of a CPU

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    if (folder / "stage.json").is_file() or not (folder.is_file() or (folder / "config.json").is_file()):
        if recipe or data or out:
            raise SaapError("--recipe, --data and --out go with a model: a stage folder has its own")
        run_after(folder, "recover", as_json, tokens=tokens, teacher=teacher)
        return
    if out is None:
        raise SaapError(f"'{folder}' is a model: say with --out where to write")
    settings = read_recipe(recipe, model=str(folder), teacher=teacher, tokens=tokens, data=data)
    run_chain(settings, ("recover",), {}, out, None, as_json, tune=True)


@app.command()
def export(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Write GGUF and ONNX."""
    run_after(folder, "export", as_json)


@app.command()
def report(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Write report.json and report.html, print the tables."""
    run_after(folder, "report", as_json)
