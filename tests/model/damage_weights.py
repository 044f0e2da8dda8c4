"""Faults of weights: of single tensors, of the bytes of a file, of an index and its shards."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from saap_edge.model.stored import INDEX_FILE, SINGLE_FILE

__all__ = ["DEEP", "WEIGHT_FAULTS", "Fault", "edit_config", "in_words", "instead"]

# Damages a folder, and says by which words a refusal may name what is wrong.
Fault = Callable[[random.Random, Path], tuple[str, ...]]
Tensors = dict[str, torch.Tensor]
HEAD = "lm_head.weight"
DEEP = b"[" * 100_000  # JSON of more levels than a parser goes down


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}), encoding="utf-8")


# Tensors. The file that holds one is read, changed and written again.


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def _all(folder: Path) -> Tensors:
    return {name: tensor for file in _weights(folder) for name, tensor in load_file(file).items()}


def _file_with(folder: Path, name: str) -> AbstractContextManager[Tensors]:
    """The tensors of the file that holds `name`, to be changed."""
    return _rewritten(folder, next(path for path in _weights(folder) if name in load_file(path)))


@contextmanager
def _rewritten(folder: Path, file: Path) -> Iterator[Tensors]:
    """The tensors of a file, to be changed; its index follows what becomes of them."""
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    yield tensors
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, {"format": "pt"})
    index = folder / INDEX_FILE
    if index.is_file():
        places = json.loads(index.read_text())["weight_map"]
        places = {key: place for key, place in places.items() if place != file.name} | dict.fromkeys(tensors, file.name)
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _pick(dice: random.Random, folder: Path, part: str = "") -> tuple[str, torch.Tensor]:
    """A stored tensor whose name has `part` in it."""
    found = _all(folder)
    name = dice.choice(sorted(name for name in found if part in name and "inv_freq" not in name))
    return name, found[name]


def _changed(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        name, _ = _pick(dice, folder, part)
        with _file_with(folder, name) as tensors:
            tensors[name] = change(tensors[name])
        # A head that alone is stored is the embedding.
        return (name.removeprefix("model."), *(("embed_tokens",) if name.endswith(HEAD) else ()))

    return fault


def _one(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[tensor.numel() // 3] = value
        return tensor

    return change


def _gone(dice: random.Random, folder: Path) -> tuple[str, ...]:
    name, _ = _pick(dice, folder)
    with _file_with(folder, name) as tensors:
        del tensors[name]
    return (name.removeprefix("model."), SINGLE_FILE, INDEX_FILE)


def _renamed(rename: Callable[[str], str]) -> Fault:
    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        name, _ = _pick(dice, folder, "proj")
        with _file_with(folder, name) as tensors:
            tensors[rename(name)] = tensors.pop(name)
        return (name.removeprefix("model."), rename(name).removeprefix("model."))

    return fault


def _all_renamed(rename: Callable[[str], str]) -> Fault:
    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        for file in _weights(folder):
            with _rewritten(folder, file) as tensors:
                for name in list(tensors):
                    tensors[rename(name)] = tensors.pop(name)
        return ("tensor '",)

    return fault


def _beside(part: str, name_of: Callable[[str], str], make: Callable[[torch.Tensor], torch.Tensor]) -> Fault:
    """One more tensor beside one that is there."""

    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        name, tensor = _pick(dice, folder, part)
        with _file_with(folder, name) as tensors:
            tensors[name_of(name)] = make(tensor).clone()
        return (name_of(name).removeprefix("model."), name.removeprefix("model."), "stored twice")

    return fault


def _score_head(dice: random.Random, folder: Path) -> tuple[str, ...]:
    """A classifier: its own head in place of the model's."""
    name, _ = _pick(dice, folder, "layers.1.mlp" if _has(folder, "layers.1.mlp") else "")
    if _has(folder, HEAD):
        with _file_with(folder, HEAD) as tensors:
            del tensors[HEAD]
    with _file_with(folder, name) as tensors:
        tensors["score.weight"] = torch.randn(2, 32)
    edit_config(folder, architectures=["LlamaForSequenceClassification"], num_labels=2)
    return ("score.weight", HEAD, "embed_tokens")


