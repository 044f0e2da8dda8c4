"""Tokenizers of onnxruntime-genai and OpenVINO GenAI alone. No weights are read, and nothing is computed."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from saap_edge.engines.registry import EngineRecord, register_engine
from saap_edge.errors import SaapError

__all__ = ["GenaiVocabulary", "OpenvinoVocabulary"]

_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.jinja")


class GenaiVocabulary:
    """The tokenizer of a folder, as genai reads it. genai always reads the names of special tokens as tokens."""

    name = "onnxruntime-genai"

    def __init__(self, path: Path) -> None:
        """Load the tokenizer in `path`. Raises SaapError when genai cannot.

        genai gives a tokenizer only for a model, so that it gets a model that computes nothing.
        """
        import onnxruntime_genai as genai

        with tempfile.TemporaryDirectory() as scratch:
            for file in (file for pattern in _FILES for file in path.glob(pattern)):
                shutil.copyfile(file, Path(scratch) / file.name)
            _write_graph(Path(scratch))
            try:
                self._tokenizer: Any = genai.Tokenizer(genai.Model(scratch))
            except Exception as error:  # the binding raises nothing more specific
                raise SaapError(f"it cannot be loaded: {error}") from None
        self.vocab_size = 0  # it does not tell

    def kv_bytes_per_token(self) -> int:
        """0: a tokenizer has no KV cache."""
        return 0

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. `add_special` adds BOS and EOS as the tokenizer says."""
        self._tokenizer.update_options(add_special_tokens="true" if add_special else "false")
        return [int(token) for token in self._tokenizer.encode(text)]


class OpenvinoVocabulary:
    """The tokenizer of an OpenVINO folder. It always reads the names of special tokens as tokens."""

    name = "openvino"

    def __init__(self, path: Path) -> None:
        """Load the tokenizer in `path`. Raises SaapError when OpenVINO GenAI cannot."""
        import openvino_genai as genai

        try:
            self._tokenizer: Any = genai.Tokenizer(str(path), INFERENCE_NUM_THREADS=1)
        except Exception as error:  # the binding raises nothing more specific
            raise SaapError(f"it cannot be loaded: {error}") from None
        self.vocab_size = 0  # it does not tell

    def kv_bytes_per_token(self) -> int:
        """0: a tokenizer has no KV cache."""
        return 0

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. `add_special` adds BOS and EOS as the tokenizer says."""
        ids = self._tokenizer.encode(text, add_special_tokens=add_special).input_ids.data
        return [int(token) for token in ids[0]]


def _write_graph(folder: Path) -> None:
    """Write a graph that returns the ids as logits, and the configuration that genai demands."""
    import onnx
    from onnx import TensorProto, helper

    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", 1])
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "last"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "nothing", [ids], [logits], [last])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), folder / "g.onnx")
    decoder = {
        "session_options": {"provider_options": []}, "filename": "g.onnx", "head_size": 1, "hidden_size": 1,
        "num_attention_heads": 1, "num_hidden_layers": 1, "num_key_value_heads": 1,
        "inputs": {"input_ids": "input_ids"}, "outputs": {"logits": "logits"},
    }  # fmt: skip
    model = {"type": "llama", "context_length": 1, "vocab_size": 1, "decoder": decoder}
    model |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = {"model": model, "search": {"max_length": 1}}
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")


register_engine(
    EngineRecord(
        GenaiVocabulary.name,
        GenaiVocabulary.name,
        "onnxruntime_genai",
        vocabulary="saap_edge.engines.vocabularies:GenaiVocabulary",
    )
)
