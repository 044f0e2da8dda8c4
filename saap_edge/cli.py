"""The command line: the only place that prints for people and exits."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from saap_edge import __version__
from saap_edge.errors import EXIT_INPUT, EXIT_OK, SaapError

__all__ = ["app", "main"]

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

app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
)
target_app = typer.Typer(
    help="Boards: list, show, and probe this machine.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(target_app, name="target")

# People read stderr, machines read stdout: with --json, stdout holds one JSON document and nothing else.
console = Console(stderr=True, highlight=False)
if not console.is_terminal:
    console = Console(stderr=True, highlight=False, width=120)  # logs have no width of their own: 80 breaks the tables

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Hugging Face folder or hub name (default: the bundled model)")
]
TargetOption = Annotated[str | None, typer.Option("--target", help="Board: a name (see `target list`) or a YAML file")]
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


def main() -> None:
    """Entry point: turns every expected error into one line and an exit code."""
    try:
        app()
    except SaapError as error:
        _die(str(error), error.exit_code)
    except KeyboardInterrupt:
        _die("interrupted; finished stages are kept, run the same command to go on", 130)
    except BrokenPipeError:
        os._exit(EXIT_OK)
    except MemoryError:
        _die("out of memory: use a smaller model, fewer samples or a smaller recover.batch", EXIT_INPUT)
    except OSError as error:
        name = f" '{error.filename}'" if error.filename else ""
        _die(f"{error.strerror or error}{name}", EXIT_INPUT)


def _die(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    console.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)
    sys.exit(code)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def advance(steps: int, note: str = "") -> None:
            progress.update(task, advance=steps, description=f"{what} ({note})" if note else what)

        yield advance


def _quiet_libraries() -> None:
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


def _recipe(path: Path | None, base: dict[str, Any] | None = None, **options: Any) -> Any:
    """The recipe of a file (or of a stage's record), with command line options on top."""
    from pydantic import ValidationError

    from saap_edge.gate import Budget
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
    model = str(local.absolute()) if local.is_dir() else recipe.model
    return recipe.model_copy(update={"model": model, "data": recipe.data.model_copy(update=texts)})


@app.command()
def compile(
    recipe: RecipeArgument = None, *, model: ModelOption = None, target: TargetOption = None, ratio: RatioOption = None,
    method: MethodOption = None, tokens: TokensOption = None, data: DataOption = None, plan: PlanOption = None,
    budget: BudgetOption = None, out: OutOption, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Run the whole chain: score, bank, plan, prune, recover, export, verify, bench, gate, report."""
    from saap_edge.stages import ORDER

    settings = _recipe(
        recipe, model=model, target=target, ratio=ratio, method=method, tokens=tokens, data=data, budget=budget
    )
    _run(settings, ORDER, {}, out, plan, as_json)


@app.command()
def score(
    recipe: RecipeArgument = None, *, model: ModelOption = None, data: DataOption = None, out: OutOption,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Importance of every KV group and FFN channel, per calibration batch."""
    _run(_recipe(recipe, model=model, data=data), ("score",), {}, out, None, as_json)


@app.command()
def bank(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Order of removal and repaired weights of every sublayer, at every width: one bank serves all budgets."""
    _after(folder, "bank", as_json)


@app.command()
def plan(
    folder: FolderArgument, *, ratio: RatioOption = None, method: MethodOption = None, plan: PlanOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Search widths per layer from saved scores and bank: another budget needs no scoring again."""
    _after(folder, "plan", as_json, plan_file=plan, ratio=ratio, method=method)


@app.command()
def prune(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Cut the model to its plan and repair it: a Hugging Face folder."""
    _after(folder, "prune", as_json)


@app.command()
def recover(
    folder: Annotated[Path, typer.Argument(help="Folder of the prune stage, or any Hugging Face folder")], *,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Recipe YAML, for a Hugging Face folder")] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="Dense model to learn from (default: the model itself)")
    ] = None,
    tokens: TokensOption = None, data: DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write, for a Hugging Face folder")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Group fine-tuning in the export's blocks; never returns worse than it got.

    On the folder of the prune stage it is the next stage of that run. On a Hugging Face folder, pruned or dense, it
    stands alone, and export, verify, bench and gate go on from what it writes:

    \b
        saap-edge recover out/stages/prune-HASH --tokens 1000000
        saap-edge recover ./pruned --teacher ./dense --data ./texts --out out
        saap-edge recover ./dense --out out                      better 4-bit files without pruning
        accelerate launch -m saap_edge recover ./pruned ...      on several GPUs
        torchrun --nproc_per_node 2 -m saap_edge recover ./pruned ...         or in several processes of a CPU

    A killed run goes on from its last checkpoint when the same command is given again.
    """
    if (folder / "stage.json").is_file() or not (folder / "config.json").is_file():
        if recipe or data or out:
            raise SaapError("--recipe, --data and --out go with a Hugging Face folder: a stage folder has its own")
        _after(folder, "recover", as_json, tokens=tokens, teacher=teacher)
        return
    if out is None:
        raise SaapError(f"'{folder}' is a Hugging Face folder: say with --out where to write")
    settings = _recipe(recipe, model=str(folder), teacher=teacher, tokens=tokens, data=data)
    _run(settings, ("recover",), {}, out, None, as_json, tune=True)


@app.command()
def export(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Write GGUF and ONNX."""
    _after(folder, "export", as_json)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of the export stage; or a bundle, a folder or a .tar.zst")], *,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Load every artifact in its runtime and compare it with torch; also exports the dense model to compare with.

    On a bundle, without torch: every file's sha256, the tokenizer, and that the artifact answers here as it did where
    the bundle was made. Exit codes: 0 ok, 1 it answers otherwise, 2 damaged.
    """
    if folder.is_file() or (folder / "bundle.json").is_file():
        _verify_bundle(folder, as_json)
    if not (folder / "stage.json").is_file():
        raise SaapError(f"'{folder}' is neither a bundle (no bundle.json) nor a stage folder (as OUT/stages/NAME-HASH)")
    _check_files(folder)
    _after(folder, "verify", as_json)


def _check_files(folder: Path) -> None:
    """Raise SaapError where an artifact is not what its manifest says, even if it was verified when it still was."""
    from saap_edge.export.artifacts import read_manifest
    from saap_edge.pipeline import ancestors

    for name, made in ancestors(folder).items():
        if name in ("dense", "export"):
            read_manifest(made)


def _verify_bundle(path: Path, as_json: bool) -> NoReturn:
    from saap_edge.bundle.check import check_bundle
    from saap_edge.report.terminal import render_check

    with console.status(f"verifying {escape(str(path))}"):
        check = check_bundle(path)
    for line in render_check(check.as_dict()):
        console.print(line, soft_wrap=True)
    if as_json:
        print(json.dumps(check.as_dict()))
    sys.exit(check.exit_code)


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(help="--out folder of a run, or the folder of its export stage")], *,
    format: Annotated[str | None, typer.Option("--format", help="Which artifact (default: the board's GGUF)")] = None,
    target: TargetOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder or .tar.zst file to write")], as_json: JsonOption = False,
) -> None:  # fmt: skip
    """One verified artifact with all a board needs: tokenizer, licence, checksums, expected answers, run.sh.

    \b
        saap-edge bundle out --format gguf-q4_0 --target rpi5 --out model.tar.zst
        saap-edge verify model.tar.zst                           on the board
    """
    _quiet_libraries()
    from saap_edge.bundle.write import write_bundle

    with console.status(f"bundling into {escape(str(out))}"):
        made = write_bundle(folder, out, format, target)
    licence = made.base_licence.name or ", ".join(made.base_licence.files) or "unknown: the base model states none"
    console.print(f"[bold]bundle[/]   {escape(str(out))}", soft_wrap=True)
    console.print(f"  {made.role} {made.format} for {escape(made.board.title)}, {made.board.threads} threads")
    console.print(f"  licence of the base model: {escape(licence)}", soft_wrap=True)
    if as_json:
        print(json.dumps({"exit_code": EXIT_OK, "bundle": str(out), **made.model_dump(mode="json")}))


@app.command()
def bench(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Measure dense against pruned in alternating runs."""
    _after(folder, "bench", as_json)


@app.command()
def gate(
    folder: FolderArgument, *, budget: BudgetOption = None, target: TargetOption = None, as_json: JsonOption = False
) -> None:
    """Judge measurements against a budget: exit 0 pass, 1 fail, 3 inconclusive."""
    _after(folder, "gate", as_json, budget=budget, target=target)


@app.command()
def report(folder: FolderArgument, *, as_json: JsonOption = False) -> None:
    """Write report.json and report.html, print the tables."""
    _after(folder, "report", as_json)


def _after(folder: Path, name: str, as_json: bool, plan_file: Path | None = None, **options: Any) -> None:
    """Run one stage on the folder of the stage before it, with that run's recipe."""
    from saap_edge.pipeline import ancestors, read_stage

    record = read_stage(folder)
    settings, folders = _recipe(None, base=record["recipe"], **options), ancestors(folder)
    _run(
        settings, (name,), folders, folder.resolve().parent.parent, plan_file, as_json, after=record["stage"],
        tune="recover" in folders and "prune" not in folders,
    )  # fmt: skip


def _run(
    recipe: Any, names: tuple[str, ...], folders: dict[str, Path], out: Path, plan_file: Path | None, as_json: bool,
    after: str | None = None, tune: bool = False,
) -> None:  # fmt: skip
    _quiet_libraries()
    from saap_edge.pipeline import is_helper

    console.quiet = helper = is_helper()  # errors included
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1 and names != ("recover",):
        raise SaapError("accelerate launch is for `saap-edge recover`: run the other stages without it")
    if recipe.recover.batch % processes:  # every process sees this, so that none waits for another
        raise SaapError(f"recover.batch {recipe.recover.batch} cannot be shared out over {processes} processes")
    from saap_edge.report.terminal import render_stage
    from saap_edge.run import run_stages
    from saap_edge.stages import Job

    def done(result: Any) -> None:
        if helper:  # the folder may not be there yet
            return
        note = "already done" if result.cached else f"{result.seconds:.1f} s"
        console.print(f"[bold]{result.name:8}[/] {note:>12}  {escape(str(result.folder))}", soft_wrap=True)
        for part in render_stage(result.name, result.folder):
            console.print(part)

    outcome = run_stages(Job(recipe, plan_file, _bar, tune), names, folders, out, after, done)
    if all(result.cached for result in outcome.results):
        console.print("nothing to do: every stage was already there")
    for what, path in outcome.links.items():
        console.print(f"{what:8} {escape(str(path))}", soft_wrap=True)
    if as_json and not helper:
        print(json.dumps(outcome.as_dict()))
    sys.exit(outcome.exit_code)


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="Hugging Face folder, export folder, .gguf file or ONNX folder")], *,
    task: Annotated[
        list[str] | None, typer.Option("--task", help="A .jsonl file or a task of lm-eval by name; may be repeated")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first rows of each task")] = None,
    text: Annotated[Path | None, typer.Option("--text", help="Text file to measure perplexity on")] = None,
    window: Annotated[int, typer.Option("--window", min=2, help="Tokens of one perplexity window")] = 256,
    format: Annotated[
        list[str] | None, typer.Option("--format", help="Only this artifact of an export folder; may be repeated")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Hugging Face folder with the tokenizer, where PATH has none")
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", min=1, help="Threads of llama.cpp and ONNX Runtime")
    ] = os.cpu_count() or 1,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Zero-shot accuracy and perplexity, of a model or of what ships.

    A Hugging Face folder (dense or pruned) runs in torch, a GGUF file in llama.cpp, an ONNX folder in ONNX Runtime.
    An export folder, as `out/stages/export-HASH`, gives all its artifacts side by side:

    \b
        saap-edge evaluate ./TinyLlama --task piqa.jsonl --task arc_easy.jsonl --limit 200
        saap-edge evaluate out/stages/export-HASH --task piqa.jsonl --text test.txt
        saap-edge evaluate model-q4_0.gguf --tokenizer ./TinyLlama --task lambada.jsonl

    lm-eval does the scoring. --task takes its tasks by name (their data comes from the network), or a local file with
    one JSON object a line, of one of three forms:

    \b
        {"query": text, "choices": [text, ...], "gold": index}                 acc, acc_norm
        {"context_options": [text, ...], "continuation": text, "gold": index}  acc
        {"context": text, "continuation": text}                                acc (greedy), perplexity

    Every figure comes with its rows, window, and the hash of its text. Exit codes: 0 ok, 2 bad input.
    """
    _quiet_libraries()
    if not task and text is None:
        raise SaapError("nothing to measure: give --task, --text or both")
    from saap_edge.evaluate.subjects import Settings, evaluate_path
    from saap_edge.report.terminal import render_evaluation

    settings = Settings(
        tasks=tuple(task or ()), limit=limit, text=text, window=window, formats=tuple(format or ()),
        tokenizer=tokenizer, threads=threads,
    )  # fmt: skip
    document = evaluate_path(path, settings, _bar)
    for part in render_evaluation(document):
        console.print(part)
    if as_json:
        print(json.dumps(document))


@target_app.command("list")
def target_list(as_json: JsonOption = False) -> None:
    """Known boards."""
    from saap_edge.targets import list_targets, load_target

    targets = [load_target(name) for name in list_targets()]
    if as_json:
        print(json.dumps([target.model_dump(mode="json") for target in targets]))
    for target in [] if as_json else targets:
        print(f"{target.name:12} {target.title}")


@target_app.command("show")
def target_show(name: Annotated[str, typer.Argument(help="Name or YAML file")]) -> None:
    """A board's figures with their sources."""
    from saap_edge.targets import dump_yaml, load_target

    print(dump_yaml(load_target(name)), end="")


@target_app.command("probe")
def target_probe() -> None:
    """Measure this machine and print it as a target file: `saap-edge target probe > targets/host.yaml`."""
    from saap_edge.targets import dump_yaml, probe_target

    with console.status("measuring memory bandwidth"):
        target = probe_target()
    print(dump_yaml(target), end="")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


if __name__ == "__main__":
    main()
