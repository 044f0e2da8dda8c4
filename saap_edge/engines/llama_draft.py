"""llama.cpp's speculative decoding, as llama-cpp-python has it: `Llama(draft_model=...)`, whose loop runs what a draft
says beforehand at once and keeps what it would have said itself. Here, the draft is a second GGUF file.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.chat import check_chat
from saap_edge.engines.gguf_header import read_header, read_strings
from saap_edge.engines.gguf_memory import keeps_a_copy
from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.llama_cpp import LlamaCppEngine, LlamaCppVocabulary
from saap_edge.engines.options import kv_type
from saap_edge.errors import SaapError

__all__ = ["DraftFile", "LlamaCppDrafted"]

llama_cpp = lazy_import("llama_cpp")
BATCH = 512  # tokens of a prompt at a time: llama.cpp's default


class DraftFile:
    """A draft for `Llama(draft_model=...)`: greedy tokens of a GGUF file. It keeps its own KV cache.

    `Llama` calls it with all tokens so far, the last of which it has not run itself. Of these, the draft runs what it
    has not run before; what the parent did not accept is forgotten.

    Attributes:
        gamma: tokens that it says a call.
        calls: how often it was asked since `begin`.
    """

    def __init__(self, engine: LlamaCppEngine) -> None:
        from llama_cpp.llama_speculative import LlamaDraftModel

        LlamaDraftModel.register(DraftFile)  # abstract, and without code of its own
        self.engine, self.gamma, self.calls = engine, 0, 0
        self._held = np.empty(0, dtype=np.intc)

    def begin(self, tokens: list[int], gamma: int) -> None:
        """Read a prompt."""
        self.engine.reset()
        self.engine.forward(tokens)
        self._held, self.gamma, self.calls = np.array(tokens, dtype=np.intc), gamma, 0

    def __call__(self, input_ids: np.ndarray, /, **_: Any) -> np.ndarray:
        """The next `gamma` tokens after `input_ids`, int32; fewer where the draft's context ends."""
        self.calls += 1
        count = min(self.gamma, self.engine.context - len(input_ids) + 1)
        if count < 1:
            return np.empty(0, dtype=np.intc)
        most = min(len(self._held), len(input_ids) - 1)  # the last token is run in any case, for its logits
        differing = np.flatnonzero(self._held[:most] != input_ids[:most])
        shared = int(differing[0]) if len(differing) else most
        self.engine.truncate(shared)
        said: list[int] = []
        run = input_ids[shared:].tolist()
        while True:
            said.append(int(self.engine.forward(run)[-1].argmax()))
            if len(said) == count:
                break
            run = said[-1:]
        self._held = np.concatenate([input_ids, np.array(said[:-1], dtype=np.intc)])
        return np.array(said, dtype=np.intc)


class LlamaCppDrafted:
    """A GGUF file in llama-cpp-python's own greedy loop, alone or with a draft."""

    name = "llama.cpp"

    def __init__(self, path: Path, threads: int, context: int, kv: str = "f16", draft: str | None = None) -> None:
        """Load `path`, and the file `draft` where one is named; `kv` is the type of both KV caches.

        Raises SaapError when a file is damaged, or the two have not the same number of tokens.
        """
        header = read_header(Path(path))
        self.path, self.threads, self.context, self.draft = Path(path), threads, context, draft
        self._vocabulary = LlamaCppVocabulary(header.files[0])
        self.vocab_size = self._vocabulary.vocab_size
        self._draft = DraftFile(LlamaCppEngine(Path(draft), threads, context, kv)) if draft else None
        if self._draft and self._draft.engine.vocab_size != self.vocab_size:
            raise SaapError(f"'{draft}' has {self._draft.engine.vocab_size} tokens, '{path}' {self.vocab_size}")
        cache = getattr(llama_cpp, kv_type(kv).symbol)
        # logits_all: a draft needs it, and without it llama-cpp-python has room for the logits of one batch only.
        self._llama = llama_cpp.Llama(
            str(header.files[0]), n_ctx=context, n_batch=min(context, BATCH), n_threads=threads,
            n_threads_batch=threads, n_gpu_layers=0, flash_attn=True, verbose=False,
            use_mmap=not keeps_a_copy(header), type_k=cache, type_v=cache, draft_model=self._draft,
            logits_all=self._draft is not None,
        )  # fmt: skip

    def kv_bytes_per_token(self) -> int:
        """0: it is not counted here."""
        return 0

    def describe(self) -> dict[str, Any]:
        """Runtime and settings: conditions that belong beside every figure."""
        return {
            "engine": self.name, "version": llama_cpp.__version__, "threads": self.threads, "context": self.context,
            "draft": self.draft,
        }  # fmt: skip

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """As `LlamaCppVocabulary.tokenize`."""
        return self._vocabulary.tokenize(text, add_special, parse_special)

    def ends(self) -> list[int]:
        """Token ids at which llama.cpp ends a text."""
        return self._vocabulary.ends()

    def rendered(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of a chat by the template in the file, as `create_chat_completion` makes them.

        Raises SaapError where the file has no template, or it fails.
        """
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = check_chat(self.name, self.path)
        header = read_header(self.path)
        names = read_strings(header.files[0], "tokenizer.ggml.tokens") or []
        told = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "bos")]
        eos, bos = (names[number] if isinstance(number, int) and number < len(names) else "" for number in told)
        try:
            render: Any = Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos)
            made = render(messages=messages)
        except Exception as error:  # jinja2 has many, and templates raise their own
            raise SaapError(f"its chat template fails: {error}") from None
        return self.tokenize(made.prompt, not made.added_special, True)

    def speculate(self, tokens: list[int], count: int, gamma: int) -> dict[str, Any]:
        """As `Worker.speculate`. The draft has read the prompt before the first token: that time is in `prompt_s`.

        Raises ValueError where prompt and answer do not fit into the context, with `gamma` tokens to spare.
        """
        if not tokens or count < 1 or len(tokens) + count + gamma > self.context:
            raise ValueError(
                f"{len(tokens)} tokens, {count} more and {gamma} drafted do not fit into a context of {self.context}"
            )
        self._llama.reset()
        start = time.perf_counter()
        if self._draft:
            self._draft.begin(tokens, gamma)
        steps = self._llama.generate(tokens, temp=0.0, repeat_penalty=1.0)
        ids = [int(next(steps))]
        first, cpu = time.perf_counter(), time.process_time()
        while len(ids) < count:
            ids.append(int(next(steps)))
        last, cpu_last = time.perf_counter(), time.process_time()
        steps.close()
        return {
            "ids": ids, "prompt_s": first - start, "decode_s": last - first, "decode_cpu_s": cpu_last - cpu,
            "passes": self._draft.calls if self._draft else count - 1,
        }  # fmt: skip
