"""Building, loading and saving models. A pruned model is a Hugging Face folder that AutoModelForCausalLM loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from saap_edge.errors import SaapError
from saap_edge.machine.launch import processes
from saap_edge.model import modeling_saap_edge
from saap_edge.model.by_layer import pruned_config
from saap_edge.model.chat import read_generation
from saap_edge.model.checkpoint import Checkpoint, open_checkpoint
from saap_edge.model.classes import empty_model, parsed_config
from saap_edge.model.inventory import HEAD
from saap_edge.model.modeling_saap_edge import SaapEdgeConfig, SaapEdgeForCausalLM
from saap_edge.model.spec import (
    ATTENDS_NOWHERE,
    PRUNED_TYPE,
    LayerShape,
    ModelSpec,
    attends_nowhere,
    for_transformers_4,
    mixed_as,
    spec_from_config,
)
from saap_edge.model.tensors import TensorStore
from saap_edge.model.tokenizer_files import copy_tokenizer
from saap_edge.model.values import require_finite

__all__ = ["build_pruned", "load_model", "placement", "save_model", "spec_of"]

MODELING_FILE = Path(modeling_saap_edge.__file__)


def placement() -> str | dict[str, Any] | None:
    """The device map of a model that is only run and scored: "auto" (all GPUs, by accelerate), or None for the CPU.

    In a launch of several processes, each has its own GPU (`LOCAL_RANK`).
    """
    if not torch.cuda.is_available():
        return None
    return {"": f"cuda:{os.environ.get('LOCAL_RANK', 0)}"} if processes() > 1 else "auto"


def load_model(
    folder: str | Path, dtype: torch.dtype = torch.float32, device_map: str | dict[str, Any] | None = None
) -> PreTrainedModel:
    """Load a dense or pruned folder in evaluation mode, in its family's canonical form.

    `device_map` is accelerate's; without one the model is on the CPU. Raises SaapError as `open_checkpoint`, when a
    weight is not finite, and when the devices do not hold the model.
    """
    checkpoint = open_checkpoint(folder)
    try:
        model = _dispatched(_filled(checkpoint, dtype), device_map)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise SaapError(f"cannot load the model in '{folder}': {str(error).splitlines()[0]}") from error
    if model is None or any(parameter.is_meta for parameter in model.parameters()):
        raise SaapError(
            f"the GPUs do not hold the model in '{folder}': score in bfloat16, or use the CPU (CUDA_VISIBLE_DEVICES=)"
        )
    return cast(PreTrainedModel, model.eval())


def _filled(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """transformers' model, filled tensor by tensor, so that no tensor gets a value that is not from the files."""
    config = parsed_config(checkpoint.canonical)
    config.dtype = dtype  # before the model is built: Gemma's factor on embeddings is a buffer of this type
    store = TensorStore(checkpoint.folder)
    model = empty_model(config)
    tied = {HEAD} if checkpoint.spec.tied else set()
    kept = {name for name, _ in _kept_buffers(model)}
    for name in [name for name in (*(name for name, _ in model.named_parameters()), *kept) if name not in tied]:
        tensor = store.tensor(name)
        require_finite(checkpoint.folder, store.stored_name(name), tensor)
        owner, _, leaf = name.rpartition(".")
        value = tensor.to(dtype)
        setattr(model.get_submodule(owner), leaf, value if name in kept else torch.nn.Parameter(value))
    if tied:
        model.tie_weights()
    if (checkpoint.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(checkpoint.folder))
    return model


def _kept_buffers(model: Any) -> list[tuple[str, torch.Tensor]]:
    """Buffers that are stored with a model's parameters: Gemma 4's factors of layers."""
    stored = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in stored]


def _dispatched(model: Any, device_map: str | dict[str, Any] | None) -> Any | None:
    """The model spread as `from_pretrained` would with this device map; None if that would need the disk."""
    if device_map is None:
        return model
    if device_map == "auto":
        whole = list(model._no_split_modules)
        memory = get_balanced_memory(model, no_split_module_classes=whole)
        device_map = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    places = cast(dict[str, Any], device_map)
    return None if "disk" in places.values() else dispatch_model(model, places)


