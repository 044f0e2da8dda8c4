"""What all commands share: the app, the console, options, the bar, recipes from options, and running stages."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from saap_edge.errors import SaapError
from saap_edge.progress import Bars

__all__ = [
    "BudgetOption", "DataOption", "FolderArgument", "JsonOption", "MethodOption", "ModelOption", "OutOption",
    "PlanOption", "RatioOption", "RecipeArgument", "TargetOption", "TokensOption", "app", "bar", "bars", "console",
    "quiet_libraries", "read_recipe", "run_after", "run_chain", "stage_line",
]  # fmt: skip

HELP = """Edge deployment compiler.

Give it a Hugging Face causal LM, a target board and a budget; it gives back a pruned, recovered, quantised model as
GGUF and ONNX that stock llama.cpp and ONNX Runtime run, measured, with an exit code CI can trust.

    saap-edge compile --ratio 0.3 --out out                  the bundled model, this machine
    saap-edge compile --model ./TinyLlama --target rpi5 --ratio 0.3 --out out
    saap-edge compile recipe.yaml --out out

compile runs score, bank, plan, prune, recover, export, verify, bench, gate, report. Each is also a command of its own
that works on the folder of the stage before it, and prints its own. Finished stages are found again and not repeated.

Exit codes: 0 ok, 1 a budget limit or verification failed, 2 bad input, 3 inconclusive.
"""


class _Interrupted(SaapError):
    exit_code = 130  # 128 and the number of the signal, as shells have it


class _Commands(TyperGroup):
    """Says what ended a command where Typer would leave without a word: Ctrl-C, and a reader of stdout that has gone
    (with exit code 1 there, which here is a limit that failed)."""

    def invoke(self, ctx: Any) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                if sys.stdout:
                    sys.stdout.flush()  # here, not as Python ends, when nothing can be told any more
        except KeyboardInterrupt:
            raise _Interrupted("interrupted; finished stages are kept, run the same command to go on") from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SaapError("whoever read stdout has gone before all was written") from None


app = typer.Typer(
    cls=_Commands,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# People read stderr, machines read stdout: with --json, stdout holds one JSON document and nothing else.
console = Console(stderr=True, highlight=False)
if not console.is_terminal:
    console = Console(stderr=True, highlight=False, width=120)  # logs have no width of their own: 80 breaks the tables
bars = Bars(console)
bar = bars.bar

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hugging Face folder, .gguf file or hub name (default: the bundled model)")
]
TargetOption = Annotated[
    str | None, typer.Option("--target", help="Board: a name (see `saap-edge targets`) or a YAML file")
]
RatioOption = Annotated[
    float | None, typer.Option("--ratio", help="Share of attention and FFN parameters to remove, 0 to 1")
]
MethodOption = Annotated[
    str | None, typer.Option("--method", help="How the plan is made: auto, search, kfac, saap, uniform or a baseline")
]
TokensOption = Annotated[int | None, typer.Option("--tokens", help="Training tokens of recovery; 0 only rounds")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder with calibration.txt, heldout.txt and test.txt")
]
BudgetOption = Annotated[Path | None, typer.Option("--budget", help="YAML file with limits for the gate")]
PlanOption = Annotated[Path | None, typer.Option("--plan", help="plan.json to use instead of searching for one")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder to write (made when needed)")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout")]
RecipeArgument = Annotated[Path | None, typer.Argument(help="Recipe YAML; options override it")]
FolderArgument = Annotated[Path, typer.Argument(help="Folder of the previous stage, as printed by saap-edge")]


def quiet_libraries() -> None:
    """Our own bars tell what happens; other libraries' bars and warnings would bury them."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import warnings

    warnings.filterwarnings("ignore")
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def read_recipe(path: Path | None, base: dict[str, Any] | None = None, **options: Any) -> Any:
    """The recipe of a file (or of a stage's record), with command line options on top."""
    from pydantic import ValidationError

    from saap_edge.gating import Budget
    from saap_edge.recipe import Recipe
    from saap_edge.yaml_lines import load_yaml_model

    document = base if base is not None else load_yaml_model(path, Recipe).model_dump(mode="json") if path else {}
    document = json.loads(json.dumps(document))  # a copy: options must not change the record they came from
    places = {
        "model": "model",
        "target": "target",
        "ratio": "prune.ratio",
        "method": "prune.method",
        "tokens": "recover.tokens",
        "teacher": "recover.teacher",
    }
    for name, place in places.items():
        if options.get(name) is not None:
            section, _, field = place.rpartition(".")
            (document.setdefault(section, {}) if section else document)[field] = options[name]
    if options.get("data"):
        document["data"] = {role: str(options["data"] / f"{role}.txt") for role in ("calibration", "heldout", "test")}
    if options.get("budget"):
        document["budget"] = load_yaml_model(options["budget"], Budget).model_dump(mode="json")
    try:
        return _anchored(Recipe.model_validate(document))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        option = next((f"--{name} ({place})" for name, known in places.items() if known == place), place)
        raise SaapError(f"{option}: {first['msg']}, got {first['input']!r}") from None


