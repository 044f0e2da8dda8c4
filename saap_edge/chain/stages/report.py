"""All that a run found, for people and for machines: report.html and report.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import Inputs, Rule

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["RULE"]

_TOLD = ("file", "architecture", "types", "rounding")  # of a GGUF file that the model came in


def _settings(context: Context) -> dict[str, Any]:
    return {"target": context.target.identity, "model": context.model_name}


def _report(context: Context, inputs: Inputs, out: Path) -> None:
    from saap_edge.report.write import write_report

    spec, first = context.spec, context.spec.attention
    model: dict[str, Any] = {
        "name": context.model_name,
        "family": spec.family.title, "layers": len(spec.layers), "hidden": spec.hidden,
        "heads": first.heads, "kv_heads": first.kv_heads, "head_dim": spec.head_dim, "ffn": spec.widest_ffn,
        "vocab_size": spec.vocab_size,
    }  # fmt: skip
    if context.source:
        model["source"] = {name: context.source[name] for name in _TOLD}
    write_report(inputs, model, context.target, context.on_target, out)


_ALL = ("bank", "plan", "prune", "recover", "dense", "export", "verify", "bench", "gate")
RULE = Rule("report", _ALL, _report, settings=_settings)