def _has(folder: Path, part: str) -> bool:
    return any(part in name for name in _all(folder))


def _another_layer(dice: random.Random, folder: Path) -> tuple[str, ...]:
    """A whole layer more than config.json says."""
    found = {name: tensor for name, tensor in _all(folder).items() if "layers.1." in name}
    with _file_with(folder, next(iter(found))) as tensors:
        tensors |= {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in found.items()}
    return ("layer 2", "layers.2.")


def _head_type(dice: random.Random, folder: Path) -> tuple[str, ...]:
    """A head that is the embedding in other numbers: rounded on its way."""
    name, tensor = _pick(dice, folder, "embed_tokens" if _has(folder, "embed_tokens") else HEAD)
    with _file_with(folder, name) as tensors:
        tensors[HEAD] = (tensor.float() + 1e-3).to(torch.bfloat16)
    return (HEAD, name)


# Bytes of a file.


def _bytes(change: Callable[[random.Random, bytes], bytes]) -> Fault:
    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        file = dice.choice(_weights(folder))
        file.write_bytes(change(dice, file.read_bytes()))
        return (file.name,)

    return fault


def _flipped(dice: random.Random, content: bytes) -> bytes:
    place = dice.randrange(9, 80)
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def _header(change: Callable[[random.Random, dict[str, Any]], Any]) -> Fault:
    """Another header over the same data."""

    def rewrite(dice: random.Random, content: bytes) -> bytes:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        changed = change(dice, header)
        words = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return len(words).to_bytes(8, "little") + words + content[8 + size :]

    return _bytes(rewrite)


def _of_one(change: Callable[[dict[str, Any]], None]) -> Callable[[random.Random, dict[str, Any]], dict[str, Any]]:
    def changed(dice: random.Random, header: dict[str, Any]) -> dict[str, Any]:
        change(header[dice.choice(sorted(name for name in header if name != "__metadata__"))])
        return header

    return changed


def _overlap(dice: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    names = sorted(name for name in header if name != "__metadata__")
    first, second = dice.sample(names, 2) if len(names) > 1 else (names[0], names[0])
    header[first]["data_offsets"] = header[second]["data_offsets"]
    header[first]["shape"], header[first]["dtype"] = header[second]["shape"], header[second]["dtype"]
    return header


def _twice_in_header(dice: random.Random, header: dict[str, Any]) -> bytes:
    name = dice.choice(sorted(name for name in header if name != "__metadata__"))
    other = dict(header[name]) | {"shape": [1, *header[name]["shape"]]}
    return (json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(other)}}}").encode()


def instead(make: Callable[[Path], None], which: str = "weights") -> Fault:
    """Something else in a file's place."""

    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        file = dice.choice(_weights(folder)) if which == "weights" else folder / which
        file.unlink(missing_ok=True)
        make(file)
        return (file.name, SINGLE_FILE, INDEX_FILE)

    return fault


