"""Chats through OpenVINO GenAI's LLMPipeline: its template, its tokenizer, its loop over paged attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.chat import ChatEngine, answer_of
from saap_edge.engines.lazy import lazy_import
from saap_edge.errors import SaapError

__all__ = ["OpenvinoChat"]

ov, genai = lazy_import("openvino"), lazy_import("openvino_genai")


class OpenvinoChat(ChatEngine):
    """An OpenVINO folder in openvino_genai, with its own defaults of arithmetic and cache."""

    name = "openvino"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load `path`. Raises SaapError when GenAI cannot, or it has no template."""
        super().__init__(path, threads, context)
        try:
            self._pipeline = genai.LLMPipeline(str(self.path), "CPU", INFERENCE_NUM_THREADS=threads)
        except Exception as error:  # the binding raises nothing more specific
            reason = " ".join(str(error).split())[-200:]
            raise SaapError(f"OpenVINO GenAI cannot load it: {reason}") from None
        self._tokenizer = self._pipeline.get_tokenizer()

    def version(self) -> str:
        """Of OpenVINO and of GenAI."""
        return f"{ov.get_version()}, openvino-genai {genai.__version__}"

    def chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], count: int) -> dict[str, Any]:
        """As `Worker.chat`. Raises ValueError when prompt and answer do not fit into the context."""
        told = {"tools": tools} if tools else {}
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, **told)
        prompt = np.array(self._tokenizer.encode(text, add_special_tokens=False).input_ids.data)
        self.check_room(prompt.shape[1], count)
        search = self._pipeline.get_generation_config()
        search.do_sample, search.repetition_penalty, search.max_new_tokens = False, 1.0, count
        done = self._pipeline.generate(ov.Tensor(prompt), search)
        ids = [int(token) for token in done.tokens[0]]
        ended = bool(ids) and ids[-1] in search.stop_token_ids
        ids = ids[:-1] if ended else ids
        return answer_of(self._tokenizer.decode(ids), ids, ended, count)
