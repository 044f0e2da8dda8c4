"""plan.json: per layer, heads, kv heads and FFN width, before => after. What goes, not how; a file people edit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from saap_edge.documents.base import Document, Part, Real, check_version
from saap_edge.errors import SaapError

__all__ = [
    "Candidate", "LayerShape", "Plan", "PlanLayer", "Unit", "Widths", "alike", "load_plan", "save_plan", "shape_widths",
]  # fmt: skip

Unit = Literal["parameters", "bytes", "latency"]
KV = Literal["", "lent", "borrowed"]
Widths = list[dict[str, int]]  # [layer][kind]: structures that stay


@dataclass(frozen=True)
class LayerShape:
    """Widths of one decoder layer: query heads, kv heads, FFN width. 0 where attention or FFN is gone.

    `conv`: the layer has a short convolution in place of attention, as in LFM2. It is as wide as the model, and stays.
    `linear`: it has a gated DeltaNet there, as in Qwen3.5: `heads` are its value heads, `kv_heads` its key heads.
    `mamba`: it has a Mamba-2 block and nothing else, as in Nemotron-H, and stays. The other layers of such a model have
    either attention or an FFN.
    `head_dim`: its heads have a size of their own, as in Gemma 4; 0: the model's.
    `kv`: "lent" where later layers read its keys and values, "borrowed" where it reads those of an earlier layer and
    has none itself. All of these have the same KV heads, which stay.
    """

    heads: int
    kv_heads: int
    ffn: int
    conv: bool = False
    linear: bool = False
    mamba: bool = False
    head_dim: int = 0
    kv: KV = ""

    def __repr__(self) -> str:
        beside = {name: getattr(self, name) for name in ("conv", "linear", "mamba", "head_dim", "kv")}
        kind = "".join(f", {name}={value!r}" for name, value in beside.items() if value)
        return f"LayerShape(heads={self.heads}, kv_heads={self.kv_heads}, ffn={self.ffn}{kind})"

    @property
    def attends(self) -> bool:
        """Whether it has attention, with keys and values of every token."""
        return bool(self.heads) and not self.linear

    @property
    def caches(self) -> bool:
        """Whether it has attention with keys and values of its own."""
        return self.attends and self.kv != "borrowed"

    @property
    def gone(self) -> bool:
        """Whether nothing is left: no attention, no FFN, and no convolution or Mamba-2 block."""
        return not (self.heads or self.ffn or self.conv or self.mamba)


def alike(shapes: Iterable[LayerShape]) -> bool:
    """Whether all layers have the same FFN width, and all with attention the same heads, and all with a DeltaNet.

    Beside Mamba-2 blocks, all layers with attention have the same heads, and all with an FFN the same width.
    Layers whose heads have another size, or that lend or borrow keys and values, are a kind of their own.

    >>> whole = LayerShape(8, 4, 96)
    >>> alike([whole, LayerShape(0, 0, 96, conv=True)]), alike([whole, LayerShape(0, 0, 96)])
    (True, False)
    """
    found = list(shapes)
    if any(shape.mamba for shape in found):
        pairs = {(shape.heads, shape.kv_heads) for shape in found if shape.heads}
        return len(pairs) <= 1 and len({shape.ffn for shape in found if shape.ffn}) <= 1
    heads = {
        ((shape.linear, shape.head_dim, shape.kv), shape.heads, shape.kv_heads) for shape in found if not shape.conv
    }
    ffns = {(shape.kv == "borrowed", shape.ffn) for shape in found}
    return all(len({kind for kind, *_ in widths}) == len(widths) for widths in (heads, ffns))


def shape_widths(shape: LayerShape) -> dict[str, int]:
    """A layer's widths by kind of structure: KV groups, query slots (query heads a KV group), FFN channels.

    Of a DeltaNet "attention" counts key heads, and "slots" value heads a key head.

    >>> shape_widths(LayerShape(heads=8, kv_heads=4, ffn=96))
    {'attention': 4, 'slots': 2, 'ffn': 96}
    """
    slots = shape.heads // shape.kv_heads if shape.kv_heads else 0
    return {"attention": shape.kv_heads, "slots": slots, "ffn": shape.ffn}


class PlanLayer(Part):
    """Widths of one layer."""

    model_config = ConfigDict(extra="forbid")

    layer: int = Field(description="place of the layer, from 0")
    heads: tuple[int, int] = Field(description="query heads, [before, after]; 0: attention is gone")
    kv_heads: tuple[int, int] = Field(description="kv heads, [before, after]; 0: attention is gone")
    ffn: tuple[int, int] = Field(description="FFN width, [before, after]; 0: the FFN is gone")
    conv: bool = Field(default=False, description="a short convolution is in the place of attention, and stays")
    linear: bool = Field(
        default=False,
        description="a gated DeltaNet is in the place of attention; `heads`: its value heads, `kv_heads`: key heads",
    )
    mamba: bool = Field(default=False, description="the layer is a Mamba-2 block, and stays")
    head_dim: int = Field(default=0, description="size of the heads where it is not the model's, else 0")
    kv: KV = Field(
        default="",
        description="whose keys and values it reads, where KV heads stay: `lent`, its own, as later layers do; "
        "`borrowed`, those of an earlier layer",
    )

    @property
    def before(self) -> LayerShape:
        """Widths before pruning."""
        return self._shape(0)

    @property
    def after(self) -> LayerShape:
        """Widths after pruning."""
        return self._shape(1)

    def _shape(self, at: int) -> LayerShape:
        widths = self.heads[at], self.kv_heads[at], self.ffn[at]
        return LayerShape(*widths, self.conv, self.linear, self.mamba, self.head_dim, self.kv)


class Candidate(Part):
    """One plan that was built, repaired and judged on held-out text."""

    model_config = ConfigDict(extra="forbid")

    method: str = Field(description="how it was made")
    achieved_ratio: float = Field(description="share of the dense cost that it saves, 0 to 1")
    heldout_perplexity: Real = Field(description="perplexity on held-out text, no unit; null: not finite")
    heldout_windows: int | None = Field(
        default=None, description="windows of it: plans that lost at a first look were judged on few; null: all"
    )
    uniform: bool = Field(description="all layers have the same widths")
    chosen: bool = Field(description="it is the plan that was kept")


class Plan(Document):
    """A pruning plan: the file plan.json, which people may edit.

    `order` names the values by which structures leave inside a layer, so that an edited width needs no list of
    structures.
    """

    model_config = ConfigDict(extra="forbid")

    VERSION = 2
    REMEDY = "plan again with this version"

    version: Literal[2] = Field(default=2, description="version of this format")
    method: str = Field(description="how it was made")
    order: str = Field(description="values by which structures leave inside a layer")
    unit: Unit = Field(default="parameters", description="what `ratio` is a share of: parameters, bytes or latency")
    ratio: float = Field(description="share of the dense cost to save, in `unit`, 0 to 1")
    achieved_ratio: float = Field(description="share of the dense cost that it saves, in `unit`, 0 to 1")
    parameters: tuple[int, int] = Field(description="attention and FFN weights, [before, after]")
    candidates: list[Candidate] = Field(default_factory=list, description="plans that competed")
    layers: list[PlanLayer] = Field(description="widths of every layer, in order")

    @classmethod
    def version_of(cls, document: Mapping[str, Any]) -> Any:
        """A plan that states no version, as people write it, is of the current one."""
        return document.get("version", cls.VERSION)

    @property
    def shapes(self) -> list[LayerShape]:
        """Widths of every layer after pruning."""
        return [layer.after for layer in self.layers]

    @property
    def widths(self) -> Widths:
        """Structures that stay, `[layer][kind]`."""
        return [shape_widths(shape) for shape in self.shapes]

    @property
    def uniform(self) -> bool:
        """Whether all layers have the same widths after pruning."""
        return alike(self.shapes)


def load_plan(path: Path) -> Plan:
    """Read plan.json, or the one in a folder. Raises SaapError that names the wrong field, or the version."""
    path = path / "plan.json" if path.is_dir() else path
    try:
        return Plan.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SaapError(f"cannot read the plan '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise SaapError(f"{path}: not a text file") from None
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("version",):
            check_version(Plan, first["input"], f"'{path}'")
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise SaapError(f"{path}: {field}: {first['msg']}") from None


def save_plan(plan: Plan, path: Path) -> None:
    """Write plan.json, one line a layer."""
    document = plan.model_dump(mode="json")
    usual = {name: field.default for name, field in PlanLayer.model_fields.items()}
    said = [{name: value for name, value in layer.items() if value != usual[name]} for layer in document.pop("layers")]
    layers = ",\n  ".join(json.dumps(layer) for layer in said)
    head = json.dumps(document, indent=1)[:-2]
    path.write_text(f'{head},\n "layers": [\n  {layers}\n ]\n}}\n', encoding="utf-8")
