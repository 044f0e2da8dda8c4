"""The shapes of widely used small models' tokenizers: everything but their vocabularies.

Rebuilt from what their tokenizer.json and tokenizer_config.json are known to say: how text is normalised and split,
which tokens are added and how, what stands around a text, which class transformers loads. Chat templates only have the
form of the model's. `refused`, `told` and `genai` are what is expected of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from saap_edge.evaluation.token_ids import ACCENTS, ADDED, AROUND, CHAT, LEADING, PLAIN
from saap_edge.exporting.tokenizer_rules import _DEEPSEEK, _LLAMA3, _QWEN2, _QWEN35, _SEED, GPT2
from tests.exporting.tokenizer_texts import GPT4O, TEKKEN

__all__ = ["SHAPES", "Shape"]

Json = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A tokenizer but for its vocabulary.

    special, added: tokens of the two kinds, with the flags of all; swallowing: special ones that take the space behind
    them; before: what stands before a text; pieces: SentencePiece-like; prefix: a space is marked before a text; whole:
    ignore_merges; form: of a chat's turns; refused: what the refusal of GGUF says, and `nearest` llama.cpp's rule that
    comes near; told: what differs in llama.cpp; genai: what differs in onnxruntime-genai, or why it does not load it
    (byte-level ones only: it cuts at spaces, and the pieces learnt here go across them as no real ones do).
    """

    pre_tokenizer: Json | None
    special: tuple[str, ...]
    added: tuple[str, ...] = ()
    normalizer: Json | None = None
    before: str | None = None
    pieces: bool = False
    whole: bool = False
    prefix: bool = False
    swallowing: tuple[str, ...] = ()
    flags: Json = field(default_factory=dict)
    added_flags: Json = field(default_factory=dict)
    form: str | None = None
    load_as: str = "PreTrainedTokenizerFast"
    config: Json = field(default_factory=dict)
    family: str = "llama"
    refused: str | None = None
    nearest: str | None = None
    told: frozenset[str] = frozenset()
    genai: frozenset[str] | str = frozenset()


def sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def byte_level(**more: Any) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True} | more


def by(*patterns: str) -> Json:
    return sequence(*map(split, patterns), byte_level(use_regex=False))


DIGITS = sequence({"type": "Digits", "individual_digits": True}, byte_level(use_regex=True))
NFC: Json = {"type": "NFC"}
EMPTY: Json = {"type": "Sequence", "normalizers": []}
PREPEND: Json = {"type": "Prepend", "prepend": "▁"}
MARK: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPENDED: Json = {"type": "Sequence", "normalizers": [PREPEND, MARK]}
AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def metaspace(scheme: str) -> Json:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


