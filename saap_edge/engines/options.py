"""What a runtime can be asked for as it opens an artifact, beside threads and context."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import AfterValidator

from saap_edge.engines.registry import engine_named
from saap_edge.errors import SaapError

__all__ = [
    "AS_IT_IS", "KV_TYPES", "PIECE", "UBATCH", "EngineOptions", "KvName", "KvType", "check_options", "kv_bytes",
    "kv_refusal", "kv_type",
]  # fmt: skip


@dataclass(frozen=True)
class KvType:
    """A type that llama.cpp can hold keys and values in. Blocks lie inside a head, and share a scale.

    Attributes:
        name: its name in recipes, and in llama.cpp's own options (`-ctk`, `-ctv`).
        block: numbers in a block.
        size: bytes of a block (ggml-common.h).
        symbol: the name of its number in llama.cpp's interface.
    """

    name: str
    block: int
    size: int
    symbol: str

    @property
    def rounded(self) -> bool:
        """Whether numbers are rounded in blocks."""
        return self.block > 1


KV_TYPES = {
    each.name: each
    for each in (
        KvType("f16", 1, 2, "GGML_TYPE_F16"), KvType("q8_0", 32, 34, "GGML_TYPE_Q8_0"),
        KvType("q4_0", 32, 18, "GGML_TYPE_Q4_0"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """What a user asks of a runtime. None leaves it as the runtime's engine has it.

    Attributes:
        kv: type of keys and values in the cache, a name of KV_TYPES.
        ubatch: tokens of a prompt that are computed at once, at most: work space follows it, and so does the speed of
            prompts. Sums come in another order with another number, so that answers move a little.
        draft: path of the draft model's file, for an engine whose name ends in DRAFT (registry.py).
    """

    kv: str | None = None
    ubatch: int | None = None
    draft: str | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not None, by name.

        >>> EngineOptions(kv="q8_0").given(), EngineOptions().given()
        ({'kv': 'q8_0'}, {})
        """
        return {name: value for name, value in asdict(self).items() if value is not None}


AS_IT_IS = EngineOptions()
UBATCH = 512  # of llama.cpp's own programs
PIECE = 64  # for ONNX Runtime: about as fast as a prompt that is computed whole, and work space follows it (memory.md)


def kv_type(name: str) -> KvType:
    """The type of that name. Raises SaapError for an unknown one."""
    if name not in KV_TYPES:
        raise SaapError(f"KV cache '{name}' is none of {', '.join(KV_TYPES)}")
    return KV_TYPES[name]


def _known(name: str) -> str:
    try:
        return kv_type(name).name
    except SaapError as error:
        raise ValueError(str(error)) from None


KvName = Annotated[str, AfterValidator(_known)]  # a field of a recipe or a document


def kv_bytes(elements: int, name: str) -> int:
    """Bytes of so many cached numbers, which fill whole blocks.

    >>> [kv_bytes(64, name) for name in KV_TYPES]
    [128, 68, 36]
    """
    kind = kv_type(name)
    return elements // kind.block * kind.size


def kv_refusal(name: str, head_dims: Iterable[int]) -> str | None:
    """Why heads of these sizes cannot be cached so, and what to do instead; else None.

    >>> kv_refusal("q8_0", [64, 128]), kv_refusal("f16", [80])
    (None, None)
    >>> kv_refusal("q8_0", [80])
    'a KV cache in q8_0 has blocks of 32 numbers, and the heads of this model have 80: take f16'
    """
    kind = kv_type(name)
    odd = next((size for size in head_dims if size % kind.block), None)
    if odd is None:
        return None
    fitting = [other.name for other in KV_TYPES.values() if not odd % other.block]
    return (
        f"a KV cache in {name} has blocks of {kind.block} numbers, and the heads of this model have {odd}: "
        f"take {' or '.join(fitting)}"
    )


def check_options(engine: str, options: EngineOptions) -> None:
    """Raise SaapError where an engine, by its name, cannot do what is asked for."""
    record = engine_named(engine)
    if options.kv is not None and kv_type(options.kv).name not in record.kv_types:
        raise SaapError(f"KV cache {options.kv}: {record.name} cannot: {record.no_kv_types}")
    if options.ubatch is not None and record.ubatch is None:
        raise SaapError(
            f"micro-batch of {options.ubatch}: {record.name} takes no such number; llama.cpp and ONNX Runtime do"
        )
    if options.ubatch is not None and options.ubatch < 1:
        raise SaapError(f"micro-batch of {options.ubatch}: it must be at least 1 token")
