"""Tiny random models of every family, dense and pruned: enough to check arithmetic, small enough to be quick."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from saap_edge.cli import base
from saap_edge.families import FAMILIES
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import build_pruned, load_model, save_model
from saap_edge.model.spec import LayerShape, canonical_config, for_transformers_4
from tests.fast import pytest_collection_modifyitems, pytest_ignore_collect  # noqa: F401

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs, 12345 times!\n" * 40
VOCABULARY = 320
# Differs in every layer, on the grid of 32 (head_dim 16, two query heads a kv head).
WIDTHS = [LayerShape(8, 4, 96), LayerShape(4, 2, 64), LayerShape(2, 1, 32)]


# What Qwen2's tokenizer splits text with; transformers gives every qwen2 folder this rule.
QWEN2_SPLIT = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"
    "|\\s+(?!\\S)|\\s+"
)


def tiny_tokenizer(family: str = "llama", size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family != "qwen2")
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if family == "qwen2" else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


GRANITE = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1}
# What makes a family itself, with values that matter to the answers.
EXTRAS: dict[str, dict] = {
    "mistral": {"sliding_window": 64},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64,
            "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
        },
    },
    "phi3": {"sliding_window": None, "pad_token_id": 0, "original_max_position_embeddings": 128},
    "granite": GRANITE,
    "granitemoehybrid": GRANITE | {"num_local_experts": 0, "position_embedding_type": "rope", "mamba_n_heads": 32},
    "hunyuan_v1_dense": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "alpha": 5.0, "factor": 1.0},
    },
    "smollm3": {"no_rope_layer_interval": 2, "pad_token_id": 0},
    "lfm2": {"conv_L_cache": 3, "block_auto_adjust_ff_dim": False, "pad_token_id": 0},
    "qwen3_5_text": {
        "linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "pad_token_id": 0,
    },
    "gemma4_text": {
        "sliding_window": 8, "global_head_dim": 32, "hidden_size_per_layer_input": 32, "pad_token_id": 0,
        "final_logit_softcapping": 30.0,
    },
    "nemotron_h": {
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 16, "chunk_size": 16,
        "pad_token_id": 0,
    },
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0, "pad_token_id": 0},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 24, "sliding_window_pattern": 2, "pad_token_id": 0},
}  # fmt: skip

NOT_IN_4 = ("qwen3_5_text", "ministral3", "nemotron_h", "gemma4_text")
MADE_HERE = tuple(name for name in FAMILIES if not TRANSFORMERS_4 or name not in NOT_IN_4)


def skip_without(family: str) -> None:
    """Skip a test of a family that this transformers does not have."""
    if family not in MADE_HERE:
        pytest.skip(f"transformers 4 does not have {family}")


def raw_model(family: str, tied: bool = True, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random 3-layer model of transformers' own class, hidden 64; every structure matters to the logits."""
    skip_without(family)
    torch.manual_seed(seed)
    shape: dict = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": 128,
        "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.1,
    } | EXTRAS.get(family, {}) | overrides  # fmt: skip
    if family == "lfm2":
        kinds = ["conv", "full_attention", "full_attention"]
        shape = {"layer_types": [kinds[index % 3] for index in range(shape["num_hidden_layers"])]} | shape
    if family == "qwen3_5_text":
        kinds = ["linear_attention", "full_attention", "full_attention"]
        shape = {"layer_types": [kinds[index % 3] for index in range(shape["num_hidden_layers"])]} | shape
    if family == "gemma4_text":
        kinds = ["sliding_attention", "full_attention"]
        kinds = [kinds[(index + 1) % 3 == 0] for index in range(shape["num_hidden_layers"])]
        shape = {"layer_types": kinds, "vocab_size_per_layer_input": shape["vocab_size"]} | shape
    if family == "nemotron_h":
        kinds = ["linear_attention", "full_attention", "mlp"]
        blocks = [kinds[index % 3] for index in range(shape.pop("num_hidden_layers"))]
        shape = {"layers_block_type": blocks} | shape | {"tie_word_embeddings": False}
    if family == "granitemoehybrid":  # without Mamba
        layers = ["attention"] * shape["num_hidden_layers"]
        shape = {"layer_types": layers, "shared_intermediate_size": shape["intermediate_size"]} | shape
        if TRANSFORMERS_4:  # whose class reads no head_dim
            shape["head_dim"] = shape["hidden_size"] // shape["num_attention_heads"]
    config = AutoConfig.for_model(family, **for_transformers_4(shape))
    # The default of transformers 4 drops Gemma 2's cap on scores.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                centred = FAMILIES[family].gated and "linear_attn" not in name
                parameter.uniform_(*((-0.5, 0.5) if centred else (0.5, 1.5)))
            if family == "gemma4_text" and "q_norm" in name:  # scores are not scaled: trained ones are small
                parameter.mul_(parameter.numel() ** -0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


def tiny_model(family: str, tied: bool = True, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """`raw_model` as saap-edge loads it: in its canonical form."""
    model = raw_model(family, tied, seed, **overrides)
    config = model.config.to_dict()
    if canonical_config(config) == config:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_model(folder)


def randomise_projections(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """Random values for what `build_pruned` leaves uninitialised."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("_proj", ".conv_", "A_log", "dt_bias")) and ".mamba." not in name:
                parameter.normal_(0, 0.1)
    return model


def write_folder(model: PreTrainedModel, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    size = min(VOCABULARY, config["vocab_size"])
    tiny_tokenizer(config.get("base_model_type") or config["model_type"], size).save_pretrained(folder)
    save_model(model, folder, folder)
    return folder


def cut_short(folder: Path, name: str, rows: int) -> Path:
    """The folder with the first rows of a tensor only: not what its config says."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][:rows].clone()
    save_file(tensors, folder / "model.safetensors")
    return folder


# Enter as Llama: their exports are Llama's, so that one of them shows the way through both exporters.
AS_LLAMA = ("mistral", "ministral3", "phi3", "granite", "granitemoehybrid", "ernie4_5")
STATEFUL = ("lfm2", "qwen3_5_text", "nemotron_h")  # what some of their layers remember is no keys and values
PER_LAYER = [name for name, family in FAMILIES.items() if not family.uniform_only]
DEEP = [name for name in PER_LAYER if not FAMILIES[name].no_depth]


@pytest.fixture(scope="session", autouse=True)
def no_progress_lines():
    """On a busy machine anything may take long enough for a line of progress: not in tests of what is said else."""
    base.bars.waits = lambda: iter([1e6])


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Every family."""
    return str(request.param)


@pytest.fixture(scope="session", params=PER_LAYER)
def per_layer_family(request: pytest.FixtureRequest) -> str:
    """Families whose layers may have different widths."""
    return str(request.param)


@pytest.fixture(scope="session", params=DEEP)
def deep_family(request: pytest.FixtureRequest) -> str:
    """Families whose layers may also lose their whole attention or FFN."""
    return str(request.param)


@pytest.fixture(scope="session", params=["llama", "qwen2"])
def exported_family(request: pytest.FixtureRequest) -> str:
    """Families that the slow tests of exporters and of whole chains run on."""
    return str(request.param)


@pytest.fixture(scope="session")
def dense_folder(exported_family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tiny_model(exported_family), tmp_path_factory.mktemp(f"{exported_family}-dense"))


@pytest.fixture(scope="session")
def pruned_folder(exported_family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose layers all have different widths."""
    model = randomise_projections(build_pruned(tiny_model(exported_family), WIDTHS))
    return write_folder(model, tmp_path_factory.mktemp(f"{exported_family}-pruned"))
