"""What all stages of one run share: the recipe, and all that it names, opened and checked once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from saap_edge.artifacts import slow_ones
from saap_edge.chain.texts import Corpus
from saap_edge.errors import SaapError
from saap_edge.files import file_hash, folder_hash
from saap_edge.machine.facts import machine_facts
from saap_edge.model.spec import ModelSpec
from saap_edge.progress import Bar
from saap_edge.recipe import Recipe
from saap_edge.sources import resolve_model
from saap_edge.targets import HOST, Target, load_target, matches

__all__ = ["Board", "Context", "Known", "open_context", "reopen_context"]

Found = TypeVar("Found")


class Known:
    """What was opened and checked before: recipes of one model and its texts share it."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Any] = {}
        self.hashes: dict[Path, str] = {}  # of files and folders from outside

    def once(self, key: tuple[Any, ...], make: Callable[[], Found]) -> Found:
        """What `make` returned when it was first called for this key. What it raises is not kept."""
        if key not in self._found:
            self._found[key] = make()
        found: Found = self._found[key]
        return found


@dataclass(frozen=True)
class Board:
    """A machine that measures in the place of this one: its `machine_facts`, and what the target `host` is there."""

    facts: Mapping[str, Any]
    host: Target


@dataclass(frozen=True)
class Context:
    """A checked recipe and what it names.

    Attributes:
        recipe: the recipe.
        target: the board.
        model, teacher: their folders.
        spec: the model's shape.
        source: what is known of the GGUF file that the model was unpacked from; None where it came as a folder.
        plan: a plan that is used instead of searching for one, or None.
        tune: the model is recovered as it is; nothing is pruned.
        corpus: the texts.
        bar: shows progress.
        warnings: lines on what was corrected in the model, or will differ in a runtime.
        machine: facts of the machine that measures: this one, unless another does.
    """

    recipe: Recipe
    target: Target
    model: Path
    teacher: Path
    spec: ModelSpec
    source: dict[str, Any] | None
    plan: Any
    tune: bool
    corpus: Corpus
    bar: Bar
    warnings: tuple[str, ...] = ()
    machine: Mapping[str, Any] = field(default_factory=machine_facts, repr=False)
    _hashes: dict[Path, str] = field(default_factory=dict, repr=False)

    @property
    def threads(self) -> int:
        """Threads of the engines: the recipe's, or the target's as far as the machine that measures has them."""
        return self.recipe.bench.threads or min(self.target.threads, self.machine["cores"])

    @property
    def on_target(self) -> bool:
        """Whether the machine that measures is the target."""
        return matches(self.target, self.machine)

    @property
    def model_name(self) -> str:
        """The name of the model's folder or file, or on the hub. A report must not show paths of this machine."""
        given = Path(self.recipe.model)
        if given.is_file():
            return given.name
        return self.model.resolve().name if given.is_dir() else self.recipe.model

    def outside(self, roles: tuple[str, ...]) -> dict[str, str]:
        """Content hashes of files from outside by role ("model", "teacher", and the texts), each computed once."""
        paths = {role: self.path(role) for role in roles}
        for path in paths.values():
            if path not in self._hashes:
                self._hashes[path] = folder_hash(path) if path.is_dir() else file_hash(path)
        return {role: self._hashes[path] for role, path in paths.items()}

    def path(self, role: str) -> Path:
        """The folder or file from outside of that role."""
        folders = {"model": self.model, "teacher": self.teacher}
        return folders[role] if role in folders else self.recipe.data.files[role]


def open_context(
    recipe: Recipe, plan_file: Path | None, bar: Bar, tune: bool = False, known: Known | None = None,
    board: Board | None = None,
) -> Context:  # fmt: skip
    """Open what a recipe names, and check all that can be checked before anything is written.

    `known` is what recipes that are opened together share; `board` measures where this machine does not.

    Raises SaapError for a missing or unsupported model, an unreachable ratio, an unknown target, texts that are missing
    or too short, a window or a measured sequence that is longer than the model's context, a tokenizer that a format
    cannot hold, and a plan file that breaks a rule.
    """
    from saap_edge.chain import checks
    from saap_edge.gguf_input.folder import source_of
    from saap_edge.model.checkpoint import open_checkpoint
    from saap_edge.pruning.plan import load_plan

    known = known or Known()
    target = board.host if board and recipe.target == HOST else load_target(recipe.target)
    model = known.once(("folder", recipe.model), lambda: resolve_model(recipe.model))
    checkpoint = known.once(("checkpoint", model), lambda: open_checkpoint(model))
    source = source_of(model)
    plan = load_plan(plan_file) if plan_file else None
    teacher = resolve_model(recipe.recover.teacher) if recipe.recover.teacher else model
    formats = tuple(recipe.export.formats)
    checks.check_teacher(checkpoint.spec, teacher)
    checks.check_formats(checkpoint.spec, formats) if tune else checks.check_pruning(
        checkpoint.spec, recipe, target, plan
    )
    checks.check_lengths(checkpoint.spec, recipe)
    checks.check_options_of(checkpoint.spec, recipe)
    if not (model / "tokenizer.json").is_file():
        raise SaapError(f"no tokenizer.json in '{model}': the runtimes need the model's fast tokenizer")
    texts = (model, recipe.score.window, *recipe.data.files.items())
    corpus = known.once(("corpus", *texts), lambda: Corpus(recipe.data.files, model, recipe.score.window))
    told = known.once(
        ("tokenizer", formats, *texts), lambda: checks.check_tokenizer(model, checkpoint.spec, corpus, formats)
    )
    checks.check_chat(model, checkpoint.spec, recipe, corpus.tokenizer)
    checks.check_calibration(recipe, teacher, corpus, windows=1 if tune else 2)
    known.once(("values", model, formats), lambda: checks.check_values(model, formats))
    slow = slow_ones(formats)
    warnings = (*checkpoint.warnings, *filter(None, [(source or {}).get("note")]), *told, *slow)
    return Context(
        recipe=recipe, target=target, model=model, teacher=teacher, spec=checkpoint.spec, source=source, plan=plan,
        tune=tune, corpus=corpus, bar=bar, warnings=warnings, machine=board.facts if board else machine_facts(),
        _hashes=known.hashes,
    )  # fmt: skip


def reopen_context(
    recipe: Recipe, bar: Bar, *, target: Target, machine: Mapping[str, Any], warnings: tuple[str, ...],
    hashes: Mapping[str, str],
) -> Context:  # fmt: skip
    """The context of a recipe that another process has opened and checked: nothing is checked or hashed again.

    `target`, `machine`, `warnings` and `hashes` (by role) are what that process found. Raises SaapError where the model
    cannot be opened here.
    """
    from saap_edge.gguf_input.folder import source_of
    from saap_edge.model.checkpoint import open_checkpoint

    model = resolve_model(recipe.model)
    teacher = resolve_model(recipe.recover.teacher) if recipe.recover.teacher else model
    context = Context(
        recipe=recipe, target=target, model=model, teacher=teacher, spec=open_checkpoint(model).spec,
        source=source_of(model), plan=None, tune=False, corpus=Corpus(recipe.data.files, model, recipe.score.window),
        bar=bar, warnings=warnings, machine=machine,
    )  # fmt: skip
    context._hashes.update({context.path(role): value for role, value in hashes.items()})
    return context
