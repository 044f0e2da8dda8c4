"""Checks that refuse a run before anything is written: pure functions, which `open_context` calls once each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.space import space_of, will_be_uniform
from saap_edge.chat.instructions import ANSWER_TOKENS, read_instructions
from saap_edge.engines.answers import VERIFIED
from saap_edge.engines.chat import no_chat
from saap_edge.engines.options import EngineOptions, check_options, kv_refusal
from saap_edge.errors import SaapError
from saap_edge.evaluation.token_ids import check_token_ids
from saap_edge.exporting.refusal import export_refusal, refusal_reason
from saap_edge.exporting.weights import IN_WIDER_FLOATS
from saap_edge.formats import format_of
from saap_edge.measuring.conditions import longest_sequence
from saap_edge.model.chat import DEFAULT, read_chat
from saap_edge.model.checkpoint import read_spec
from saap_edge.model.spec import ModelSpec
from saap_edge.model.values import beyond_fp16
from saap_edge.pruning.plan import check_fits

if TYPE_CHECKING:
    from saap_edge.chain.texts import Corpus
    from saap_edge.recipe import Recipe
    from saap_edge.targets import Target

__all__ = [
    "check_calibration", "check_chat", "check_formats", "check_lengths", "check_options_of", "check_pruning",
    "check_teacher", "check_tokenizer", "check_values",
]  # fmt: skip


def check_teacher(spec: ModelSpec, teacher: Path) -> None:
    """Raise SaapError for a teacher whose vocabulary has another size than the model's."""
    taught, known = spec.vocab_size, read_spec(teacher).vocab_size
    if taught != known:
        raise SaapError(f"the teacher '{teacher}' has {known} tokens, the model {taught}: they must agree")


def check_formats(spec: ModelSpec, formats: Iterable[str]) -> None:
    """Raise SaapError for a format that cannot hold the model as it is."""
    for name in formats:
        refusal = export_refusal(spec, name)
        if refusal:
            raise SaapError(refusal)


def check_pruning(spec: ModelSpec, recipe: Recipe, target: Target, plan: Any) -> None:
    """Raise SaapError where the model cannot have what is asked for: formats, depth, biases, a ratio, a plan."""
    prune = recipe.prune
    if not spec.mamba and any(not ((layer.heads or layer.conv) and layer.ffn) for layer in spec.layers):
        raise SaapError("the model has layers without attention or FFN: prune the dense model it was made from")
    if prune.depth and spec.no_depth:
        raise SaapError(f"prune.depth: whole sublayers cannot be removed from this model: {spec.no_depth}")
    if prune.bias and spec.family.uniform_only:
        raise SaapError(f"prune.bias: {spec.family.title} models are saved as their plain class, which has none")
    per_layer = not (plan.uniform if plan else will_be_uniform(spec, recipe))
    pruned = replace(spec, o_bias=True, down_bias=True) if prune.bias else spec
    for name in recipe.export.formats:
        refusal = export_refusal(spec, name) or export_refusal(pruned, name, per_layer)
        if refusal:
            raise SaapError(refusal)
    if plan:
        check_fits(plan, spec)
    else:
        space_of(spec, recipe, target).check(prune.ratio)


def check_calibration(recipe: Recipe, writer: Path, corpus: Corpus, windows: int) -> None:
    """Raise SaapError where the texts do not fill so many calibration windows, and what is needed of the other texts.

    Where the model in the folder `writer` writes calibration text, raise SaapError where it cannot.
    """
    from saap_edge.chain.amounts import written_tokens
    from saap_edge.writing.forms import read_form
    from saap_edge.writing.settings import FORMAT

    data, window = recipe.data, recipe.score.window
    if data.written:
        own, tokens = math.ceil(windows * data.written), written_tokens(recipe)
        if tokens < own * window:
            raise SaapError(
                f"data.self_tokens: {tokens} tokens do not fill {own} windows of {window} (score.window): give "
                f"{own * window} or more"
            )
        refusal = refusal_reason(read_spec(writer), FORMAT)
        if refusal or find_spec("llama_cpp") is None:
            raise SaapError(
                f"data.calibration: '{writer}' cannot write text, because that is done in llama.cpp: "
                f"{refusal or 'llama-cpp-python is not installed'}; name a text file"
            )
        read_form(writer)
    corpus.check(math.ceil(windows * (1 - data.written)))