def _anchored(recipe: Any) -> Any:
    """Paths made absolute, so that a later stage can be run from anywhere."""
    texts = {role: Path(path).absolute() for role, path in recipe.data}
    local = Path(recipe.model)
    model = str(local.absolute()) if local.exists() else recipe.model
    return recipe.model_copy(update={"model": model, "data": recipe.data.model_copy(update=texts)})


def run_after(folder: Path, name: str, as_json: bool, plan_file: Path | None = None, **options: Any) -> None:
    """Run one stage on the folder of the stage before it, with that run's recipe."""
    from saap_edge.cache import ancestors, read_stage

    record = read_stage(folder)
    settings, folders = read_recipe(None, base=record["recipe"], **options), ancestors(folder)
    run_chain(
        settings, (name,), folders, folder.resolve().parent.parent, plan_file, as_json, after=record["stage"],
        tune="recover" in folders and "prune" not in folders,
    )  # fmt: skip


def run_chain(
    recipe: Any, names: tuple[str, ...], folders: dict[str, Path], out: Path, plan_file: Path | None, as_json: bool,
    after: str | None = None, tune: bool = False,
) -> None:  # fmt: skip
    quiet_libraries()
    from saap_edge.cache import is_helper

    console.quiet = helper = is_helper()  # errors included
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and names != ("recover",):
        raise SaapError("accelerate launch is for `saap-edge recover`: run the other stages without it")
    if recipe.recover.batch % processes:  # every process sees this, so that none waits for another
        raise SaapError(f"recover.batch {recipe.recover.batch} cannot be shared out over {processes} processes")
    with bar("loading libraries", None):
        from saap_edge.chain.chains import COMPILE, TUNE
        from saap_edge.chain.context import open_context
        from saap_edge.chain.run import run_stages
        from saap_edge.cli.ahead import announce
        from saap_edge.report.terminal import render_stage
    with bar("checking the recipe and the model", None):
        context = open_context(recipe, plan_file, bar, tune)

    def done(result: Any) -> None:
        if helper:  # the folder may not be there yet
            return
        stage_line(result)
        for part in render_stage(result.name, result.folder):
            console.print(part)

    for warning in context.warnings:
        console.print(f"[yellow]note:[/] {escape(warning)}", soft_wrap=True)
    outcome = run_stages(context, TUNE if tune else COMPILE, names, folders, out, after, done, announce)
    if all(result.cached for result in outcome.results):
        console.print("nothing to do: every stage was already there")
    for what, path in outcome.links.items():
        console.print(f"{what:8} {escape(str(path))}", soft_wrap=True)
    if as_json and not helper:
        print(json.dumps(outcome.as_dict()))
    sys.exit(outcome.exit_code)


def stage_line(result: Any) -> None:
    """What became of a stage, and where its folder is."""
    note = "already done" if result.cached else f"{result.seconds:.1f} s"
    console.print(f"[bold]{result.name:8}[/] {note:>12}  {escape(str(result.folder))}", soft_wrap=True)
