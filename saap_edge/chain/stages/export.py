"""The recovered model in every format, with its plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.stages.dense import export_folder, export_settings, learns

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE", "TUNED"]


def _tuned(context: Context, inputs: Inputs, out: Path) -> None:
    lineage = {name: folder.name for name, folder in inputs.items()} | context.outside(("model",))
    export_folder(context, inputs, inputs["recover"] / "model", out, "pruned", lineage)


def _export(context: Context, inputs: Inputs, out: Path) -> None:
    _tuned(context, inputs, out)
    (out / "plan.json").write_bytes((inputs["plan"] / "plan.json").read_bytes())


RULE = Rule("export", ("recover", "plan"), _export, reads=("model",), settings=export_settings, learns=learns)
# For a model without a plan.
TUNED = Rule("export", ("recover",), _tuned, reads=("model",), settings=export_settings, learns=learns)
