"""What onnxruntime-genai needs besides the graph: genai_config.json, and a tokenizer that it can open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saap_edge.exporting.onnx_decoder import KINDS
from saap_edge.model.chat import DEFAULT, Chat, sampling_of
from saap_edge.model.spec import ModelSpec
from saap_edge.model.tokenizer import PLAIN
from saap_edge.model.tokenizer_files import TEMPLATES_FOLDER, copy_tokenizer

__all__ = ["GENAI_FILE", "MAX_LENGTH", "genai_config", "write_genai"]

GENAI_FILE = "genai_config.json"
MAX_LENGTH = 2048  # tokens of a text, unless its user asks for more: genai takes the memory of all before the first
# The tokenizer classes that onnxruntime-genai 0.18 opens, with or without "Fast" at the end.
_CLASSES = frozenset((
    "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "MistralCommonBackend", "SentencePieceBackend",
    "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "Phi3Tokenizer", "Qwen2Tokenizer", "GPT2Tokenizer",
    "GPTNeoXTokenizer", "CodeGenTokenizer", "InternLM2Tokenizer", "BaichuanTokenizer",
))  # fmt: skip


# The fields of tokenizer_config.json that it reads, and their types. With any other type, even null, it opens nothing.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "tokenizer_class": str, "chat_template": str, "model_max_length": (int, float),
    "clean_up_tokenization_spaces": bool,
}  # fmt: skip
_GIVEN = ("bos_token", "eos_token")  # variables that it gives a template, with the values in tokenizer_config.json


def write_genai(spec: ModelSpec, folder: Path, out: Path, graph: str) -> None:
    """Write genai_config.json and the tokenizer of the model in `folder` to the ONNX folder `out`.

    `graph` is the name of the graph's file. The tokenizer is a copy. If genai could not open its tokenizer_config.json,
    or would make other prompts of chats, that file is changed (`_readable`) and templates go to files of their own.
    Raises SaapError as `read_chat`.
    """
    chat = copy_tokenizer(folder, out)
    path = out / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    templates = {name: chat.with_variables(template, _GIVEN) for name, template in chat.templates.items()}
    readable = _readable(config, chat, templates)
    if readable != config:
        path.write_text(json.dumps(readable, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if "chat_template" not in readable:
        _write_templates(out, templates)
    text = json.dumps(genai_config(spec, chat, graph), indent=2)
    (out / GENAI_FILE).write_text(text + "\n", encoding="utf-8")


def _readable(config: dict[str, Any], chat: Chat, templates: dict[str, str]) -> dict[str, Any]:
    """A tokenizer_config.json that genai can open and that means the same to transformers.

    - Several templates, or one that only transformers replaces by chat_template.jinja, are left out here.
    - bos_token and eos_token that transformers takes from other files are added.
    - A missing class is added. One unknown to genai becomes PLAIN, which uses tokenizer.json as it is.
    """
    readable: dict[str, Any] = {
        name: value for name, value in config.items() if isinstance(value, _TYPES.get(name, object))
    }
    if templates != {DEFAULT: readable.get("chat_template")}:
        readable.pop("chat_template", None)
    for name in _GIVEN:
        written = readable.get(name)
        if (written.get("content") if isinstance(written, dict) else written) != chat.variables.get(name):
            readable[name] = chat.variables.get(name)
    name = readable.setdefault("tokenizer_class", chat.tokenizer_class)
    if name.removesuffix("Fast") not in _CLASSES:
        readable["tokenizer_class"] = PLAIN
    return readable


def _write_templates(out: Path, templates: dict[str, str]) -> None:
    for name, template in templates.items():
        path = out / "chat_template.jinja" if name == DEFAULT else out / TEMPLATES_FOLDER / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8", newline="")


def genai_config(spec: ModelSpec, chat: Chat, graph: str) -> dict[str, Any]:
    """The content of genai_config.json, which onnxruntime-genai needs to load the folder.

    `type` only selects the decoder-only runtime, and "lfm2" or "qwen3_5_text" one with states; widths per layer come
    from the shapes of the graph's inputs, but for the KV heads of these two. genai's tokenizer adds no BOS unless asked
    (`tokenizer.update_options(add_special_tokens="true")`), with any model. `context_length` is the model's;
    `max_length`, which decides the memory, is a usual text's.
    """
    widest = max(spec.layers, key=lambda layer: layer.heads * layer.attends)
    names = {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in KINDS}
    decoder: dict[str, Any] = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": graph,
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": widest.heads,
        "num_hidden_layers": sum(layer.kv != "borrowed" for layer in spec.layers),  # with a cache; the others come last
        "num_key_value_heads": widest.kv_heads,
    }
    if spec.taps:
        decoder["layer_types"] = ["conv" if layer.conv else "full_attention" for layer in spec.layers]
        decoder["conv_cache_size"] = spec.taps - 1
        decoder["inputs"]["past_conv_names"], decoder["outputs"]["present_conv_names"] = (
            "past.%d.conv",
            "present.%d.conv",
        )
    if spec.delta or spec.mamba:
        remembering = [layer for layer in spec.layers if not (spec.mamba and layer.ffn)]  # the graph counts these alone
        decoder["num_hidden_layers"] = len(remembering)
        decoder["layer_types"] = ["full_attention" if layer.attends else "linear_attention" for layer in remembering]
        for kind in ("conv", "recurrent"):
            decoder["inputs"][f"past_{kind}_names"] = f"past.%d.{kind}"
            decoder["outputs"][f"present_{kind}_names"] = f"present.%d.{kind}"
    model = {
        "type": "lfm2" if spec.taps else "qwen3_5_text" if spec.delta or spec.mamba else "llama",
        "bos_token_id": -1 if chat.bos is None else chat.bos,
        "eos_token_id": chat.ends[0] if len(chat.ends) == 1 else list(chat.ends),
        "pad_token_id": _pad(chat),
        "context_length": spec.context,
        "vocab_size": spec.vocab_size,
        "decoder": decoder,
    }
    search = {"max_length": min(spec.context, MAX_LENGTH), "past_present_share_buffer": True, **_search(spec, chat)}
    return {"model": model, "search": search}


def _pad(chat: Chat) -> int:
    """The padding id; -1 if it is also an end or the BOS.

    genai treats padding ids at the end of a prompt as padding, so a prompt that ends with such a token would get
    another answer. With -1 nothing in a prompt counts as padding. Batches still work, because padding is not read.
    """
    return -1 if chat.pad is None or chat.pad in (*chat.ends, chat.bos) else chat.pad


def _search(spec: ModelSpec, chat: Chat) -> dict[str, Any]:
    """genai's default settings for choosing the next token; it has no min_p."""
    sampling = sampling_of(chat.generation)
    search: dict[str, Any] = {"do_sample": bool(sampling.do_sample)}
    if sampling.repetition_penalty != 1.0:
        search["repetition_penalty"] = sampling.repetition_penalty
    if sampling.do_sample:
        search["temperature"] = sampling.temperature
        search["top_k"] = min(sampling.top_k, spec.vocab_size)  # it refuses more
        search["top_p"] = sampling.top_p
    return search