def _empty(make: Callable[[Any], Any], config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model with parameters and buffers allocated, once and in their final type, but not set."""
    with torch.device("meta"):
        model = make(config)
    model = model.to(dtype).to_empty(device=device)
    if config.tie_word_embeddings:
        model.tie_weights()
    return model


def spec_of(model: PreTrainedModel) -> ModelSpec:
    """The shape of a loaded model."""
    return spec_from_config(model.config.to_dict())


def build_pruned(dense: PreTrainedModel, layers: list[LayerShape]) -> PreTrainedModel:
    """A model of the given widths (one shape per dense layer) that holds all of `dense` except its projections.

    Projections are left uninitialised, and layers of which nothing is left are left out. If all layers are alike and
    the family's own class can hold them, the result is of that class, which every tool opens; else it is a
    SaapEdgeForCausalLM. It has the dense model's dtype and device. Raises SaapError when neither class can hold it.
    """
    spec = spec_of(dense)
    layers = mixed_as(layers, spec.layers)
    stay = [index for index, shape in enumerate(layers) if not shape.gone]
    if not stay:
        raise SaapError("every layer would be removed whole: keep at least one")
    if attends_nowhere(layers):
        raise SaapError(ATTENDS_NOWHERE)
    if spec.family.no_depth and not all(shape.heads and shape.ffn for shape in layers):
        raise SaapError(f"attention or FFN cannot be removed whole: {spec.family.no_depth}")
    for index, (shape, before) in enumerate(zip(layers, spec.layers, strict=True)):
        if shape.kv and shape.kv_heads != before.kv_heads:
            raise SaapError(f"layer {index}: its KV heads stay, because its keys and values are {shape.kv}")
    config = _pruned_config(dense, spec, layers, stay)
    plain = type(config) is type(dense.config) and not _is_pruned(dense)
    device = cast(torch.Tensor, dense.get_input_embeddings().weight).device
    model = _empty(type(dense) if plain else SaapEdgeForCausalLM, config, dense.dtype, device)
    _copy_rest(dense, model, spec, stay)
    model.generation_config = dense.generation_config
    return cast(PreTrainedModel, model.eval())


def _copy_rest(dense: Any, model: Any, spec: ModelSpec, stay: list[int]) -> None:
    """Copy every parameter that belongs to no projection, and every buffer, by name."""
    coupled = {
        f"model.layers.{index}.{name}"
        for index, layer in enumerate(model.model.layers)
        for coupling, projection in spec.family.projections(layer)
        for name in (f"{projection}.", *coupling.beside)
    }
    parameters = dict(dense.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not any(name.startswith(prefix) for prefix in coupled):
                parameter.copy_(parameters[_dense_name(name, stay)])
    for name, buffer in dense.named_buffers():
        owner, _, leaf = name.rpartition(".")
        # Set, not copied: rotary tables stay float32 whatever the model's dtype.
        setattr(model.get_submodule(owner), leaf, buffer.clone())


def _dense_name(name: str, stay: list[int]) -> str:
    """The tensor's name in the dense model; its layer number differs if earlier layers were removed."""
    parts = name.split(".")
    if parts[:2] == ["model", "layers"]:
        parts[2] = str(stay[int(parts[2])])
    return ".".join(parts)


def _is_pruned(model: PreTrainedModel) -> bool:
    return bool(model.config.model_type == PRUNED_TYPE)


def _pruned_config(dense: Any, spec: ModelSpec, layers: list[LayerShape], stay: list[int]) -> Any:
    shapes = [layers[index] for index in stay]
    first, modules = shapes[0], dense.model.layers
    # Repair may have given single layers a bias that the family does not have.
    ends = [getattr(mixer, name) for mixer, name in map(_mixer, modules) if mixer is not None]
    o_bias = any(end.bias is not None for end in ends)
    down_bias = any(layer.mlp is not None and layer.mlp.down_proj.bias is not None for layer in modules)
    alike = len(set(shapes)) == 1 and first.heads > 0 and first.ffn > 0
    # transformers' plain classes refuse other numbers of heads.
    fits = alike and spec.hidden % first.heads == 0 and (o_bias, down_bias) == (spec.o_bias, spec.down_bias)
    whole = len(stay) == len(layers) or not spec.family.uniform_only
    if fits and whole and not _is_pruned(dense):
        return _plain_config(dense, spec, first, stay)
    if spec.family.uniform_only:
        raise SaapError(
            f"{spec.family.title} is saved as its plain class only: all layers alike, no biases from repair, and a "
            f"number of heads that divides the hidden size {spec.hidden}"
        )
    source = {name: value for name, value in dense.config.to_dict().items() if name not in ("dtype", "torch_dtype")}
    unrotated = frozenset(at for at, index in enumerate(stay) if index in spec.unrotated)
    left = replace(spec, layers=tuple(shapes), unrotated=unrotated)
    widths = [[shape.heads, shape.kv_heads, shape.ffn] for shape in shapes]
    config = SaapEdgeConfig(**_plain(pruned_config(source, left, widths, o_bias, down_bias)))
    config._attn_implementation = dense.config._attn_implementation
    return config


def _mixer(layer: Any) -> tuple[Any, str]:
    """A layer's attention or DeltaNet, None where it has neither, and the name of the projection that ends it."""
    if layer.self_attn is not None:
        return layer.self_attn, "o_proj"
    return getattr(layer, "linear_attn", None), "out_proj"


def _plain_config(dense: Any, spec: ModelSpec, shape: LayerShape, stay: list[int]) -> Any:
    config = type(dense.config)(**_plain(dense.config.to_dict()))
    config.head_dim = spec.head_dim
    config.num_attention_heads, config.num_key_value_heads = shape.heads, shape.kv_heads
    config.intermediate_size, config.num_hidden_layers = shape.ffn, len(stay)
    for by_layer in ("layer_types", "no_rope_layers"):
        if getattr(config, by_layer, None):
            setattr(config, by_layer, [getattr(config, by_layer)[index] for index in stay])
    config._attn_implementation = dense.config._attn_implementation
    return config


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A config dictionary without the fields that transformers sets itself."""
    return {name: value for name, value in config.items() if name not in ("model_type", "transformers_version")}


def _as_plain(model: Any) -> Any:
    """The model as transformers' own class, with the same parameters, where its family has one that can hold it."""
    spec = spec_of(model)
    family, first = spec.family, spec.attention
    biased = spec.qkv_bias or spec.o_bias or spec.gate_up_bias or spec.down_bias
    whole = all((layer.heads or layer.conv) and layer.ffn for layer in spec.layers) and spec.hidden % first.heads == 0
    fits = spec.uniform and (_one_bias(spec) if spec.mamba else whole and not biased)
    fits = fits or (family.by_layer and not biased)
    if family.plain is None or not fits or not _is_pruned(model):
        return model
    said = family.plain(model.config.to_dict())
    if said is None:
        return model
    parsed = parsed_config(said)
    named: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        source = family.source(said, name)  # type: ignore[misc]
        named.setdefault(source.name, []).append((source.rows or (0, 0), parameter))
    parsed.dtype = model.dtype
    plain = empty_model(parsed)
    for name, parts in named.items():
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, _stacked(parts))
    for name, buffer in _kept_buffers(model):
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, buffer)
    if spec.tied:
        plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def _one_bias(spec: ModelSpec) -> bool:
    """Whether transformers' class of Mamba-2 blocks has the biases of a model: in all of an FFN or nowhere."""
    return not (spec.qkv_bias or spec.o_bias) and spec.gate_up_bias == spec.down_bias


