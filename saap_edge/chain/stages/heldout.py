"""How well an artifact predicts the held-out text in its own runtime: heldout.json. A search chooses by it, so that
the test text stays what nothing is chosen on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saap_edge.chain.rule import Inputs, Rule
from saap_edge.chain.texts import HELDOUT_WINDOWS, windows
from saap_edge.files import save_document

if TYPE_CHECKING:
    from saap_edge.chain.context import Context

__all__ = ["heldout"]


def heldout(artifact: str) -> Rule:
    """The stage that runs one artifact on held-out text. `artifact` is its format, in the folder of the input
    "artifact".

    heldout.json has `nll`, the mean over `tokens` tokens, in nats.
    """

    def settings(context: Context) -> dict[str, Any]:
        recipe = context.recipe
        return {
            "format": artifact, "threads": context.threads, "window": recipe.score.window, "kv": recipe.bench.kv,
            "windows": HELDOUT_WINDOWS,
        }  # fmt: skip

    return Rule("heldout", ("artifact",), _on(artifact), reads=("heldout",), settings=settings)


def _on(artifact: str) -> Callable[[Context, Inputs, Path], None]:
    def body(context: Context, inputs: Inputs, out: Path) -> None:
        from saap_edge.artifacts import engine_of, read_manifest
        from saap_edge.engines.options import EngineOptions
        from saap_edge.engines.worker import Worker

        folder, texts = inputs["artifact"], windows(context, "heldout", HELDOUT_WINDOWS).tolist()
        [found] = [entry for entry in read_manifest(folder).artifacts if entry.format == artifact]
        options = EngineOptions(kv=context.recipe.bench.kv)
        with Worker(engine_of(artifact), folder / found.path, context.threads, len(texts[0]), options) as worker:
            nll, tokens = worker.nll(texts)
        save_document({"nll": nll / tokens, "tokens": tokens}, out / "heldout.json")

    return body
