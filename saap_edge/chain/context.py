"""What all stages of one run share: the recipe, and all that it names, opened and checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saap_edge.artifacts import slow_ones
from saap_edge.chain.texts import Corpus
from saap_edge.errors import SaapError
from saap_edge.files import file_hash, folder_hash
from saap_edge.model.spec import ModelSpec
from saap_edge.progress import Bar
from saap_edge.recipe import Recipe
from saap_edge.sources import resolve_model
from saap_edge.targets import Target, load_target, matches_this_machine

__all__ = ["Context", "open_context"]


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
    _hashes: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def threads(self) -> int:
        """Threads of the engines: the recipe's, or the target's as far as this machine has them."""
        return self.recipe.bench.threads or min(self.target.threads, os.cpu_count() or 1)

    @property
    def on_target(self) -> bool:
        """Whether this machine is the target."""
        return matches_this_machine(self.target)

    @property
    def model_name(self) -> str:
        """The name of the model's folder or file, or on the hub. A report must not show paths of this machine."""
        given = Path(self.recipe.model)
        if given.is_file():
            return given.name
        return self.model.resolve().name if given.is_dir() else self.recipe.model

    def outside(self, roles: tuple[str, ...]) -> dict[str, str]:
        """Content hashes of files from outside by role ("model", "teacher", and the texts), each computed once."""
        folders = {"model": self.model, "teacher": self.teacher}
        for role in roles:
            if role not in self._hashes:
                known = role in folders
                self._hashes[role] = folder_hash(folders[role]) if known else file_hash(self.recipe.data.files[role])
        return {role: self._hashes[role] for role in roles}


def open_context(recipe: Recipe, plan_file: Path | None, bar: Bar, tune: bool = False) -> Context:
    """Open what a recipe names, and check all that can be checked before anything is written.

    Raises SaapError for a missing or unsupported model, an unreachable ratio, an unknown target, texts that are missing
    or too short, a window or a measured sequence that is longer than the model's context, a tokenizer that a format
    cannot hold, and a plan file that breaks a rule.
    """
    from saap_edge.chain import checks
    from saap_edge.gguf_input.folder import source_of
    from saap_edge.model.checkpoint import open_checkpoint
    from saap_edge.pruning.plan import load_plan

    target, model = load_target(recipe.target), resolve_model(recipe.model)
    checkpoint = open_checkpoint(model)
    source = source_of(model)
    plan = load_plan(plan_file) if plan_file else None
    teacher = resolve_model(recipe.recover.teacher) if recipe.recover.teacher else model
    checks.check_teacher(checkpoint.spec, teacher)
    checks.check_formats(checkpoint.spec, recipe.export.formats) if tune else checks.check_pruning(
        checkpoint.spec, recipe, target, plan
    )
    checks.check_lengths(checkpoint.spec, recipe)
    checks.check_options_of(checkpoint.spec, recipe)
    if not (model / "tokenizer.json").is_file():
        raise SaapError(f"no tokenizer.json in '{model}': the runtimes need the model's fast tokenizer")
    corpus = Corpus(recipe.data.files, model, recipe.score.window)
    told = checks.check_tokenizer(model, checkpoint.spec, corpus, recipe.export.formats)
    checks.check_chat(model, checkpoint.spec, recipe, corpus.tokenizer)
    checks.check_calibration(recipe, teacher, corpus, windows=1 if tune else 2)
    checks.check_values(model, recipe.export.formats)
    slow = slow_ones(recipe.export.formats)
    warnings = (*checkpoint.warnings, *filter(None, [(source or {}).get("note")]), *told, *slow)
    return Context(
        recipe=recipe, target=target, model=model, teacher=teacher, spec=checkpoint.spec, source=source, plan=plan,
        tune=tune, corpus=corpus, bar=bar, warnings=warnings,
    )  # fmt: skip