def _pointer(path: Path) -> None:
    """What git leaves where its large files were not fetched."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n")


# Index and shards.


def _sharded(change: Callable[[random.Random, Path, dict[str, str]], Any]) -> Fault:
    """A fault of the index of two shards; `change` may give another document in its place."""

    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        tensors = _all(folder)
        for file in [*_weights(folder), folder / INDEX_FILE]:
            file.unlink(missing_ok=True)
        files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        places = {name: files[index % 2] for index, name in enumerate(sorted(tensors))}
        for file_name in files:
            part = {name: tensors[name] for name in places if places[name] == file_name}
            save_file(part, folder / file_name, {"format": "pt"})
        document = change(dice, folder, places)
        content = {"metadata": {}, "weight_map": places} if document is None else document
        words = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / INDEX_FILE).write_bytes(words)
        return (INDEX_FILE, SINGLE_FILE, *files, "stored twice")

    return fault


def _set_one(value: Any) -> Callable[[random.Random, Path, dict[str, Any]], None]:
    def change(dice: random.Random, folder: Path, places: dict[str, Any]) -> None:
        places[dice.choice(sorted(places))] = value

    return change


def _move_one(dice: random.Random, folder: Path, places: dict[str, str]) -> None:
    name = dice.choice(sorted(places))
    places[name] = next(file for file in sorted(set(places.values())) if file != places[name])


def _stray_single(dice: random.Random, folder: Path, places: dict[str, str]) -> None:
    other = {name: tensor.float() * 1.1 for name, tensor in _all(folder).items()}
    save_file(other, folder / SINGLE_FILE, {"format": "pt"})


def _unknown(dice: random.Random, folder: Path, places: dict[str, str]) -> None:
    del places[dice.choice(sorted(places))]


def _none_there(dice: random.Random, folder: Path, places: dict[str, str]) -> None:
    places["model.layers.7.mlp.up_proj.weight"] = sorted(places.values())[0]


def _exchanged(dice: random.Random, folder: Path, places: dict[str, str]) -> None:
    first, second = _weights(folder)
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def _in_both(dice: random.Random, folder: Path, places: dict[str, str]) -> None:
    first, second = _weights(folder)
    one, other = load_file(first), load_file(second)
    name = dice.choice(sorted(one))
    save_file(other | {name: one[name] * 2}, second, {"format": "pt"})
    places[name] = dice.choice([first.name, second.name])


def in_words(word: str, fault: Fault) -> Fault:
    """A fault that a refusal may name by another word too."""
    return lambda dice, folder: (*fault(dice, folder), word)


WEIGHT_FAULTS: dict[str, Fault] = {
    "gone": _gone,
    "transposed": _changed("mlp", lambda t: t.t() if t.ndim == 2 else t[:-1]),
    "a row short": _changed("", lambda t: t[:-1]),
    "a row more": _changed("", lambda t: torch.cat([t, t[:1]])),
    "a column more": _changed("proj", lambda t: torch.cat([t, t[..., :1]], -1)),
    "flattened": _changed("weight", lambda t: t.flatten() if t.ndim == 2 else t[None]),
    "no rows": _changed("", lambda t: t[:0]),
    "a scalar": _changed("", lambda t: t.flatten()[0]),
    "int8": _changed("", lambda t: (t.float() * 100).to(torch.int8)),
    "uint8": _changed("proj", lambda t: (t.float().abs() * 100).to(torch.uint8)),
    "bool": _changed("", lambda t: t > 0),
    "int64": _changed("norm", lambda t: t.to(torch.int64)),
    "fp8": _changed("proj", lambda t: t.float().to(torch.float8_e4m3fn)),
    "complex": _changed("proj", lambda t: t.float().to(torch.complex64)),
    "NaN": _changed("", _one(float("nan"))),
    "inf": _changed("", _one(float("inf"))),
    "-inf": _changed("", _one(float("-inf"))),
    "beyond float32": _changed("", lambda t: _one(1e300)(t.double())),
    "renamed": _renamed(lambda name: name.replace("_proj", "_projection")),
    "capital letters": _renamed(str.upper),
    "without its prefix": _renamed(lambda name: name.removeprefix("model.")),
    "prefixed": _renamed(lambda name: f"model.{name}"),
    "a gap": _all_renamed(lambda name: name.replace("layers.1.", "layers.2.")),
    "from layer 1": _all_renamed(lambda name: name.replace("layers.1.", "layers.2.").replace("layers.0.", "layers.1.")),
    "compiled": _all_renamed(lambda name: f"_orig_mod.{name}"),
    "distributed": _all_renamed(lambda name: f"module.{name}"),
    "peft": _all_renamed(lambda name: f"base_model.model.{name}"),
    "multimodal": _all_renamed(lambda name: f"language_model.{name}"),
    "GPT's names": _all_renamed(lambda name: name.replace("layers.", "h.").replace("model.", "transformer.")),
    "twice by prefix": _beside("proj", lambda name: f"model.{name}", lambda t: t * 2),
    "an adapter": _beside("proj", lambda name: name.replace("weight", "lora_A.default.weight"), lambda t: t[:1]),
    "scales": _beside("proj", lambda name: f"{name}_scale", lambda t: t[:1]),
    "bitsandbytes": _beside("proj", lambda name: name.replace("weight", "SCB"), lambda t: t.flatten()[:8]),
    "a bias": _beside("down_proj" , lambda name: name.replace("weight", "biases"), lambda t: t[:1]),
    "a fork's norm": _beside("norm", lambda name: name.replace("norm", "norm_2"), lambda t: t),
    "a stranger": _beside("", lambda name: "model.vision.weight", lambda t: t),
    "another layer": _another_layer,
    "a classifier": _score_head,
    "a head of another type": _head_type,
    "cut in the header": _bytes(lambda dice, b: b[: dice.randrange(1, 8 + int.from_bytes(b[:8], "little"))]),
    "cut in the data": _bytes(lambda dice, b: b[: dice.randrange(8 + int.from_bytes(b[:8], "little"), len(b))]),
    "the last byte lost": _bytes(lambda dice, b: b[:-1]),
    "trailing garbage": _bytes(lambda dice, b: b + b"\0" * dice.choice([1, 4096])),
    "leading garbage": _bytes(lambda dice, b: b"\n" + b),
    "no bytes": _bytes(lambda dice, b: b""),
    "a huge header": _bytes(lambda dice, b: (2**62).to_bytes(8, "little") + b[8:]),
    "a byte of the header": in_words("tensor", _bytes(_flipped)),
    "header cut": _header(lambda dice, h: json.dumps(h).encode()[:-1]),
    "header not a map": _header(lambda dice, h: [1, 2]),
    "header empty": _header(lambda dice, h: {}),
    "overlapping": _header(_overlap),
    "offsets reversed": _header(_of_one(lambda e: e["data_offsets"].reverse())),
    "offsets far off": _header(_of_one(lambda e: e.update(data_offsets=[2**40, 2**40 + 8]))),
    "an unknown type": _header(_of_one(lambda e: e.update(dtype="F7"))),
    "a wider type": _header(_of_one(lambda e: e.update(dtype="F64" if e["dtype"] != "F64" else "F32"))),
    "a negative shape": _header(_of_one(lambda e: e.update(shape=[-n for n in e["shape"]]))),
    "a longer shape": _header(_of_one(lambda e: e.update(shape=[n + 1 for n in e["shape"]]))),
    "no shape": _header(_of_one(lambda e: e.pop("shape"))),
    "twice in the header": in_words("config.json says", _header(_twice_in_header)),
    "a folder": instead(Path.mkdir),
    "a dangling link": instead(lambda path: path.symlink_to("nowhere")),
    "a pointer": instead(_pointer),
    "a web page": instead(lambda path: path.write_text("<!DOCTYPE html><html></html>")),
    "an index that is a folder": instead(Path.mkdir, INDEX_FILE),
    "an absent shard": _sharded(_set_one("model-00003-of-00003.safetensors")),
    "an absent tensor": _sharded(_none_there),
    "another shard": _sharded(_move_one),
    "not in the index": _sharded(_unknown),
    "a stray single file": _sharded(_stray_single),
    "in both shards": _sharded(_in_both),
    "no shard": _sharded(lambda dice, f, p: dice.choice(_weights(f)).unlink()),
    "an empty map": _sharded(lambda dice, f, p: {"weight_map": {}}),
    "no map": _sharded(lambda dice, f, p: {"metadata": {}}),
    "a map that is a list": _sharded(lambda dice, f, p: {"weight_map": [1]}),
    "an index that is a list": _sharded(lambda dice, f, p: [1]),
    "a broken index": _sharded(lambda dice, f, p: b'{"weight_map": {'),
    "a deep index": _sharded(lambda dice, f, p: DEEP),
    "an index in UTF-16": _sharded(lambda dice, f, p: json.dumps({"weight_map": p}).encode("utf-16")),
    "a shard outside": _sharded(_set_one("../model.safetensors")),
    "a shard of no name": _sharded(_set_one("")),
    "a shard that is null": _sharded(_set_one(None)),
    "a shard that is the folder above": _sharded(_set_one("..")),
    "shards that are exchanged": _sharded(_exchanged),
}  # fmt: skip
