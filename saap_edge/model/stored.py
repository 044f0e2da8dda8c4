"""The files of a checkpoint: names, shapes and types of tensors, and their rows, read on demand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from saap_edge.errors import SaapError
from saap_edge.gguf_file.tensors import GGUF_FILE, Entry
from saap_edge.model.config import read_object

__all__ = ["INDEX_FILE", "SINGLE_FILE", "SafetensorsFiles", "Stored", "stored_in"]

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


class Stored(Protocol):
    """The tensors of a checkpoint, under the names that they have in the family's class of transformers."""

    entries: Mapping[str, Entry]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor, a copy in its stored type."""
        ...


class SafetensorsFiles:
    """model.safetensors, or the shards that model.safetensors.index.json names.

    Files are opened for every read, because a file that stays mapped keeps in memory all that was read of it. Raises
    SaapError when there are no files, when single file and shards are both there, when a file is damaged, and when
    index and shards disagree.
    """

    def __init__(self, folder: Path) -> None:
        index = _read_index(folder)
        found: dict[str, Entry] = {}
        for file in sorted(set(index.values())) if index else [SINGLE_FILE]:
            for name, entry in _entries(folder / file).items():
                if name in found:
                    raise SaapError(f"{folder}: tensor '{name}' is stored twice, in {found[name].file.name} and {file}")
                if index and index.get(name) != file:
                    said = f"says {index[name]}" if name in index else "does not know it"
                    raise SaapError(f"{folder}: tensor '{name}' is in {file}, and {INDEX_FILE} {said}")
                found[name] = entry
        absent = [name for name in index if name not in found]
        if absent:
            raise SaapError(
                f"{folder}: {INDEX_FILE} says that tensor '{absent[0]}' is in {index[absent[0]]}, and it is not"
            )
        self.entries: Mapping[str, Entry] = found

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of a tensor, a copy in its stored type. Raises SaapError when the file has changed."""
        entry = self.entries[name]
        try:
            with safe_open(str(entry.file), framework="pt") as handle:
                part = handle.get_slice(name)
                same = tuple(part.get_shape()) == entry.shape and _DTYPES.get(part.get_dtype()) == entry.dtype
                rows: torch.Tensor | None = part[start:stop] if same else None
        except (SafetensorError, OSError):
            rows = None
        if rows is None:
            raise SaapError(f"{entry.file} was changed while it was read (tensor '{name}'): start again")
        return rows


def stored_in(folder: Path) -> Stored:
    """The tensors of a model folder: of its GGUF file if it has one, else of its safetensors.

    Raises SaapError as `GgufTensors` or `SafetensorsFiles`.
    """
    if (folder / GGUF_FILE).exists():
        from saap_edge.gguf_file.tensors import GgufTensors

        return GgufTensors(folder)
    return SafetensorsFiles(folder)


def _entries(path: Path) -> dict[str, Entry]:
    try:
        with safe_open(str(path), framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (it cannot be iterated)
            return {
                name: Entry(tuple(part.get_shape()), _DTYPES.get(part.get_dtype()), path)
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise SaapError(f"{path}: damaged or missing safetensors file ({reason})") from None


def _read_index(folder: Path) -> dict[str, str]:
    """File of each tensor; empty where there is no index. Raises SaapError where it is unclear which files count."""
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if not index.is_file():
        if not single.is_file():
            raise SaapError(_nothing_to_read(folder))
        return {}
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(map(_of_this_folder, places.values())):
        raise SaapError(f"{index}: no index of safetensors (a weight_map of tensors and files of this folder)")
    if single.is_file() and set(places.values()) != {SINGLE_FILE}:
        raise SaapError(
            f"'{folder}' holds {SINGLE_FILE} and the shards of {INDEX_FILE}: transformers would read the single file. "
            "Remove what is out of date"
        )
    return dict(places)


def _of_this_folder(file: object) -> bool:
    return isinstance(file, str) and file not in ("", "..") and Path(file).name == file


def _nothing_to_read(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if not others:
        return f"no {SINGLE_FILE} in '{folder}': only safetensors weights are read (no pickles)"
    if any(name.startswith("adapter") for name in others):
        return f"'{folder}' holds an adapter ({others[0]}), no model: merge it into its base model first"
    return (
        f"'{folder}' holds {others[0]}, but neither {SINGLE_FILE} nor {INDEX_FILE}: the index of the shards is missing"
    )
