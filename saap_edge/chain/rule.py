"""What a stage of the chain is: what it reads, what else decides its result, and the function that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.cache import Stage
from saap_edge.chain.code import code_hash

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["WRITE", "Inputs", "Rule"]

WRITE = "write"  # the stage in which the model writes calibration text

Inputs = Mapping[str, Path]  # folders of earlier stages, by name


def _nothing(context: Context) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Rule:
    """A stage, before it is known of which run.

    Attributes:
        name: name of the stage; two chains may each have a rule of the same name.
        inputs: earlier stages whose folders it reads.
        body: called with (context, folders of inputs, out); writes the result into `out`.
        reads: roles of the files from outside that it reads (`Context.outside`).
        settings: what else decides the result, as JSON.
        learns: it reads calibration text (chain/texts.py): a file, the text of the stage `write`, or both.
    """

    name: str
    inputs: tuple[str, ...]
    body: Callable[[Context, Inputs, Path], None]
    reads: tuple[str, ...] = ()
    settings: Callable[[Context], dict[str, Any]] = _nothing
    learns: bool | Callable[[Context], bool] = False

    def needs(self, context: Context) -> tuple[str, ...]:
        """The earlier stages whose folders it reads in one run."""
        return (*self.inputs, *((WRITE,) if self._learns(context) and context.recipe.data.written else ()))

    def _learns(self, context: Context) -> bool:
        return self.learns(context) if callable(self.learns) else self.learns

    def stage(self, context: Context) -> Stage:
        """The stage for one run."""
        file = ("calibration",) if self._learns(context) and context.recipe.data.file else ()
        code = code_hash(self.body.__module__)
        reads, inputs = (*self.reads, *file), self.needs(context)
        return Stage(self.name, inputs, reads, self.settings(context), partial(self.body, context), code)
