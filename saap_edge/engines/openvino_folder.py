"""Context, vocabulary and cost of an OpenVINO folder, read from openvino_model.xml without the runtime."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from saap_edge.engines.base import ArtifactCost
from saap_edge.errors import SaapError

__all__ = [
    "DEFAULT_CACHE", "MODEL_FILE", "SECTION", "WEIGHTS_FILE", "Facts", "cached_bytes", "folder_context", "folder_cost",
    "folder_vocab_size", "read_facts",
]  # fmt: skip

MODEL_FILE, WEIGHTS_FILE = "openvino_model.xml", "openvino_model.bin"
SECTION = "saap_edge"  # of the model's rt_info, where the exporter leaves what no graph tells
DEFAULT_CACHE = "u8"  # OpenVINO's own choice on CPUs
_SCALE = 8  # bytes of scale and zero point of a head's keys or values of one token, in a cache of 8 bits


@dataclass(frozen=True)
class Facts:
    """What openvino_model.xml says.

    Attributes:
        heads: (kv heads, head_dim) of every state: keys and values of each layer.
        vocab_size: number of logits.
        quantisation, context, projection_bytes, parameters: of saap-edge's exporter; None in files of others.
    """

    heads: tuple[tuple[int, int], ...]
    vocab_size: int | None
    quantisation: str | None
    context: int | None
    projection_bytes: int | None
    parameters: int | None


def read_facts(folder: Path) -> Facts:
    """What the model file says. Raises SaapError when it is missing or damaged."""
    path = folder / MODEL_FILE
    try:
        root = ElementTree.parse(path).getroot()
        heads, vocabulary = [], None
        for layer in root.iterfind("./layers/layer"):
            data = layer.find("data")
            if layer.get("type") == "ReadValue" and data is not None:
                _, count, _, width = data.get("variable_shape", "").split(",")
                heads.append((int(count), int(width)))
            elif layer.get("type") == "Result":
                vocabulary = int([dim.text for dim in layer.iterfind("./input/port/dim")][-1] or 0)
        told = {entry.tag: entry.get("value") for entry in root.iterfind(f"./rt_info/{SECTION}/*")}
        numbers = {name: _number(told.get(name)) for name in ("context", "projection_bytes", "parameters")}
    except (OSError, ElementTree.ParseError, ValueError, IndexError) as error:
        raise SaapError(f"'{path}' cannot be read ({error}): export the model again") from None
    if not heads:
        raise SaapError(f"'{path}' is no decoder with its KV cache as state: export the model again")
    return Facts(
        tuple(heads), vocabulary if vocabulary and vocabulary > 0 else None, told.get("quantisation"), **numbers
    )


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    number = int(text)
    if number < 1:
        raise ValueError(f"{number} where a positive number belongs")
    return number


def cached_bytes(facts: Facts, kv_type: str) -> int:
    """Bytes of KV cache that one token takes, scales included.

    >>> cached_bytes(Facts(((4, 64), (4, 64)), None, None, None, None, None), "u8")
    576
    """
    cell = int(re.sub(r"\D", "", kv_type)) // 8  # bytes of a number: f32, bf16, u8
    return sum(heads * (width * cell + (_SCALE if cell == 1 else 0)) for heads, width in facts.heads)


def folder_context(folder: Path) -> int | None:
    """Tokens of the longest sequence; None in a folder of others."""
    return read_facts(folder).context


def folder_vocab_size(folder: Path) -> int | None:
    """Number of logits for a token."""
    return read_facts(folder).vocab_size


def folder_cost(folder: Path, artifact_format: str | None) -> ArtifactCost:
    """The cost of an OpenVINO folder that saap-edge wrote, with the KV cache in 8 bits that OpenVINO takes by default.

    Raises SaapError when it is damaged, or of others.
    """
    facts = read_facts(folder)
    if facts.projection_bytes is None or facts.parameters is None or facts.quantisation is None:
        raise SaapError(f"'{folder}' is not saap-edge's: what a token reads is known of its own exports only")
    return ArtifactCost(
        artifact_format or f"openvino-{facts.quantisation}", facts.projection_bytes, cached_bytes(facts, DEFAULT_CACHE),
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), facts.parameters, facts.context,
    )  # fmt: skip
