"""A model that says what it is told to, and the chat entry point of every stock runtime."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import onnxruntime_genai as og
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.conftest import TEXT

SPECIAL = (
    "<s>",
    "</turn>",
    "<|user|>",
    "<|assistant|>",
    "<|stop|>",
    "<|more|>",
    "<|four|>",
    "<|five|>",
    "<pad>",
    "<|x|>",
)
ROWS = 352  # 32 more than the tokenizer has tokens: padded, as many models are
TOKENS = 320
MESSAGES = [{"role": "user", "content": "The quick brown fox"}]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
ROOM = 8  # tokens that are asked for


def chat_tokenizer(special: tuple[str, ...] = SPECIAL, bos: bool = False) -> Tokenizer:
    """Byte-level BPE with real special tokens; `bos`: it begins every plain text with <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=list(special), initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return tokenizer


def speaking(
    folder: Path, tokenizer: Tokenizer, chain: list[int], tokenizer_config: dict | None, generation: dict | None,
    **config: Any,
) -> Path:  # fmt: skip
    """A Llama in which every token of `chain` is followed by the next one, whatever stood before.

    Attention and FFN add nothing, so that the last embedding alone decides; the head finds it.
    """
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    } | config  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{name: value for name, value in shape.items() if "token_id" not in name}))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.normal_()
        model.lm_head.weight.zero_()
        for last, following in pairwise(chain):
            model.lm_head.weight[following] += model.model.embed_tokens.weight[last]
    model.eval().save_pretrained(folder)
    document = json.loads((folder / "config.json").read_text()) | shape
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "generation_config.json").unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config", tokenizer_config), ("generation_config", generation)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@dataclass(frozen=True)
class Turn:
    """One answer: ids of the prompt; the answer without special tokens and its end; and whether there was an end."""

    prompt: list[int]
    answer: str
    ended: bool


def prompt_of(folder: Path) -> list[int]:
    """transformers' prompt of MESSAGES."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids: list[int] = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    return ids


def in_transformers(folder: Path) -> Turn:
    tokenizer, prompt = AutoTokenizer.from_pretrained(folder), prompt_of(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=ROOM)[0].tolist()[len(prompt) :]
    ended = len(answer) < ROOM
    return Turn(prompt, tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True), ended)


def in_llama_cpp(path: Path) -> Turn:
    llama = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, verbose=False)
    try:
        done: Any = llama.create_chat_completion(MESSAGES, temperature=0.0, repeat_penalty=1.0, max_tokens=ROOM)
        choice, prompt = done["choices"][0], llama._input_ids.tolist()[: done["usage"]["prompt_tokens"]]
        return Turn(prompt, choice["message"]["content"], choice["finish_reason"] == "stop")
    finally:
        llama.close()


def in_genai(folder: Path) -> Turn:
    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    text = tokenizer.apply_chat_template(json.dumps(MESSAGES), add_generation_prompt=True)
    prompt = tokenizer.encode(text).tolist()
    search = og.GeneratorParams(model)
    search.set_search_options(max_length=len(prompt) + ROOM)
    generator = og.Generator(model, search)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    answer = generator.get_sequence(0).tolist()[len(prompt) :]
    return Turn(prompt, tokenizer.decode(answer), len(answer) < ROOM)  # what ends it is not in the sequence


def ends_of(path: Path) -> set[int]:
    """Every id at which llama.cpp ends a text."""
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    ends = {index for index in range(llama.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, index)}
    llama.close()
    return ends
