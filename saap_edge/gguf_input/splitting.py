"""llama.cpp's named splitting rules of byte-level BPE, as steps of tokenizer.json."""

from __future__ import annotations

from typing import Any

from saap_edge.errors import SaapError
from saap_edge.exporting.tokenizer_rules import DIGIT, GPT2, SPLITTING_RULES

__all__ = ["ADDS_BOS", "pre_tokenizer"]

# Other names that llama.cpp has for the same rule (llama-vocab.cpp).
_SAME = {
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "smaug-bpe": ("dbrx", "glm4", "chatglm-bpe"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2", "solar-open", "kormo"),
    "deepseek-v3": ("hunyuan-dense",),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    "qwen35": (), "seed-coder": (), "minicpm5": (),
    "gpt-2": ("phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat", "mellum"),
}  # fmt: skip
_NAMES = {other: name for name, others in _SAME.items() for other in (name, *others)}
ADDS_BOS = ("llama-bpe", *_SAME["llama-bpe"])  # rules with which llama.cpp adds BOS, unless the file says otherwise


def pre_tokenizer(name: str, where: str) -> tuple[dict[str, Any], bool]:
    """The pre_tokenizer of a rule, and whether a word that is a token is taken whole.

    Raises SaapError, which mentions the file `where`, for a name that is not known here.

    >>> pre_tokenizer("gpt-2", "model.gguf")
    ({'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}, False)
    """
    if name not in _NAMES:
        known = ", ".join(sorted(_NAMES))
        raise SaapError(
            f"'{where}': splitting rule '{name}' (tokenizer.ggml.pre) is not supported (supported: {known})"
        )
    steps, whole = next(key for key, rule in SPLITTING_RULES.items() if rule == _NAMES[name])
    made = [_step(step) for step in steps]
    if steps[-1] != GPT2:  # ByteLevel is always needed, to turn bytes into letters, but splits only for GPT2
        made.append(_byte_level(False))
    return made[0] if len(made) == 1 else {"type": "Sequence", "pretokenizers": made}, whole


def _byte_level(splits: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splits}


def _step(step: str) -> dict[str, Any]:
    """The step of tokenizer.json with this regular expression: the inverse of tokenizer_rules.py."""
    if step == GPT2:
        return _byte_level(True)
    if step == DIGIT:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}
