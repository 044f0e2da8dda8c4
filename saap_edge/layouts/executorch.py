"""The layout of ExecuTorch, for phones: model.pte, the tokenizer, and a README.txt that says how it is run."""

from __future__ import annotations

import re
from pathlib import Path

from saap_edge.engines.answers import HARD_TEXT
from saap_edge.exporting.executorch import STEPS, write_executorch
from saap_edge.layouts.registry import Given
from saap_edge.model.chat import Chat, read_chat
from saap_edge.model.tensors import Codes
from saap_edge.model.tokenizer import load_tokenizer

__all__ = ["write"]

_TEXTS = (HARD_TEXT, "a  1\n\n 2   34 5,678  ", "na\u00efve caf\u00e9")
README = """\
In C++: llama_main --model_path=model.pte --tokenizer_path=tokenizer.json --prompt="{prompt}"
In Python, with executorch {version} and torch: {python}
{chat}; texts have at most {context} tokens.
"""
PYTHON = (
    "import executorch.extension.llm.custom_ops.custom_ops, executorch.kernels.quantized; "
    "from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner; "
    'TextLLMRunner("model.pte", "tokenizer.json").generate("{prompt}", '
    "GenerationConfig(max_new_tokens=64, temperature=0.0, echo=False))"
)


def write(given: Given, out: Path) -> list[str]:
    """Write model.pte of a Hugging Face folder into the empty folder `out`; returns what the user should read."""
    from importlib.metadata import version

    with given.bar(f"executorch {given.format}", STEPS) as advance:
        made = write_executorch(given.path, out, given.format, advance=advance)
    chat = read_chat(given.model)
    prompt = _bos(given.model, chat) + "Once upon a time"
    text = README.format(
        prompt=prompt, version=version("executorch"), python=PYTHON.format(prompt=prompt), chat=_on_chats(chat),
        context=made["context"],
    )  # fmt: skip
    (out / "README.txt").write_text(text, encoding="utf-8")
    notes = [f"README.txt says how it is run; a text may have {made['context']} tokens"]
    if (given.model / Codes.FILE).is_file() and made["quantised"]:
        notes.append("recovered codes do not fit XNNPACK's blocks: the recovered weights were rounded to nearest")
    return notes + _on_token_ids(given.model)


def _bos(model: Path, chat: Chat) -> str:
    """The name of the BOS where a text begins with it: runners do not add it, but read its name as the token."""
    tokenizer = load_tokenizer(model)
    begins = list(tokenizer("a", verbose=False)["input_ids"])[:1]
    return str(chat.variables["bos_token"]) if begins == [chat.tokens.get("bos")] else ""


def _on_chats(chat: Chat) -> str:
    if not chat.templates:
        return "The model has no chat template: it continues texts"
    return "For a chat, the prompt is what the template of tokenizer_config.json or chat_template.jinja makes of it"


def _on_token_ids(model: Path) -> list[str]:
    """A line if the tokenizer of ExecuTorch's runners gives other ids for hard texts."""
    from pytorch_tokenizers import CppHFTokenizer

    tokenizer, runners = load_tokenizer(model), CppHFTokenizer()
    try:
        runners.load(str(model / "tokenizer.json"))
    except RuntimeError as error:
        reason = re.sub(r"\s+", " ", str(error))[:200]
        return [f"ExecuTorch's own tokenizer does not take this one ({reason}): give the program token ids"]
    for text in _TEXTS:
        mine, others = (list(ids) for ids in (tokenizer(text, add_special_tokens=False)["input_ids"],
                                              runners.encode(text, 0, 0)))  # fmt: skip
        if mine != others:
            at = next((i for i, pair in enumerate(zip(mine, others, strict=False)) if pair[0] != pair[1]), len(mine))
            place = tokenizer.decode(mine[max(0, at - 1) : at + 3])
            return [f"ExecuTorch's own tokenizer gives other token ids than tokenizer.json, at {place!r}"]
    return []
