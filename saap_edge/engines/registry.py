"""Engines, found by name or by what they open. Each engine registers itself in its own module.

Modules of engines import their runtime only when an artifact is loaded, because a record is also read where that
runtime is not installed. The functions of a record read headers, and need no runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from saap_edge.engines.base import ArtifactCost
from saap_edge.errors import SaapError
from saap_edge.registry import Registry

__all__ = [
    "CHAT", "DRAFT", "ENGINES", "EXACT", "VOCABULARY", "WRITER", "EngineRecord", "engine_at", "engine_named",
    "engine_opening", "register_engine",
]  # fmt: skip

VOCABULARY = " vocabulary"  # after an engine's name: its tokenizer only
CHAT = " chat"  # after an engine's name: its runtime's own chat entry point
EXACT = " exact"  # after an engine's name: without what its runtime rounds by default, as verify runs it
WRITER = " writer"  # after an engine's name: many documents at a time
DRAFT = " draft"  # after an engine's name: its runtime's own loop, with or without a draft model


@dataclass(frozen=True)
class EngineRecord:
    """An engine.

    Attributes:
        name: its name in formats and documents.
        package: the package that pip installs.
        module: the module that the package is imported as; a board is asked whether it has it.
        entry: "module:class" of an `Engine` (engines/base.py), which the child process imports; None: it runs nothing.
        vocabulary: "module:class" of its tokenizer alone, which is constructed with a path.
        chat: "module:class" of its runtime's chat entry point (engines/chat.py); None: it has none.
        chat_module: the module that this needs, where it is not `module`.
        kind: of the artifacts that it opens (formats.py).
        opens: whether something at a path is one of them.
        context: tokens of the longest sequence that an artifact holds; None where it does not say.
        vocab_size: logits a token gives; None where the artifact does not say.
        cost: what running an artifact costs anywhere, under the name of the format that is given.
        tokenizes: artifacts carry a tokenizer, whose ids and ends verify compares.
        half_sums: inputs of float products take the type of the weight, scales of rounded inputs and attention fp16.
        writer: "module:class" of what writes many documents at a time (engines/llama_writer.py).
        environment: variables that a process needs to run an artifact well; what the user has set himself stays.
        benchmark: "module:class" that drives its runtime's own benchmark program (engines/llama_bench.py).
        kv_types: types of the KV cache that can be asked for (engines/options.py); the class then takes `kv`, a name.
        no_kv_types: where there are none, why, and what can.
        ubatch: tokens of a prompt that are computed at once where nobody asks for another number; the class then takes
            `ubatch`. None: the runtime computes it as it likes.
        exact: "module:class" of an `Engine` that rounds nothing which the file does not; None: `entry` is compared with
            torch, and what it rounds is emulated (evaluation/arithmetic.py).
        drafts: "module:class" of its runtime's own speculative decoding (engines/llama_draft.py); None: it has none.
    """

    name: str
    package: str
    module: str
    entry: str | None = None
    vocabulary: str | None = None
    kind: str | None = None
    opens: Callable[[Path], bool] = lambda path: False
    context: Callable[[Path], int | None] = lambda path: None
    vocab_size: Callable[[Path], int | None] = lambda path: None
    cost: Callable[[Path, str | None], ArtifactCost] | None = None
    tokenizes: bool = False
    half_sums: bool = False
    chat: str | None = None
    chat_module: str | None = None
    writer: str | None = None
    environment: Callable[[Path], dict[str, str]] = lambda path: {}
    exact: str | None = None
    benchmark: str | None = None
    kv_types: tuple[str, ...] = ()
    ubatch: int | None = None
    no_kv_types: str = "its cache has one type; GGUF files, in llama.cpp, have several"
    drafts: str | None = None

    def entry_of(self, name: str) -> str:
        """The "module:class" that the child imports: the engine, or what `name` ends in: VOCABULARY, CHAT,
        EXACT, WRITER or DRAFT.

        Raises SaapError where the engine has none.
        """
        others = {
            VOCABULARY: self.vocabulary, CHAT: self.chat, EXACT: self.exact, WRITER: self.writer, DRAFT: self.drafts,
        }  # fmt: skip
        found = others.get(_ending(name), self.entry)
        if found is None:
            raise SaapError(f"'{name}' runs no artifacts")
        return found

    @property
    def verifying(self) -> str:
        """The name of the engine whose answers are compared with torch."""
        return f"{self.name}{EXACT}" if self.exact else self.name

    def module_of(self, name: str) -> str:
        """The runtime's module that the child imports first."""
        return self.chat_module or self.module if name.endswith(CHAT) else self.module


def _ending(name: str) -> str:
    return next((ending for ending in (VOCABULARY, CHAT, EXACT, WRITER, DRAFT) if name.endswith(ending)), "")


ENGINES: Registry[EngineRecord] = Registry(
    "engine", "saap_edge.engines",
    (
        "saap_edge.engines.llama_cpp", "saap_edge.engines.onnxruntime", "saap_edge.engines.optimum",
        "saap_edge.engines.openvino", "saap_edge.engines.torch", "saap_edge.engines.vocabularies",
    ),
)  # fmt: skip


def register_engine(engine: EngineRecord) -> EngineRecord:
    """Add an engine and return it; docs/adding.md has an example. Raises SaapError when its name is another's."""
    return ENGINES.register(engine)


def engine_named(name: str) -> EngineRecord:
    """The record of an engine; its name may end in VOCABULARY, CHAT, EXACT, WRITER or DRAFT.

    Raises SaapError that suggests the nearest name.
    """
    return ENGINES.find(name.removesuffix(_ending(name)))


def engine_opening(path: Path) -> EngineRecord | None:
    """The first engine that opens what is at `path`; None where none does."""
    return next((engine for engine in ENGINES.values() if engine.opens(path)), None)


def engine_at(path: Path) -> EngineRecord:
    """The first engine that opens what is at `path`. Raises SaapError when none does."""
    engine = engine_opening(path)
    if engine is not None:
        return engine
    raise SaapError(f"no engine opens '{path}': give a .gguf file, an ONNX or an OpenVINO folder")
