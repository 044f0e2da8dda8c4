"""Chats through each runtime's own entry point: its template, its tokenizer, its loop, and where it ends an answer.

llama-cpp-python has `create_chat_completion`, onnxruntime-genai `apply_chat_template` and a generator, transformers
`apply_chat_template` and `generate`; OpenVINO GenAI's is in openvino_chat.py. All are greedy, without penalties,
whatever the model's own defaults are.
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.gguf_header import read_header
from saap_edge.engines.gguf_memory import keeps_a_copy
from saap_edge.engines.gguf_shape import read_shape
from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.onnx_prepared import refusal
from saap_edge.engines.onnxruntime import spinning
from saap_edge.engines.options import PIECE, UBATCH, kv_refusal, kv_type
from saap_edge.engines.registry import engine_named
from saap_edge.engines.torch import load_transformers
from saap_edge.errors import SaapError

__all__ = [
    "AGREED", "ChatEngine", "GenaiChat", "LlamaCppChat", "TorchChat", "answer_of", "check_chat", "no_chat",
    "template_of",
]  # fmt: skip

AGREED = 32  # first tokens of an answer that are compared with those of another model
DEFAULT = "default"  # name of the template that is used when none is named
TAGGED = "<tool_call>"
llama_cpp, genai, torch = lazy_import("llama_cpp"), lazy_import("onnxruntime_genai"), lazy_import("torch")
ort, transformers = lazy_import("onnxruntime"), lazy_import("transformers")


def template_of(path: Path) -> str | None:
    """The chat template of a GGUF file, or of an ONNX, an OpenVINO or a Hugging Face folder; None where it has none.

    Raises SaapError when the file that should hold it is damaged.
    """
    if path.is_file():
        found = read_header(path).metadata.get("tokenizer.chat_template")
        return found if isinstance(found, str) and found else None
    if (path / "chat_template.jinja").is_file():
        return _read(path / "chat_template.jinja") or None
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = _object(path / name).get("chat_template") if (path / name).is_file() else None
        if isinstance(found, list):
            found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = found.get(DEFAULT) if isinstance(found, dict) else found
        if isinstance(found, str) and found:
            return found
    return None


def check_chat(engine: str, path: Path) -> str:
    """The template of an artifact that can chat. Raises SaapError, with what to do, where it cannot."""
    problem = no_chat(engine)
    if problem:
        raise SaapError(f"'{path}': {problem}")
    template = template_of(path)
    if template is None:
        raise SaapError(
            f"'{path}' has no chat template: a base model follows no instructions. Give the instruct model, or measure "
            "this one with --text and --task"
        )
    return template


def no_chat(engine: str) -> str | None:
    """Why an engine cannot chat here; None where it can.

    >>> no_chat("optimum")
    'optimum has no chat entry point: GGUF files, ONNX and OpenVINO folders and Hugging Face folders have'
    """
    record = engine_named(engine)
    if record.chat is None:
        return f"{engine} has no chat entry point: GGUF files, ONNX and OpenVINO folders and Hugging Face folders have"
    module = record.chat_module or record.module
    if find_spec(module) is None:
        return f"chats need {module}: pip install {module.replace('_', '-')}"
    return None


def form_of_tools(template: str) -> str | None:
    """How a template wants a tool to be called: None, it takes no tools; else the tag around the JSON, or "" for none.

    >>> form_of_tools("{{ messages }}"), form_of_tools("{{ tools }} <tool_call>"), form_of_tools("{% if tools %}")
    (None, '<tool_call>', '')
    """
    if not re.search(r"\btools\b", template):
        return None
    return TAGGED if TAGGED in template else ""


class ChatEngine:
    """What all chat entry points have in common. A chat has no logits to look at, and its KV cache is not counted."""

    name: str
    vocab_size = 0  # not asked for

    def __init__(self, path: Path, threads: int, context: int) -> None:
        self.path, self.threads, self.context = Path(path), threads, context
        self.template = check_chat(self.name, self.path)

    def kv_bytes_per_token(self) -> int:
        """0: it is not counted here."""
        return 0

    def describe(self) -> dict[str, Any]:
        """Runtime and template: conditions that belong beside every figure."""
        return {
            "engine": self.name, "version": self.version(), "threads": self.threads, "context": self.context,
            "template_sha256": hashlib.sha256(self.template.encode()).hexdigest()[:12],
            "tools": form_of_tools(self.template), "dated": "strftime_now" in self.template,
        }  # fmt: skip

    def version(self) -> str:
        """Of the runtime."""
        raise NotImplementedError

    def check_room(self, prompt: int, count: int) -> None:
        """Raise ValueError when prompt and answer do not fit into the context."""
        if prompt + count > self.context:
            raise ValueError(
                f"a prompt of {prompt} tokens and an answer of {count} do not fit into a context of {self.context} "
                "tokens: take fewer answer tokens or a shorter instruction"
            )


class LlamaCppChat(ChatEngine):
    """A GGUF file in llama-cpp-python's `create_chat_completion`, with the template in the file."""

    name = "llama.cpp"

    def __init__(self, path: Path, threads: int, context: int, kv: str = "f16", ubatch: int = UBATCH) -> None:
        """Load `path`; `kv` and `ubatch` as in `LlamaCppEngine`.

        Raises SaapError when the file is damaged, has no template, or has heads that `kv` cannot hold.
        """
        super().__init__(path, threads, context)
        header, self.kv = read_header(self.path), kv_type(kv)
        if refusal := kv_refusal(kv, read_shape(header).head_dims):
            raise SaapError(f"'{path}': {refusal}")
        cache = getattr(llama_cpp, self.kv.symbol)
        self._llama = llama_cpp.Llama(
            str(header.files[0]), n_ctx=context, n_threads=threads, n_threads_batch=threads, n_gpu_layers=0,
            flash_attn=True, verbose=False, use_mmap=not keeps_a_copy(header), type_k=cache, type_v=cache,
            n_ubatch=min(context, ubatch),
        )  # fmt: skip

    def version(self) -> str:
        """Of llama-cpp-python."""
        return str(llama_cpp.__version__)

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], count: int) -> dict[str, Any]:
        """As `Worker.chat`. Raises ValueError when prompt and answer do not fit into the context."""
        llama, limit = self._llama, _Limit(count, self._llama.token_eos())
        llama.reset()  # else what the last prompt shares would be left in the cache, and sums come in another order
        done = llama.create_chat_completion(
            messages, tools=tools or None, temperature=0.0, repeat_penalty=1.0, max_tokens=count,
            logits_processor=llama_cpp.LogitsProcessorList([limit]),
        )  # fmt: skip
        prompt, choice = int(done["usage"]["prompt_tokens"]), done["choices"][0]
        self.check_room(prompt, count)  # llama-cpp-python gives a shorter answer, without a word
        said = int(done["usage"]["completion_tokens"])
        ids = llama.input_ids[prompt : min(prompt + said, llama.n_tokens)].tolist()
        ended = choice["finish_reason"] == "stop" and not limit.met
        return answer_of(choice["message"]["content"] or "", ids, ended, count, said)


