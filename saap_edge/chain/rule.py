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

__all__ = ["Inputs", "Rule"]

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
    """

    name: str
    inputs: tuple[str, ...]
    body: Callable[[Context, Inputs, Path], None]
    reads: tuple[str, ...] | Callable[[Context], tuple[str, ...]] = ()
    settings: Callable[[Context], dict[str, Any]] = _nothing

    def stage(self, context: Context) -> Stage:
        """The stage for one run."""
        reads = self.reads(context) if callable(self.reads) else self.reads
        code = code_hash(self.body.__module__)
        return Stage(self.name, self.inputs, reads, self.settings(context), partial(self.body, context), code)