def _stacked(parts: list[tuple[tuple[int, int], torch.nn.Parameter]]) -> torch.nn.Parameter:
    """The parts of one stored tensor, by their rows in it. A single part is not copied."""
    ordered = [part for _, part in sorted(parts, key=lambda part: part[0])]
    if len(ordered) == 1:
        return ordered[0]
    return torch.nn.Parameter(torch.cat([part.detach() for part in ordered]), requires_grad=False)


def save_model(model: PreTrainedModel, tokenizer_from: str | Path, out: str | Path) -> None:
    """Write a Hugging Face folder: safetensors, config, tokenizer and, for widths per layer, the modelling file.

    transformers 4 and 5 both read it. `tokenizer_from` is a model folder. Raises SaapError as `read_chat` of it.
    A model that is handled as our own class is saved as transformers' if that can hold it (`Family.plain`).
    """
    out, model = Path(out), _as_plain(model)
    generation = read_generation(tokenizer_from)  # before transformers writes its own, maybe to the same folder
    defaults = model.generation_config
    try:
        model.generation_config = GenerationConfig()  # transformers refuses to save some that it loads
        model.save_pretrained(str(out))
    finally:
        model.generation_config = defaults
    config = for_transformers_4(json.loads((out / "config.json").read_text(encoding="utf-8")))
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if _is_pruned(model):
        shutil.copyfile(MODELING_FILE, out / MODELING_FILE.name)
    copy_tokenizer(tokenizer_from, out, generation)