# Forms of chats: `{role}` and `{content}` of a turn; the last one is opened and left.
CHATML = "<|im_start|>{role}\n{content}<|im_end|>\n"
HEADERS = "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
ZEPHYR = "<|{role}|>\n{content}</s>\n"
INST = "<s>[INST] {content} [/INST]"
GPT = ("<|endoftext|>",)
IM = ("<|im_start|>", "<|im_end|>")
SP = ("<unk>", "<s>", "</s>")
THINKING = ("<think>", "</think>", "<tool_call>", "</tool_call>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
LEGACY = {"legacy": True}


def llama2(**more: Any) -> Shape:
    """Llama's own SentencePiece model: a space is marked before a text, and behind every added token."""
    values: Json = dict(
        pieces=True, normalizer=PREPENDED, special=SP, before="<s>", load_as="LlamaTokenizer", prefix=True
    )
    values |= {"pre_tokenizer": None, "config": {"legacy": False}} | more
    return Shape(**values)


SHAPES: dict[str, Shape] = {
    # Byte-level
    "GPT-2": Shape(byte_level(), GPT, load_as="GPT2Tokenizer"),
    "GPT-2, its rule unsaid": Shape(sequence(sequence(byte_level())), GPT),
    "GPT-2, its rule as an expression": Shape(by(GPT2), GPT),
    "GPT-2, a space before": Shape(
        byte_level(add_prefix_space=True), GPT, config={"add_prefix_space": True}, refused="splitting rule",
        nearest="gpt-2", genai={PLAIN, ACCENTS, ADDED, AROUND},
    ),
    "Pythia": Shape(
        byte_level(use_regex=True), ("<|endoftext|>", "<|padding|>"), ("  ", "    ", "        "), NFC,
        load_as="GPTNeoXTokenizer", added_flags={"normalized": True}, told={ACCENTS}, genai={ACCENTS},
    ),
    "OLMo": Shape(byte_level(), ("<|endoftext|>", "|||IP_ADDRESS|||"), normalizer=NFC, told={ACCENTS}, genai={ACCENTS}),
    "OLMo 2": Shape(by(_LLAMA3), ("<|endoftext|>", *IM), load_as="GPT2Tokenizer", form=CHATML),
    "SmolLM2": Shape(
        DIGITS, ("<|endoftext|>", *IM, "<repo_name>"), load_as="GPT2Tokenizer", form=CHATML, genai={PLAIN, CHAT}
    ),
    "SmolLM3": Shape(by(_LLAMA3), (*LLAMA3, *IM), THINKING, whole=True, form=CHATML),
    "Granite 3": Shape(
        DIGITS, ("<|end_of_text|>", "<fim_prefix>", "<|start_of_role|>", "<|end_of_role|>"), load_as="GPT2Tokenizer",
        form="<|start_of_role|>{role}<|end_of_role|>{content}<|end_of_text|>\n", family="granite", genai={PLAIN, CHAT},
    ),
    "Granite 4": Shape(
        by(_LLAMA3), ("<|pad|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), load_as="GPT2Tokenizer",
        form="<|start_of_role|>{role}<|end_of_role|>{content}<|end_of_text|>\n", family="granitemoehybrid",
    ),
    "EXAONE 3.5": Shape(
        sequence(split(r"\p{N}"), byte_level(use_regex=True)), ("[PAD]", "[BOS]", "[EOS]", "[|system|]", "[|user|]"),
        normalizer=NFC, form="[|{role}|]{content}[EOS]\n", told={ACCENTS},
        genai={PLAIN, LEADING, ACCENTS, ADDED, CHAT, AROUND},
    ),
    "Llama 3.2": Shape(by(_LLAMA3), LLAMA3, before="<|begin_of_text|>", whole=True, form=HEADERS),
    "DeepSeek R1 Distill Llama": Shape(
        by(_LLAMA3), DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>", *THINKING), EMPTY, DEEPSEEK[0], whole=True,
        load_as="LlamaTokenizerFast", form="<｜{role}｜>{content}",
    ),
    "Falcon 3": Shape(
        by(_LLAMA3), (*GPT, ">>TITLE<<", "<|system|>", "<|user|>"), whole=True, form="<|{role}|>\n{content}\n"
    ),
    "LFM2": Shape(
        by(_LLAMA3), ("<|startoftext|>", "<|im_end|>", "<|im_start|>"), before="<|startoftext|>", whole=True,
        form=CHATML,
    ),
    "Qwen2.5": Shape(
        by(_QWEN2), (*GPT, *IM), THINKING[2:], NFC, load_as="Qwen2Tokenizer", form=CHATML, family="qwen2",
        told={ACCENTS}, genai={ACCENTS},
    ),
    "Qwen3": Shape(
        by(_QWEN2), (*GPT, *IM), THINKING, NFC, load_as="Qwen2Tokenizer", form=CHATML, family="qwen3", told={ACCENTS},
        genai={ACCENTS},
    ),
    "Qwen3, NFC in a sequence": Shape(
        by(_QWEN2), (*GPT, *IM), THINKING, {"type": "Sequence", "normalizers": [NFC]}, form=CHATML, told={ACCENTS},
        genai={ACCENTS},
    ),
    "Qwen3.5": Shape(by(_QWEN35), (*GPT, *IM), THINKING, NFC, form=CHATML, told={ACCENTS}, genai={ACCENTS}),
    "DeepSeek R1 Distill Qwen": Shape(
        by(_QWEN2), DEEPSEEK, ("<｜User｜>", "<｜Assistant｜>", *THINKING), EMPTY, DEEPSEEK[0],
        load_as="LlamaTokenizerFast", form="<｜{role}｜>{content}", family="qwen2",
    ),
    "DeepSeek V3": Shape(by(*_DEEPSEEK), DEEPSEEK, ("<｜User｜>",), EMPTY, DEEPSEEK[0], load_as="LlamaTokenizerFast"),
    "Hunyuan": Shape(
        by(*_DEEPSEEK), ("<｜hy_begin▁of▁sentence｜>", "<｜hy_Assistant｜>", "<｜hy_User｜>"),
        before="<｜hy_begin▁of▁sentence｜>", form="<｜hy_{role}｜>{content}", family="hunyuan_v1_dense",
    ),
    "StableLM 2": Shape(by(_QWEN2), (*GPT, *IM), load_as="GPT2Tokenizer", form=CHATML),
    "MiniCPM 5": Shape(by(r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), (*SP, *IM), THINKING, whole=True, form=CHATML,
        genai="Invalid regex"),
    "Seed Coder": Shape(by(_SEED), SP, before="<s>", genai="Invalid regex"),
    "Phi 4": Shape(
        sequence(split(_LLAMA3, "Removed", True), byte_level(use_regex=False)), (*GPT, *IM, "<|im_sep|>"),
        flags={"lstrip": True, "rstrip": True}, load_as="GPT2Tokenizer", family="phi3",
        form="<|im_start|>{role}<|im_sep|>{content}<|im_end|>", told={ADDED}, genai={ADDED},
    ),
    "Phi 4 mini": Shape(
        by(GPT4O), (*GPT, "<|user|>", "<|end|>"), load_as="GPT2Tokenizer", form="<|{role}|>{content}<|end|>",
        family="phi3", refused="splits accents otherwise", nearest="gpt-4o",
    ),
    "Mistral Nemo": Shape(
        by(TEKKEN), (*SP, "[INST]", "[/INST]"), before="<s>", whole=True, form=INST, family="mistral",
        refused="splits accents otherwise", nearest="tekken",
    ),
    # SentencePiece-like
    "Llama 2": llama2(form=INST),
    "TinyLlama": llama2(form=ZEPHYR),
    "OpenELM, MobileLLM": llama2(),
    "Llama 2, as transformers 5 saves it": llama2(
        normalizer=None, pre_tokenizer=metaspace("first"), told={LEADING, ADDED}
    ),
    "Mistral 7B v0.1": llama2(family="mistral", config=LEGACY, form=INST),
    "Mistral 7B v0.3": llama2(
        special=(*SP, "[INST]", "[/INST]"), normalizer=None, pre_tokenizer=metaspace("first"), family="mistral",
        form=INST, told={LEADING, ADDED, CHAT},
    ),
    "Zephyr 7B": llama2(family="mistral", config=LEGACY, form=ZEPHYR),
    "Danube": llama2(
        special=(*SP, "<|prompt|>", "<|answer|>"), family="mistral", form="<|prompt|>{content}</s><|answer|>"
    ),
    "Bielik": llama2(special=(*SP, *IM), family="mistral", form=CHATML),
    "MiniCPM": llama2(added=("<用户>", "<AI>"), form="<用户>{content}<AI>"),
    "Yi 1.5": llama2(
        normalizer=MARK, special=(*SP, *IM), config={"legacy": True, "add_prefix_space": False}, form=CHATML,
        prefix=False,
    ),
    "ERNIE 4.5": llama2(
        normalizer={"type": "Sequence", "normalizers": [MARK]}, special=(*SP, "<|end_of_sentence|>", "<mask:1>"),
        before=None, config={"legacy": True, "add_prefix_space": False}, form="User: {content}\nAssistant: ",
        family="ernie4_5", prefix=False,
    ),
    "InternLM2": llama2(special=(*SP, *IM), load_as="PreTrainedTokenizerFast", form=CHATML),
    "Nemotron mini": llama2(
        special=(*SP, "<extra_id_0>", "<extra_id_1>"), load_as="PreTrainedTokenizerFast",
        form="<extra_id_1>{role}\n{content}\n",
    ),
    "Phi 3": llama2(
        special=("<unk>", "<s>", "<|endoftext|>"), swallowing=("<|user|>", "<|assistant|>", "<|end|>"), added=("</s>",),
        added_flags={"rstrip": True}, family="phi3",
        form="<|{role}|>\n{content}<|end|>\n",
    ),
    "Gemma 2": llama2(
        normalizer=MARK, pre_tokenizer=AT_SPACES, special=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"),
        added=("▁▁", "▁▁▁", "\n\n", "<table>"), before="<bos>", load_as="GemmaTokenizer", family="gemma2", config={},
        form="<start_of_turn>{role}\n{content}<end_of_turn>\n", prefix=False,
    ),
    "Gemma 3": llama2(
        normalizer=MARK, pre_tokenizer=AT_SPACES, special=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"),
        added=("▁▁", "▁▁▁", "\n\n", "<table>", "<start_of_image>"), before="<bos>", load_as="GemmaTokenizer", config={},
        family="gemma3_text", form="<start_of_turn>{role}\n{content}<end_of_turn>\n", prefix=False,
    ),
    "SentencePiece, lower case": llama2(
        normalizer={"type": "Sequence", "normalizers": [PREPEND, MARK, {"type": "Lowercase"}]},
        load_as="PreTrainedTokenizerFast", refused="normalizer Lowercase",
    ),
}  # fmt: skip