def check_lengths(spec: ModelSpec, recipe: Recipe) -> None:
    """Raise SaapError for windows and sequences that are longer than the model's context."""
    if recipe.score.window > spec.context:
        raise SaapError(f"score.window {recipe.score.window} is longer than the model's context {spec.context}")
    bench = recipe.bench
    longest = longest_sequence(bench.prompt_tokens, bench.contexts, bench.decode_tokens)
    if longest > spec.context:
        raise SaapError(
            f"bench measures sequences of {longest} tokens (prompt_tokens or contexts, and decode_tokens): the model's "
            f"context is {spec.context}"
        )
    if spec.context < VERIFIED:
        raise SaapError(f"verify runs {VERIFIED} tokens: the model's context is {spec.context}")


def check_tokenizer(model: Path, spec: ModelSpec, corpus: Corpus, formats: Iterable[str]) -> list[str]:
    """Warnings on what the runtimes will do differently with ends of texts, chats and tokens, a line each.

    Raises SaapError for settings of ends and chats that cannot be, and for formats whose runtime has no tokenizer that
    equals the model's.
    """
    text = corpus.text("test")
    return [*read_chat(model).warnings, *check_token_ids(model, spec, corpus.tokenizer, text, formats)]


def check_chat(model: Path, spec: ModelSpec, recipe: Recipe, tokenizer: Any) -> None:
    """Raise SaapError for chats that cannot be, and for limits on chats that are not measured."""
    limited = [limit.metric for limit in recipe.budget.limits if limit.metric.startswith("chat_")]
    if limited and not recipe.bench.chat:
        raise SaapError(f"the budget limits {limited[0]}, but bench.chat is 0: say how many instructions are asked")
    if not recipe.bench.chat:
        return
    template = read_chat(model).templates.get(DEFAULT)
    if template is None:
        raise SaapError(
            f"bench.chat: '{model}' has no chat template: a base model follows no instructions; leave it out"
        )
    for name in recipe.export.formats:
        problem = no_chat(format_of(name).engine)
        if problem:
            raise SaapError(f"bench.chat: {name}: {problem}")
    for row in read_instructions(limit=recipe.bench.chat).rows:
        try:
            asked = {"tools": row.tool_list or None, "chat_template": template, "add_generation_prompt": True}
            prompt = tokenizer.apply_chat_template(row.messages, return_dict=True, **asked)["input_ids"]
        except Exception as error:  # jinja2 has many, and templates raise their own
            raise SaapError(f"bench.chat: the chat template of '{model}' fails: {error}") from None
        if len(prompt) + ANSWER_TOKENS > spec.context:
            raise SaapError(
                f"bench.chat: a prompt of {len(prompt)} tokens and an answer of {ANSWER_TOKENS} do not fit into the "
                f"model's context of {spec.context}: leave it out"
            )


def check_options_of(spec: ModelSpec, recipe: Recipe) -> None:
    """Raise SaapError for a KV cache or a micro-batch that a format's engine, or the size of heads, does not allow."""
    asked = EngineOptions(kv=recipe.bench.kv, ubatch=recipe.bench.ubatch)
    for name in recipe.export.formats:
        for field in asked.given():
            try:
                check_options(format_of(name).engine, EngineOptions(**{field: asked.given()[field]}))
            except SaapError as error:
                raise SaapError(f"bench.{field}, {name}: {error}; leave one of the two out") from None
    if asked.kv and (refusal := kv_refusal(asked.kv, spec.head_dims)):
        raise SaapError(f"bench.kv: {refusal}")


def check_values(model: Path, formats: Iterable[str]) -> None:
    """Raise SaapError for weights that are no finite numbers, and for a format that cannot hold them."""
    large = beyond_fp16(model)
    narrow = [name for name in formats if format_of(name).dtype == "float16"]
    if large and narrow:
        name, largest = next(iter(large.items()))
        raise SaapError(
            f"'{model}': {name} holds {largest:.3g}, but {narrow[0]} holds nothing beyond 65504: {IN_WIDER_FLOATS}"
        )