class _Limit:
    """Ends an answer of `count` tokens by the token `end`, as a processor of logits.

    llama-cpp-python asks whether `max_tokens` were said only where the bytes so far are whole characters. An answer
    of bytes that never are goes on until the context is full, and then it raises.
    """

    def __init__(self, count: int, end: int) -> None:
        self.met, self._count, self._end, self._prompt = False, count, end, -1

    def __call__(self, ids: Any, logits: Any) -> Any:
        self._prompt = len(ids) if self._prompt < 0 else self._prompt
        if len(ids) - self._prompt >= self._count and self._end >= 0:
            self.met = True
            logits[:] = -np.inf
            logits[self._end] = 0.0
        return logits


class GenaiChat(ChatEngine):
    """An ONNX folder in onnxruntime-genai: its template, its tokenizer, its generator."""

    name = "onnxruntime"

    def __init__(self, path: Path, threads: int, context: int, ubatch: int = PIECE) -> None:
        """Load `path`; `ubatch` as in `OnnxRuntimeEngine`.

        Raises SaapError when genai cannot, or it has no template.
        """
        super().__init__(path, threads, context)
        if told := refusal(self.path):
            raise SaapError(told)
        try:
            config = genai.Config(str(self.path))
            options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1,
                       "session.intra_op.allow_spinning": str(int(spinning(threads)))}  # fmt: skip
            search = {"chunk_size": ubatch}  # not in the folder's own file: with it genai refuses batches of prompts
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}, "search": search}))
            self._model = genai.Model(config)
            self._tokenizer = genai.Tokenizer(self._model)
        except Exception as error:  # the binding raises nothing more specific
            raise SaapError(f"onnxruntime-genai cannot load it: {error}") from None

    def version(self) -> str:
        """Of genai and of ONNX Runtime."""
        return f"{ort.__version__}, onnxruntime-genai {genai.__version__}"

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], count: int) -> dict[str, Any]:
        """As `Worker.chat`. Raises ValueError when prompt and answer do not fit into the context."""
        told = {"tools": json.dumps(tools)} if tools else {}
        text = self._tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=True, **told)
        prompt = np.asarray(self._tokenizer.encode(text), dtype=np.int32)
        self.check_room(len(prompt), count)
        search = genai.GeneratorParams(self._model)
        search.set_search_options(max_length=len(prompt) + count, do_sample=False, repetition_penalty=1.0)
        generator = genai.Generator(self._model, search)
        generator.append_tokens(prompt[None])
        while not generator.is_done():
            generator.generate_next_token()
        ids = generator.get_sequence(0)[len(prompt) :]  # without the token that ends it
        return answer_of(self._tokenizer.decode(ids), [int(token) for token in ids], len(ids) < count, count)


