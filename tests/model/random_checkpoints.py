"""Random valid checkpoints of every family, in the layouts people really have; each is drawn from its number alone.

A case is a tiny random model (transformers' own class, or ours of per-layer widths) of which everything varies that
varies among published folders: which head is stored, types, shards, names, config.json in old and new words and with
fields left out, tables that older libraries left behind, a quantization_config that was forgotten.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from saap_edge.families import FAMILIES
from saap_edge.model.folder import build_pruned
from saap_edge.model.spec import PRUNED_TYPE, LayerShape, for_transformers_4
from saap_edge.model.stored import INDEX_FILE, SINGLE_FILE
from tests.conftest import VOCABULARY, randomise_projections, raw_model, tiny_model, tiny_tokenizer

__all__ = ["KINDS", "Draft", "write_valid"]

_OURS = ("llama", "qwen2", "qwen3", "hunyuan_v1_dense", "lfm2", "qwen3_5_text", "nemotron_h", "gemma4_text")
KINDS = (*FAMILIES, *(f"{PRUNED_TYPE}/{name}" for name in _OURS))
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# What transformers' own class has for a field that a folder leaves out is not always that of a tiny model.
_BIASED = ("llama", "qwen3", "granite", "granitemoehybrid", "hunyuan_v1_dense", "gemma2", "gemma3_text")
_ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
)  # fmt: skip


@dataclass
class Draft:
    """A checkpoint before it is written: its config, its tensors, in how many shards, and in words what was drawn."""

    kind: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    shards: int  # 0: one file without an index
    words: list[str]

    def say(self, word: str) -> None:
        self.words.append(word)

    def write(self, folder: Path) -> None:
        """The folder without its tokenizer."""
        (folder / "config.json").write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        if not self.shards:
            save_file(self.tensors, folder / SINGLE_FILE, {"format": "pt"})
            return
        files = [f"model-{index + 1:05}-of-{self.shards:05}.safetensors" for index in range(self.shards)]
        if self.shards == 1 and "index of the single file" in self.words:
            files = [SINGLE_FILE]
        places = {name: files[index % len(files)] for index, name in enumerate(self.tensors)}
        for file in files:
            part = {name: self.tensors[name] for name in places if places[name] == file}
            save_file(part, folder / file, {"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": places}
        (folder / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")


def _dense(dice: random.Random, family: str) -> Any:
    """A random model of transformers' class: tied or not, with biases or not, grouped heads or not."""
    gemma = FAMILIES[family].gemma is not None
    heads, head_dim = 4, dice.choice([16, 32] if gemma else [8, 8, 16])
    overrides: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": heads,
        "num_key_value_heads": dice.choice([1, 2, heads]), "head_dim": head_dim,
        "rms_norm_eps": dice.choice([1e-5, 1e-6]),
    }  # fmt: skip
    if family in _BIASED and dice.random() < 0.3:
        overrides["attention_bias"] = True
    if family == "ernie4_5" and dice.random() < 0.3:
        overrides["use_bias"] = True
    if family in ("llama", "mistral", "qwen2", "qwen3", "granite", "granitemoehybrid", "ernie4_5", "lfm2"):
        overrides["rope_parameters"] = {"rope_theta": dice.choice([1e4, 5e5]), **dice.choice(_ROPES)}
    if family in ("qwen2", "qwen3") and dice.random() < 0.3:
        overrides |= {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": dice.choice([0, 1, 2])}
    if family == "phi3" and head_dim == 8 and dice.random() < 0.4:  # transformers counts factors by hidden / heads
        half = head_dim // 2
        overrides["rope_parameters"] = {
            "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
            "short_factor": [1.0 + index / half for index in range(half)], "long_factor": [2.0] * half,
        }  # fmt: skip
        overrides["original_max_position_embeddings"] = 64
    if family == "hunyuan_v1_dense":
        alpha = {"rope_type": "dynamic", "factor": 1.0, "alpha": dice.choice([5.0, 1000.0])}
        overrides["rope_parameters"] = {"rope_theta": 1e4, **dice.choice([alpha, alpha, *_ROPES])}
    if family == "lfm2":
        overrides["layer_types"] = dice.choice([["conv", "full_attention"], ["full_attention", "conv"]])
        overrides |= {"conv_L_cache": dice.choice([2, 3, 5]), "block_auto_adjust_ff_dim": dice.random() < 0.5}
        overrides |= {"block_multiple_of": 32, "norm_eps": overrides.pop("rms_norm_eps")}
    if family == "qwen3_5_text":
        kinds = ["linear_attention", "full_attention"]
        overrides["layer_types"] = dice.choice([kinds, kinds[::-1]])
        overrides |= {"linear_num_key_heads": 2, "linear_num_value_heads": dice.choice([2, 4])}
        overrides |= {"linear_value_head_dim": dice.choice([16, 32]), "linear_conv_kernel_dim": dice.choice([2, 4])}
        share = dice.choice([0.25, 0.5, 1.0]) if head_dim == 8 else 0.25
        overrides["rope_parameters"] = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": share}
    if family == "nemotron_h":
        kinds = ["linear_attention", "full_attention", "mlp"]
        overrides["layers_block_type"] = dice.sample(kinds, 3)
        overrides |= {"layer_norm_epsilon": overrides.pop("rms_norm_eps"), "mlp_bias": dice.random() < 0.3}
        overrides |= {"n_groups": dice.choice([1, 2, 8]), "use_conv_bias": dice.random() < 0.5}
        overrides |= {"conv_kernel": dice.choice([2, 4]), "ssm_state_size": dice.choice([8, 16])}
    if family == "gemma4_text":
        overrides |= {"sliding_window": dice.choice([8, 64]), "layer_types": ["sliding_attention", "full_attention"]}
        overrides |= {"global_head_dim": dice.choice([head_dim, 2 * head_dim]), "attention_k_eq_v": dice.random() < 0.3}
        overrides |= {"hidden_size_per_layer_input": dice.choice([0, 32]), "num_global_key_value_heads": 1}
        if dice.random() < 0.5:  # as E2B: each of the last two borrows
            kinds = [*overrides["layer_types"]] * 2
            overrides |= {"layer_types": kinds, "num_hidden_layers": 4, "num_kv_shared_layers": 2}
            overrides |= {"hidden_size_per_layer_input": 32, "use_double_wide_mlp": dice.random() < 0.5}
    elif gemma:
        overrides |= {"query_pre_attn_scalar": dice.choice([head_dim, 24]), "sliding_window": dice.choice([8, 64])}
        overrides["sliding_window_pattern"] = 2
    model = raw_model(family, dice.random() < 0.5, dice.randrange(2**31), **overrides)
    if gemma and FAMILIES[family].centred_norms:  # 1 is added to these weights: trained ones lie around 0
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.sub_(1)
    return model


def _per_layer(dice: random.Random, family: str) -> Any:
    """A random model of ours, whose layers have different widths."""
    dense = tiny_model(
        family, dice.random() < 0.5, dice.randrange(2**31), hidden_size=32, intermediate_size=64,
        num_hidden_layers=3 if family == "nemotron_h" else 2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    others = [LayerShape(2, 1, 64), LayerShape(0, 0, 64), LayerShape(2, 1, 0)]
    if family in ("lfm2", "qwen3_5_text"):  # one layer with attention has to stay
        del others[1]
    if FAMILIES[family].no_depth:
        others = [LayerShape(2, 1, 64), LayerShape(2, 2, 32)]
    widths = [LayerShape(4, 2, 32), dice.choice(others)]
    if family == "nemotron_h":  # of which every third block has an FFN
        widths = [LayerShape(2, 1, 32)] * 3
    return randomise_projections(build_pruned(dense, widths), dice.randrange(2**31))


@cache
def tokenizer_files(family: str) -> dict[str, bytes]:
    """The tokenizer of a family's tiny models, by file name."""
    with tempfile.TemporaryDirectory() as scratch:
        tiny_tokenizer(family).save_pretrained(scratch)
        return {path.name: path.read_bytes() for path in Path(scratch).iterdir()}


def draft(number: int) -> Draft:
    """The checkpoint of a number."""
    dice = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    pruned, _, family = kind.rpartition("/")
    with tempfile.TemporaryDirectory() as scratch:
        (_per_layer if pruned else _dense)(dice, family).save_pretrained(scratch)
        config = for_transformers_4(json.loads((Path(scratch) / "config.json").read_text(encoding="utf-8")))
        made = Draft(kind, config, load_file(Path(scratch) / SINGLE_FILE), 0, [f"{number}: {kind}"])
    for change in (_head, _types, _names, _leftovers, _files, _rope_words, _left_out, _odd_but_legal):
        change(dice, made)
    return made


def write_valid(number: int, folder: Path) -> Draft:
    """Write the checkpoint of a number, with tokenizer and, by chance, generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    made, dice = draft(number), random.Random(-1 - number)
    made.write(folder)
    for name, content in tokenizer_files(made.kind.rpartition("/")[2]).items():
        (folder / name).write_bytes(content)
    if dice.random() < 0.6:
        generation = {"eos_token_id": dice.choice([0, [0, 3]]), "do_sample": True, "temperature": 0.7, "top_p": 0.9}
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    if dice.random() < 0.2:  # what a training leaves beside its model
        (folder / "training_args.bin").write_bytes(b"\x80\x04.")
        (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
        (folder / "global_step7").mkdir()
    return made


# What varies. Each changes the draft; all of it leaves a checkpoint that transformers reads.


def _head(dice: random.Random, made: Draft) -> None:
    if not made.config["tie_word_embeddings"]:
        return
    embedding = made.tensors[EMBEDDING]
    layout = dice.choice(["tied", "copy stored", "only the head stored", "a head of its own", "untied copy"])
    made.say(f"tied: {layout}")
    if layout == "only the head stored":
        made.tensors[HEAD] = made.tensors.pop(EMBEDDING)
    elif layout != "tied":
        own = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(dice.randrange(2**31))) * 0.1
        made.tensors[HEAD] = own if layout == "a head of its own" else embedding.clone()
    if layout == "untied copy":
        made.config["tie_word_embeddings"] = False


def _types(dice: random.Random, made: Draft) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    one = dice.choice([*kinds, None])
    made.say(str(one or "types mixed").replace("torch.", ""))
    together = dice.choice(kinds)  # an embedding and its stored copy, which are compared
    for name, tensor in made.tensors.items():
        dtype = one or (together if name in (EMBEDDING, HEAD) else dice.choice(kinds))
        made.tensors[name] = tensor.to(dtype)
    for name in ("dtype", "torch_dtype"):
        made.config.pop(name, None)
    if dice.random() < 0.7:  # what it says decides nothing: weights are read as they are stored
        made.config[dice.choice(["dtype", "torch_dtype"])] = dice.choice(["float32", "float16", "bfloat16"])


def _names(dice: random.Random, made: Draft) -> None:
    layout = dice.choices(["plain", "no model.", "model.model."], [4, 1, 1])[0]
    if made.kind.startswith(PRUNED_TYPE):
        layout = "plain"  # no tool but ours writes them
    if layout == "no model." and HEAD in made.tensors:
        layout = "plain"  # a decoder alone has no head
    if layout != "plain":
        made.say(f"names: {layout}")
    rename: Callable[[str], str] = {
        "plain": lambda name: name,
        "no model.": lambda name: name.removeprefix("model."),
        "model.model.": lambda name: f"model.{name}" if name.startswith("model.") else name,
    }[layout]
    made.tensors = {rename(name): tensor for name, tensor in made.tensors.items()}


def _leftovers(dice: random.Random, made: Draft) -> None:
    if dice.random() < 0.25:
        made.say("inv_freq stored")
        first = next(name for name in made.tensors if "layers." in name)
        for layer in ("0", "1"):
            prefix = first.partition("layers.")[0]
            made.tensors[f"{prefix}layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(4)


def _files(dice: random.Random, made: Draft) -> None:
    made.shards = dice.choice([0, 0, 1, 2, 3])
    if made.shards == 1 and dice.random() < 0.5:
        made.say("index of the single file")
    elif made.shards:
        made.say(f"{made.shards} shards")


def _rope_words(dice: random.Random, made: Draft) -> None:
    """Only the words of transformers 4, only those of 5, or both, as we write them."""
    config = made.config
    rope = config.get("rope_parameters") or {}
    words = dice.choice(["4", "5", "both"])
    made.say(f"rope of transformers {words}, {rope.get('rope_type', 'by layer')}")
    if words == "5":
        for name in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
            config.pop(name, None)
    elif words == "4":
        made.config = config = for_transformers_4(config)
        config.pop("rope_parameters", None)
        if dice.random() < 0.5:
            config.setdefault("rope_scaling", None)
        if (config.get("rope_scaling") or {}).get("rope_type") and dice.random() < 0.5:
            config["rope_scaling"]["type"] = config["rope_scaling"].pop("rope_type")


def _left_out(dice: random.Random, made: Draft) -> None:
    """Fields of which transformers has the same value where they are absent."""
    if made.kind.startswith(PRUNED_TYPE):
        return
    assumed = AutoConfig.for_model(made.kind).to_dict()
    for name in list(made.config):
        same = name in assumed and made.config[name] == assumed[name]
        if same and name not in ("model_type", "rope_parameters", "rope_scaling") and dice.random() < 0.6:
            del made.config[name]
    hidden, heads = made.config["hidden_size"], made.config["num_attention_heads"]
    # Only these two classes take the head's width from the others where it is not said.
    whole = made.config.get("head_dim") == hidden // heads and made.kind in ("llama", "mistral")
    if whole and dice.random() < 0.6:
        made.say("head_dim absent")
        made.config.pop("head_dim")
    if made.config.get("num_key_value_heads") == heads and made.kind == "llama" and dice.random() < 0.6:
        made.say("num_key_value_heads absent")
        made.config.pop("num_key_value_heads")


def _odd_but_legal(dice: random.Random, made: Draft) -> None:
    config = made.config
    choices: dict[str, Any] = {
        "use_cache": False, "output_attentions": False, "attention_dropout": 0.1, "pretraining_tp": 1, "mystery": [1],
        "transformers_version": "4.31.0", "_name_or_path": "/root/models/mine", "initializer_range": 0.5,
        "architectures": None, "pad_token_id": dice.choice([None, 0, VOCABULARY - 1]),
        "eos_token_id": dice.choice([[0, 5], 0, None, [0]]), "bos_token_id": dice.choice([None, 0, 1]),
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    }  # fmt: skip
    for name in dice.sample(sorted(choices), 4):
        made.say(name)
        config[name] = choices[name]
