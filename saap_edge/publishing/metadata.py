"""The head of a model card, which the hub reads: written by huggingface_hub's own classes."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from saap_edge.documents.bench import BenchedArtifact
from saap_edge.model.chat import read_chat
from saap_edge.publishing.contents import Contents
from saap_edge.publishing.evaluations import Figure
from saap_edge.publishing.licence import OTHER
from saap_edge.publishing.usage import ONNX

__all__ = ["TAG", "measured", "metadata", "relation"]

TASK, TAG = "text-generation", "saap-edge"


def metadata(contents: Contents, name: str, figures: tuple[Figure, ...] = ()) -> ModelCardData:
    """The metadata of a model card.

    A field that is not known is left out: no licence, base model or language is assumed. `model-index` has measured
    figures only: perplexity of each published artifact in its own runtime, and `figures` of zero-shot tasks.
    """
    base, licence, results = contents.base, contents.licence, [*_perplexities(contents), *_figures(figures)]
    other = licence.id == OTHER
    related: dict[str, Any] = {"base_model": base.id, "base_model_relation": relation(contents)} if base.id else {}
    return ModelCardData(
        license=licence.id, license_name=licence.name if other else None,
        license_link=licence.link if other else None, **related, language=base.fields.get("language"),
        library_name=_library(contents), pipeline_tag=TASK, tags=_tags(contents), model_name=name if results else None,
        eval_results=results or None,
    )  # fmt: skip


def relation(contents: Contents) -> str:
    """What the published model is to its base, in the hub's words.

    "finetune" where weights in floating point are published: pruning and training changed them. "quantized" where only
    quantised files are.
    """
    floats = contents.model is not None or any(shipped.record.dtype for shipped in contents.artifacts)
    return "finetune" if floats else "quantized"


def _library(contents: Contents) -> str | None:
    if contents.model is not None:
        return "transformers"
    kinds = [shipped.record.kind for shipped in contents.artifacts]
    return None if not kinds else "transformers.js" if kinds[0] == ONNX else kinds[0]


def _tags(contents: Contents) -> list[str]:
    kinds = dict.fromkeys(shipped.record.kind for shipped in contents.artifacts)
    chats = ["conversational"] if read_chat(contents.tokenizer).templates else []
    return [TAG, "pruned", *kinds, *chats]


def measured(contents: Contents) -> list[BenchedArtifact]:
    """The published artifacts in the bench document."""
    names = {shipped.record.name for shipped in contents.artifacts}
    return [entry for entry in contents.report.bench.artifacts if entry.role == "pruned" and entry.format in names]


def _perplexities(contents: Contents) -> list[EvalResult]:
    conditions, text = contents.report.bench.conditions, contents.recipe["data"]["test"].rpartition("/")[2]
    arguments = {
        "sha256": conditions.perplexity_text_sha256, "window": conditions.perplexity_window,
        "tokens": conditions.perplexity_tokens,
    }  # fmt: skip
    return [
        EvalResult(
            task_type=TASK, dataset_type="text", dataset_name=text, dataset_args=arguments, metric_type="perplexity",
            metric_name=f"perplexity, {entry.format} in {entry.engine}",
            metric_value=round(entry.metrics.perplexity, 4),
        )
        for entry in measured(contents) if entry.metrics.perplexity is not None
    ]  # fmt: skip


def _figures(figures: tuple[Figure, ...]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK, dataset_type=one.task, dataset_name=one.task, dataset_args=one.arguments,
            metric_type=one.metric, metric_name=f"{one.metric}, {one.artifact}", metric_value=round(one.value, 4),
        )
        for one in figures
    ]  # fmt: skip
