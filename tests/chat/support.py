"""A model that answers with the same words, or with the call of a tool, and files of instructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.exporting.chat_support import SPECIAL, TEMPLATE, chat_tokenizer, speaking

ID = {name: index for index, name in enumerate(SPECIAL)}
WORDS = [300, 310]
SPOKEN = chat_tokenizer().decode(WORDS)
CALL = '{"name":"g","arguments":{"a":1}}'  # llama-cpp-python writes no token of more than 32 bytes
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "g",
            "description": "Go.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
        },
    }
]
TAKES_TOOLS = TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|x|>' if tools else '<|assistant|>' }}")


def speaker(
    folder: Path, loops: bool = False, tools: bool = False, template: str | None = TEMPLATE,
    generation: dict | None = None,
) -> Path:  # fmt: skip
    """A model with room for 1024 tokens. It answers WORDS and ends, or says them for ever (`loops`); given tools, CALL.

    CALL is a token of its own, because every token of such a model has one that follows it.
    """
    tokenizer = chat_tokenizer()
    end = ID["</turn>"]
    chain = [ID["<|assistant|>"], *WORDS, WORDS[0] if loops else end]
    if tools:
        tokenizer.add_tokens([CALL])
        chain = [ID["<|x|>"], tokenizer.token_to_id(CALL), end, *chain]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</turn>",
        "chat_template": TAKES_TOOLS if tools else template,
    }  # fmt: skip
    return speaking(
        folder, tokenizer, chain, config, {"eos_token_id": end} | (generation or {}), max_position_embeddings=1024
    )


def instruction(name: str, *checks: dict, prompt: str = "The quick brown fox", **more: Any) -> dict[str, Any]:
    return {"id": name, "prompt": prompt, "checks": list(checks), **more}


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path
