"""What becomes of a real GGUF file that is given as a model: everything beside llama.cpp on the file itself.

    python benchmarks/gguf_input.py --model SmolLM2-135M-Instruct.Q4_1.gguf --out RESULT.json

The file is unpacked into a fresh cache. Then: ids of texts by transformers from the folder and by llama.cpp from the
file; logits of the folder's model in torch, and of its dense exports in llama.cpp, beside llama.cpp on the file
(relative RMS of centred logits; `predicted` is what llama.cpp's own rounding of activations does to the file's
products, where all projections have one type that is known); the prompt that each makes of a chat, and the ids at which
each ends. Ends with one JSON line; a minute for 135M weights.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from result import publish

from saap_edge.engines.answers import HARD_TEXT, relative_error
from saap_edge.engines.child import VOCABULARY
from saap_edge.engines.llama_cpp import LlamaCppEngine
from saap_edge.engines.worker import Worker
from saap_edge.evaluation.arithmetic import runtime_arithmetic
from saap_edge.evaluation.parity import logits
from saap_edge.exporting.gguf import write_gguf
from saap_edge.exporting.weights import ExportWeights
from saap_edge.gguf_input.folder import source_of, unpack
from saap_edge.model.folder import load_model
from saap_edge.model.tokenizer import load_tokenizer

TEXTS = Path(__file__).parents[1] / "saap_edge" / "reference" / "text"
CHATS = [
    [{"role": "user", "content": "Name three rivers."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi!\n"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]  # fmt: skip
PIECE = 2000  # characters


def texts() -> list[str]:
    """The hard text, and the bundled texts in pieces that end anywhere."""
    found = [HARD_TEXT]
    for path in sorted(TEXTS.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        found += [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    return found


class _Prompt(Exception):
    """Ends a chat completion where it would begin to generate."""


def chat_prompts(path: Path) -> list[list[int]] | None:
    """Ids of the prompts that llama-cpp-python's own chat completion makes; None where the file has no template."""
    model = llama_cpp.Llama(str(path), n_ctx=2048, verbose=False)
    if "tokenizer.chat_template" not in model.metadata:
        return None

    def stop(prompt: list[int], **_: Any) -> None:
        raise _Prompt(prompt)

    model.create_completion = stop  # type: ignore[method-assign, assignment]
    prompts = []
    for chat in CHATS:
        try:
            model.create_chat_completion(chat)
        except _Prompt as caught:
            prompts.append(list(caught.args[0]))
    return prompts


def answers(path: Path, ids: list[int]) -> np.ndarray:
    engine = LlamaCppEngine(path, 1, len(ids))
    return engine.forward(ids, all_logits=True).copy()


def compare(model: Path, scratch: Path, tokens: int) -> dict[str, Any]:
    os.environ["XDG_CACHE_HOME"] = str(scratch)
    with Worker(f"llama.cpp{VOCABULARY}", model, 1, 1) as worker:
        file_ends = worker.ends()
    start = time.perf_counter()
    folder = unpack(model)
    seconds = time.perf_counter() - start
    tokenizer, engine = load_tokenizer(folder), LlamaCppEngine(model, 1, 32)
    every = texts()
    equal = sum(tokenizer(text)["input_ids"] == engine.tokenize(text, True, True) for text in every)
    ids = tokenizer((TEXTS / "test.txt").read_text(encoding="utf-8"))["input_ids"][:tokens]
    expected = answers(model, ids)
    source = source_of(folder) or {}
    errors = logit_errors(folder, scratch, ids, expected, source["types"])
    prompts = chat_prompts(model)
    chats = None if prompts is None else chats_equal(tokenizer, prompts)
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    ends = generation["eos_token_id"]
    return {
        "file": model.name, "source": {name: source[name] for name in ("architecture", "types", "rounding")},
        "unpack_seconds": round(seconds, 1), "texts": len(every), "texts_with_equal_ids": equal, "tokens": tokens,
        "logits_relative_error": errors, "chats": len(prompts or ()), "chats_with_equal_ids": chats,
        "ends": {"llama.cpp": file_ends, "generation_config": ends if isinstance(ends, list) else [ends]},
        "llama_cpp": llama_cpp.__version__,
    }  # fmt: skip


def chats_equal(tokenizer: Any, prompts: list[list[int]]) -> int:
    ours = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in CHATS]
    return sum(one == other for one, other in zip(prompts, ours, strict=True))


def logit_errors(
    folder: Path, scratch: Path, ids: list[int], expected: np.ndarray, types: dict[str, int]
) -> dict[str, float]:
    """Of the folder in torch and of its dense exports in llama.cpp, against the file's own logits."""
    read = load_model(folder)
    plain = logits(read, ids)
    found = {"torch": relative_error(plain, expected)}
    usual = next(iter(types)).lower()
    if usual in ("q4_0", "q4_1", "q8_0"):
        with runtime_arithmetic(read, ExportWeights(folder), f"gguf-{usual}"):
            found["predicted"] = relative_error(logits(read, ids), plain)
    for name in dict.fromkeys(("f16", "q8_0", *(["q4_1"] if usual == "q4_1" else []))):
        write_gguf(folder, scratch / f"{name}.gguf", name)
        found[f"gguf-{name}"] = relative_error(answers(scratch / f"{name}.gguf", ids), expected)
    return {name: round(error, 6) for name, error in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the .gguf file")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of the bundled test text for the logits")
    parser.add_argument("--out", type=Path, help="write the result here too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        publish(compare(args.model, Path(scratch), args.tokens), args.out)


if __name__ == "__main__":
    main()
