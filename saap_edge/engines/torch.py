"""Plain torch as an engine: a Hugging Face folder through transformers, as most people run a model.

A dense folder gets the class that its config.json names. A pruned folder carries the file of its class, which is run
only if it equals, byte for byte, the file that saap-edge writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saap_edge.engines.base import ArtifactCost
from saap_edge.engines.lazy import lazy_import
from saap_edge.engines.registry import EngineRecord, register_engine
from saap_edge.engines.replay import replay
from saap_edge.errors import SaapError

__all__ = ["TorchEngine", "load_transformers"]

CONFIG_FILE = "config.json"
MODELLING_FILE = Path(__file__).parents[1] / "model" / "modeling_saap_edge.py"
FLOAT32 = 4  # bytes
# [channels, 1, taps]
_KERNEL = re.compile(r"\.(conv\.conv|linear_attn\.conv(1d|_q|_k|_v)|(mamba|mixer)\.conv1d)\.weight$")
torch, transformers, safetensors = lazy_import("torch"), lazy_import("transformers"), lazy_import("safetensors")


class TorchEngine:
    """A Hugging Face folder on the CPU, with transformers' own attention and KV cache.

    `dtype` is the type of weights, arithmetic and cache; a subclass may have another.
    """

    name, dtype = "torch", "float32"

    def __init__(self, path: Path, threads: int, context: int) -> None:
        """Load `path`. Raises SaapError when it is no model, holds fewer than `context` tokens, or carries code that is
        not saap-edge's."""
        self.path, self.threads, self.context = Path(path), threads, context
        longest = folder_context(self.path)
        if longest is not None and not 0 < context <= longest:
            raise SaapError(f"'{path}': a context of {context} tokens is outside the model's 1 to {longest}")
        torch.set_num_threads(threads)
        self._model = load_transformers(self.path, self.dtype)
        self.vocab_size = int(self._model.get_output_embeddings().weight.shape[0])
        self.reset()

    @staticmethod
    def import_runtime() -> None:
        """Import what loading would import: transformers imports most of itself only when it is used."""
        for name in ("AutoModelForCausalLM", "DynamicCache", "LlamaForCausalLM"):
            getattr(transformers, name)

    def reset(self) -> None:
        """Forget the sequence; the KV cache is empty again."""
        self._length, self._held = 0, list[int]()
        self._cache = self._new_cache()

    def _new_cache(self) -> Any:
        """A cache that keeps all tokens, of layers with a sliding window too, and what other layers remember."""
        kinds = getattr(self._model.config, "layer_types", None) or ()
        stateful = "conv" in kinds or "linear_attention" in kinds
        return transformers.DynamicCache(config=self._model.config) if stateful else transformers.DynamicCache()

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Raises ValueError when the sequence is shorter."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot keep {length} of {self._length} tokens")
        held = self._held[:length]
        if length < self._length and any(hasattr(layer, "conv_states") for layer in self._cache.layers):
            replay(self, held)  # what convolutions and DeltaNets remember has no way back
        for layer in self._cache.layers:  # Cache.crop takes the tokens that stay in transformers 4, that go in 5
            if getattr(layer, "keys", None) is not None:
                layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        self._length, self._held = length, held

    def forward(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Append `tokens` and return logits float32: [len(tokens), vocab], or [1, vocab] of the last.

        Raises ValueError on no tokens, on an id outside the vocabulary, and when the sequence would outgrow `context`.
        """
        count = len(tokens)
        if not count or min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"token ids must be in 0 to {self.vocab_size - 1}, at least one")
        if self._length + count > self.context:
            raise ValueError(f"{self._length} tokens and {count} more do not fit into a context of {self.context}")
        ids = torch.tensor([list(tokens)])
        with torch.inference_mode():
            answer = self._model(
                input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=0 if all_logits else 1
            )
        self._length += count
        self._held += tokens
        logits: np.ndarray = answer.logits[0].float().numpy()
        return logits

    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes: keys and values of every layer's own kv heads."""
        cache = self._new_cache()
        with torch.inference_mode():
            self._model(input_ids=torch.tensor([[0]]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
        held = (tensor for layer in layers for tensor in (layer.keys, layer.values))
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def describe(self) -> dict[str, Any]:
        """Runtime, model and settings: conditions that belong beside every figure."""
        return {
            "engine": self.name,
            "version": f"{torch.__version__}, transformers {transformers.__version__}",
            "architecture": type(self._model).__name__,
            "parameters": int(self._model.num_parameters()),
            "threads": self.threads,
            "context": self.context,
            "vocab_size": self.vocab_size,
            "kv_type": self.dtype.replace("float", "f"),
            "kv_bytes_per_token": self.kv_bytes_per_token(),
        }


def folder_context(path: Path) -> int | None:
    """Tokens of the longest sequence; None where config.json does not state it."""
    return _number(_config(path), "max_position_embeddings")


def folder_vocab_size(path: Path) -> int | None:
    """Number of logits for a token; None where config.json does not state it."""
    return _number(_config(path), "vocab_size")


def folder_cost(path: Path, artifact_format: str | None) -> ArtifactCost:
    """The cost in float32, from the headers of the weights. Raises SaapError when the folder is damaged."""
    config, shapes = _config(path), _shapes(path)
    keys = sum(shape[0] for name, shape in shapes.items() if name.endswith(("k_proj.weight", "v_proj.weight")))
    if not keys:
        raise SaapError(f"'{path}': what its KV cache takes cannot be told from the names of its weights")
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    untied = "lm_head.weight" in sizes and not config.get("tie_word_embeddings")
    tables = ("embed_tokens.weight", ".embeddings.weight") if untied else ()  # of which a token reads one row
    rows = (*tables, "embed_tokens_per_layer.weight")
    read = sum(size for name, size in sizes.items() if not name.endswith(rows))
    return ArtifactCost(
        artifact_format or "torch-f32", FLOAT32 * read, FLOAT32 * keys,
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()), sum(sizes.values()),
        folder_context(path),
        state_bytes=FLOAT32 * _remembered(config, sizes),
    )  # fmt: skip


_OF_STATES = ("linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim", "ssm_state_size")


def _remembered(config: dict[str, Any], sizes: dict[str, int]) -> int:
    """Numbers beside keys and values that a model remembers in transformers; of a convolution, a token for each tap."""
    tokens = sum(size for name, size in sizes.items() if _KERNEL.search(name))
    heads = sum(size for name, size in sizes.items() if name.endswith(".A_log"))
    keys, values, width, states = (_number(config, name) or 0 for name in _OF_STATES)
    return tokens + heads * (keys * values + width * states)


def load_transformers(path: Path, dtype: str) -> Any:
    """The model of a folder, of the class that its config.json names, with weights of type `dtype`.

    Raises SaapError when it is no model, or carries code that is not saap-edge's.
    """
    config = _config(path)
    ours = _carries_our_code(path, config)
    # The default of transformers 4 drops the cap of attention scores without a word.
    attention = {"attn_implementation": "eager"} if config.get("attn_logit_softcapping") else {}
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(path), dtype=getattr(torch, dtype), trust_remote_code=ours, local_files_only=True, **attention
        )
    except Exception as error:  # of transformers, safetensors, torch: they share no base class
        raise SaapError(
            f"'{path}': transformers cannot load it: {(str(error) or 'no reason').splitlines()[0]}"
        ) from None
    return model.eval()


def _carries_our_code(path: Path, config: dict[str, Any]) -> bool:
    """Whether the folder carries the class that saap-edge gives pruned models. Raises SaapError for other code."""
    if "auto_map" not in config:
        return False
    file = path / MODELLING_FILE.name
    if not file.is_file() or file.read_bytes() != MODELLING_FILE.read_bytes():
        raise SaapError(
            f"'{path}' carries code of its own (auto_map in {CONFIG_FILE}), which is not run: export it again"
        )
    return True


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SaapError(f"'{path / CONFIG_FILE}' cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise SaapError(f"'{path / CONFIG_FILE}' is damaged: export the model again")
    return config


def _number(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of all weights, from the headers of the files."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in sorted(path.glob("model*.safetensors")):
            with safetensors.safe_open(str(file), framework="numpy") as stored:
                shapes |= {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has several
        raise SaapError(f"'{path}' is damaged: {error}") from None
    if not shapes:
        raise SaapError(f"'{path}' has no weights (model.safetensors)")
    return shapes


register_engine(
    EngineRecord(
        TorchEngine.name, "transformers", "transformers", "saap_edge.engines.torch:TorchEngine", kind="torch",
        opens=lambda path: (path / CONFIG_FILE).is_file() and bool([*path.glob("*.safetensors*")]),
        context=folder_context, vocab_size=folder_vocab_size, cost=folder_cost,
        chat="saap_edge.engines.chat:TorchChat",
    )
)  # fmt: skip
