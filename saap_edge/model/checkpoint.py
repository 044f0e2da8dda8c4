"""Opening a model folder: one strict step that every part of the program uses.

config.json is read once and compared with the files. A folder whose parts do not agree is refused before any work.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from saap_edge.errors import SaapError
from saap_edge.families import Config, Family, Source
from saap_edge.model.classes import check_class, parsed_config
from saap_edge.model.config import read_config, read_object, without_odd_ids
from saap_edge.model.inventory import EMBEDDING, HEAD, canonical_names, check_inventory, text_names
from saap_edge.model.spec import PRUNED_TYPE, ModelSpec, canonical_config, config_family, spec_from_config
from saap_edge.model.stored import SINGLE_FILE, Stored, stored_in

__all__ = ["Checkpoint", "open_checkpoint", "read_spec", "row_ranges"]

PIECE = 1 << 24  # numbers of a tensor that are read at a time
# JSON objects that are read later, also by libraries whose errors do not say what is wrong with the file.
_BESIDE = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
# Fields on how a call is made and what it returns. They are no part of the model, and would change our own calls.
_OF_A_CALL = (
    "return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "torchscript", "attn_implementation",
    "_attn_implementation", "_attn_implementation_internal",
)  # fmt: skip
# If absent, transformers assumes values that fit one model of the family; the tensors show whether it is this one.
_ASSUMED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose config and tensors agree.

    Attributes:
        folder: where it is.
        config: config.json, corrected where the tensors say otherwise (about a separate output head, say).
        spec: the shape of its canonical form.
        warnings: a line about each correction.
        stored: the tensors.
        names: name in transformers' class -> stored name.
    """

    folder: Path
    config: Config
    spec: ModelSpec
    warnings: tuple[str, ...]
    stored: Stored
    names: Mapping[str, str]

    @property
    def canonical(self) -> Config:
        """The config of the canonical form (`Family.canonical`)."""
        return canonical_config(self.config)

    def source(self, name: str) -> Source:
        """Where a tensor of the canonical form comes from."""
        return source_of(self.config, name)

    def __contains__(self, name: str) -> bool:
        return self.source(name).name in self.names

    def shape(self, source: Source) -> tuple[int, ...]:
        """Shape of the stored tensor. Raises SaapError when it is missing."""
        if source.name not in self.names:
            raise SaapError(f"tensor '{source.name}' is missing from '{self.folder}'")
        return self.stored.entries[self.names[source.name]].shape

    def read(self, source: Source, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the stored tensor, in its stored type."""
        return self.stored.read(self.names[source.name], start, stop)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a Hugging Face folder, dense or pruned, or one that a GGUF file was unpacked into.

    Raises SaapError, in one line, when config.json is missing or has impossible values, when the family or a feature is
    not supported, and when the tensors are not those that it describes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SaapError(f"no model folder '{folder}': give a Hugging Face folder with config.json and safetensors")
    opened = _opened(folder, _identity(folder))
    return replace(opened, config=deepcopy(opened.config))  # the opened one is cached, and callers may change theirs


def read_spec(folder: str | Path) -> ModelSpec:
    """The shape of a model folder. Raises SaapError as `open_checkpoint`."""
    return open_checkpoint(folder).spec


def _identity(folder: Path) -> tuple[tuple[str | int, ...], ...]:
    """A value that changes whenever one of the folder's files does."""
    read = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.gguf")])
    states = [(path.name, path.stat()) for path in read if path.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for name, state in states)


@lru_cache(maxsize=8)
def _opened(folder: Path, identity: tuple[tuple[str | int, ...], ...]) -> Checkpoint:
    config, absent, warnings = _said(folder)
    for beside in _BESIDE:
        read_object(folder / beside, optional=True)
    family, _ = config_family(config)
    stored = stored_in(folder)
    whole = read_object(folder / "config.json").get("model_type") == family.whole
    pairs, left_out = text_names(stored.entries, family, whole)
    within = dict(pairs)
    names = {name: within[kept] for name, kept in canonical_names(within).items()}
    if len(names) < len(pairs):
        raise SaapError(f"{folder}: some tensors are stored twice, with and without 'model.' before their names")
    config, names, told = _head(config, family, stored, names)
    spec = spec_from_config(config)
    entries = {name: stored.entries[kept] for name, kept in names.items()}
    method = _quantised_by(config)
    check_inventory(str(folder), spec, partial(source_of, config), entries, method, absent)
    _check_class(folder, {name: value for name, value in config.items() if name != "quantization_config"})
    told += [*left_out, *_ignored(folder, config)]
    if method is not None:  # the weights are plain: the entry was left behind
        config = {name: value for name, value in config.items() if name != "quantization_config"}
        told.append(f"config.json has a quantization_config ({method}), and the weights are plain: it is ignored")
    return Checkpoint(folder, config, spec, (*warnings, *told), stored, names)


def _check_class(folder: Path, config: Config) -> None:
    """Raise SaapError when transformers cannot make its class of the config, or of its canonical form."""
    try:
        check_class(config)
        if (canonical := canonical_config(config)) != config:
            check_class(canonical)
    except Exception as error:  # of any kind: it computes with what config.json says
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise SaapError(f"{folder / 'config.json'}: transformers cannot make the model ({reason})") from None


def _ignored(folder: Path, config: Config) -> list[str]:
    """A line about each file that is not read. Raises SaapError when transformers would read other weights."""
    other = config.get("transformers_weights")
    if other is not None:
        raise SaapError(f"{folder / 'config.json'}: transformers_weights names {other!r}: only {SINGLE_FILE} is read")
    adapters = sorted(folder.glob("adapter_*"))[:1]
    return [f"'{path}' is an adapter beside a whole model: it is ignored, merged or not" for path in adapters]


def source_of(config: Config, name: str) -> Source:
    """Where a tensor of the canonical form comes from, under the name that transformers' class has for it."""
    family, full = config_family(config)
    ours = config.get("model_type") == PRUNED_TYPE
    return family.source(full, name) if family.source and not ours else Source(name)


def _quantised_by(config: Config) -> str | None:
    said = config.get("quantization_config")
    return str(said.get("quant_method") or "an unnamed method") if said else None


def _said(folder: Path) -> tuple[Config, list[str], list[str]]:
    """config.json with fields that it lacks and without impossible ids; the names of these fields; warnings."""
    config = {name: value for name, value in read_config(folder).items() if name not in _OF_A_CALL}
    absent = [name for name in _ASSUMED if name not in config]
    try:
        config_family(config)  # a family that is not known says so before anything else
        assumed = parsed_config({"model_type": config["model_type"]}).to_dict() if absent else {}
        config, warnings = without_odd_ids(config | {name: assumed[name] for name in absent})
        parsed_config(config)
        spec_from_config(config)
    except SaapError as error:
        raise SaapError(f"'{folder}': {error}") from None
    except Exception as error:  # transformers' validation has many kinds of them
        reason = " ".join(str(error).split())[:300]
        raise SaapError(f"{folder / 'config.json'}: transformers refuses it: {reason}") from None
    assumptions = [f"config.json lacks {name}: {config[name]}, as transformers assumes" for name in absent]
    return config, absent, [*assumptions, *warnings]


def _head(
    config: Config, family: Family, stored: Stored, names: dict[str, str]
) -> tuple[Config, dict[str, str], list[str]]:
    """Config, names and warnings with the output head as transformers handles it.

    A stored head that differs from the embedding counts, whatever config.json says. A tied matrix may be stored under
    either name.
    """
    tied = (family.defaults | config).get("tie_word_embeddings", False)
    if not tied or HEAD not in names:
        return config, names, []
    if EMBEDDING not in names:
        return config, {EMBEDDING if name == HEAD else name: kept for name, kept in names.items()}, []
    if _equal(stored, names[EMBEDDING], names[HEAD]):
        return config, {name: kept for name, kept in names.items() if name != HEAD}, []
    told = "config.json says that the head is the embedding, and a head of its own is stored: that one is taken"
    return config | {"tie_word_embeddings": False}, names, [told]


def _equal(stored: Stored, first: str, second: str) -> bool:
    entries = stored.entries[first], stored.entries[second]
    return entries[0].shape == entries[1].shape and all(
        torch.equal(stored.read(first, *rows), stored.read(second, *rows)) for rows in row_ranges(entries[0].shape)
    )


def row_ranges(shape: tuple[int, ...], together: int = 1) -> list[tuple[int, int]]:
    """Rows [start, stop) of the pieces in which a tensor is read: at most PIECE numbers, multiples of `together` rows.

    >>> row_ranges((50_000, 1024))
    [(0, 16384), (16384, 32768), (32768, 49152), (49152, 50000)]
    """
    numbers = max(1, int(torch.Size(shape[1:]).numel()))
    step = max(1, PIECE // numbers // together) * together
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
