"""Faults of checkpoints, by name: each damages a valid folder and says which words a refusal may name it by.

A fault that `HARMLESS` lists touches nothing that answers: the folder may go on giving the answers it gave.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.model.damage_weights import DEEP, WEIGHT_FAULTS, Fault, edit_config, in_words, instead
from tests.model.odd_fields import ELSE, FLAGS, NUMBERS, ODD_IDS, ROPES, VALUES

__all__ = ["FAULTS", "HARMLESS", "damage"]


def damage(number: int, folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Damage a folder once, or now and then twice. Returns the faults and the words that a refusal may name them by."""
    dice = random.Random(number)
    done = [_ORDER[number % len(_ORDER)]]
    words = FAULTS[done[0]](dice, folder)
    if dice.random() < 0.25:
        second = dice.choice(_ORDER)
        try:
            words += FAULTS[second](dice, folder)
            done.append(second)
        except Exception:  # the first left nothing that could be damaged so
            done.append(f"{second} (could not be)")
    return done, words


# config.json and what else lies beside the weights.


def _field(names: tuple[str, ...], values: tuple[Any, ...], *more: str) -> Fault:
    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        name = dice.choice(names)
        edit_config(folder, **{name: dice.choice(values)})
        return (name, "config.json", *more)

    return fault


def _known_as(name: str) -> tuple[str, ...]:
    """Other words for a field."""
    if name in ("max_position_embeddings", "sliding_window"):
        return ("context",)
    return ("rope", "rotary") if "rope" in name or "rotary" in name else ()


def _said(table: tuple[tuple[str, Any], ...]) -> Fault:
    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        name, value = dice.choice(table)
        edit_config(folder, **{name: value})
        return (name, "config.json", str(value), "model family")

    return fault


def _without(dice: random.Random, folder: Path) -> tuple[str, ...]:
    name = dice.choice(sorted(json.loads((folder / "config.json").read_text())))
    edit_config(folder, **{name: ...})
    return (name, "config.json")


def _words(file: str, make: Callable[[str], bytes]) -> Fault:
    """A text file in other bytes."""

    def fault(dice: random.Random, folder: Path) -> tuple[str, ...]:
        path = folder / file
        path.write_bytes(make(path.read_text(encoding="utf-8") if path.is_file() else "{}"))
        return (file, "tokenizer") if file.startswith("tokenizer") else (file,)

    return fault


def _generation(dice: random.Random, folder: Path) -> tuple[str, ...]:
    name = dice.choice(["bos_token_id", "eos_token_id", "pad_token_id"])
    (folder / "generation_config.json").write_text(json.dumps({name: dice.choice(ODD_IDS)}))
    return (name, "generation_config.json")


def _ids(dice: random.Random, folder: Path) -> tuple[str, ...]:
    name = dice.choice(["bos_token_id", "eos_token_id", "pad_token_id"])
    edit_config(folder, **{name: dice.choice(ODD_IDS if name == "eos_token_id" else ODD_IDS[:3])})
    return (name, "config.json")


def _other_vocabulary(dice: random.Random, folder: Path) -> tuple[str, ...]:
    """A tokenizer whose ids the embedding does not have: every token the other way round, from far above."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["vocab"] = {token: index + 300 for token, index in document["model"]["vocab"].items()}
    path.write_text(json.dumps(document), encoding="utf-8")
    return ("tokenizer", "vocabulary")


def _adapter_beside(dice: random.Random, folder: Path) -> tuple[str, ...]:
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "nowhere"}))
    return ("adapter",)


_LONG = b'{"vocab_size": ' + b"9" * 5000 + b"}"
_TEXTS: dict[str, Callable[[str], bytes]] = {
    "cut short": lambda text: text.encode()[: len(text) // 2],
    "empty": lambda text: b"",
    "UTF-16": lambda text: text.encode("utf-16"),
    "Latin-1": lambda text: b'{"x": "\xe9"}',
    "with a BOM": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "a list": lambda text: b"[1]",
    "null": lambda text: b"null",
    "too deep": lambda text: DEEP,
    "a number too long": lambda text: _LONG,
}

FAULTS: dict[str, Fault] = WEIGHT_FAULTS | {
    "config.json gone": instead(lambda path: None, "config.json"),
    "config.json a folder": instead(Path.mkdir, "config.json"),
    **{f"config.json {how}": _words("config.json", make) for how, make in _TEXTS.items()},
    **{f"generation_config.json {how}": _words("generation_config.json", make) for how, make in _TEXTS.items()},
    **{f"tokenizer.json {how}": _words("tokenizer.json", make) for how, make in _TEXTS.items()},
    **{f"tokenizer_config.json {how}": _words("tokenizer_config.json", make) for how, make in _TEXTS.items()},
    "tokenizer.json gone": in_words("tokenizer", instead(lambda path: None, "tokenizer.json")),
    "tokenizer.json a folder": in_words("tokenizer", instead(Path.mkdir, "tokenizer.json")),
    "another vocabulary": _other_vocabulary,
    **{f"field {n}, {name}": _field((name,), VALUES, *_known_as(name)) for name in NUMBERS for n in range(3)},
    **{f"flag {name}": _field((name,), (True, False, None, "true", 1, 0, []), "bias") for name in FLAGS},
    **{f"rope {n}": _field(("rope_scaling", "rope_parameters"), ROPES, "rope", "rotary") for n in range(30)},
    **{f"said {n}": _said(ELSE) for n in range(40)},
    **{f"a field gone {n}": _without for n in range(8)},
    "ids of the config": _ids,
    "ids of generation": _generation,
    "an adapter beside": _adapter_beside,
}  # fmt: skip
HARMLESS = frozenset({"ids of the config", "ids of generation", "an adapter beside"}) | {
    name
    for name in FAULTS
    if name.startswith(("tokenizer", "another vocabulary", "generation_config")) or name.endswith("_token_id")
}  # fmt: skip
# Those of weights first: whoever runs few, runs these.
_OTHERS = sorted(FAULTS.keys() - WEIGHT_FAULTS.keys())
_ORDER = [*WEIGHT_FAULTS, *random.Random(0).sample(_OTHERS, len(_OTHERS))]