class TorchChat(ChatEngine):
    """A Hugging Face folder in transformers: the tokenizer's `apply_chat_template`, the model's `generate`.

    It runs on a GPU where there is one. An answer ends where the model's settings or the tokenizer say.
    """

    name = "torch"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load `path`. Raises SaapError when it is no model, carries code of others, or has no template."""
        super().__init__(path, threads, context)
        torch.set_num_threads(threads)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_transformers(self.path, "float32").to(self._device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(self.path), local_files_only=True)
        said = self._model.generation_config.eos_token_id
        ends = [*(said if isinstance(said, list) else [said]), self._tokenizer.eos_token_id]
        self._ends = sorted({int(end) for end in ends if end is not None})

    def version(self) -> str:
        """Of torch and transformers, and the device."""
        return f"{torch.__version__}, transformers {transformers.__version__}, {self._device}"

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], count: int) -> dict[str, Any]:
        """As `Worker.chat`. Raises ValueError when prompt and answer do not fit into the context."""
        try:
            prompt = self._tokenizer.apply_chat_template(
                messages, tools=tools or None, chat_template=self.template, add_generation_prompt=True, return_dict=True
            )["input_ids"]
        except Exception as error:  # jinja2 has many, and templates raise their own
            raise SaapError(f"its chat template fails: {error}") from None
        self.check_room(len(prompt), count)
        greedy = transformers.GenerationConfig(
            max_new_tokens=count, do_sample=False, eos_token_id=self._ends or None,
            pad_token_id=self._ends[0] if self._ends else None,
        )  # fmt: skip
        asked = torch.tensor([prompt], device=self._device)
        with torch.inference_mode():
            whole = self._model.generate(asked, attention_mask=torch.ones_like(asked), generation_config=greedy)
        ids = whole[0].tolist()[len(prompt) :]
        ended = ids[-1] in self._ends
        ids = ids[:-1] if ended else ids
        return answer_of(self._tokenizer.decode(ids, skip_special_tokens=True), ids, ended, count)


def answer_of(text: str, ids: list[int], ended: bool, count: int, said: int | None = None) -> dict[str, Any]:
    """The answer as JSON. Its last token at the limit is left out of `ids`: llama-cpp-python does not tell it."""
    first = ids[: min(AGREED, count - 1)]
    return {"text": text, "ended": ended, "tokens": len(ids) if said is None else said, "ids": first}


def _object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise SaapError(f"'{path}' cannot be read: {error}") from None
    return document if isinstance(document, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SaapError(f"'{path}' cannot be read: {error}") from None
