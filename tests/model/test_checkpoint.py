"""Opening a model folder: read as transformers reads it, or refused in one line that names what is wrong."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from saap_edge.errors import SaapError
from saap_edge.exporting.weights import ExportWeights
from saap_edge.exporting.write import write_artifact
from saap_edge.model.checkpoint import open_checkpoint
from saap_edge.model.classes import TRANSFORMERS_4
from saap_edge.model.folder import load_model
from saap_edge.model.tensors import TensorStore
from saap_edge.model.values import beyond_fp16
from tests.conftest import raw_model, write_folder

IDS = torch.arange(1, 40).view(1, -1)
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
Q = "model.layers.1.self_attn.q_proj.weight"


def stored(folder, change):
    """The folder with other tensors in its single file."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: value.clone().contiguous() for name, value in tensors.items()}, folder / "model.safetensors",
        {"format": "pt"},
    )  # fmt: skip
    return folder


def said(folder, name="config.json", **fields):
    """The folder with other fields in a JSON file; Ellipsis takes one out."""
    path = folder / name
    document = (json.loads(path.read_text()) if path.is_file() else {}) | fields
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))
    return folder


def sharded(folder, remove_single=True):
    tensors = load_file(folder / "model.safetensors")
    places = {}
    for part in range(2):
        file = f"model-{part + 1:05d}-of-00002.safetensors"
        share = dict(list(tensors.items())[part::2])
        save_file(share, folder / file, {"format": "pt"})
        places |= dict.fromkeys(share, file)
    said(folder, "model.safetensors.index.json", metadata={}, weight_map=places)
    if remove_single:
        (folder / "model.safetensors").unlink()
    return folder


def dense(tmp_path, family="llama", tied=False, **shape):
    raw_model(family, tied, **shape).save_pretrained(tmp_path)
    return tmp_path


def agrees(folder):
    """Ours answers as what transformers itself loads."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = load_model(folder)
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, atol=1e-5, rtol=1e-5)
    assert TensorStore(folder).parameters == sum(parameter.numel() for parameter in theirs.parameters())
    return model


def table_as_head(tensors):
    return {HEAD if name == TABLE else name: value for name, value in tensors.items()}


LAYOUTS = {
    "as saved": (False, lambda tensors: tensors),
    "decoder alone": (True, lambda tensors: {name.removeprefix("model."): value for name, value in tensors.items()}),
    "decoder and head": (False, lambda tensors: {name.removeprefix("model."): t for name, t in tensors.items()}),
    "prefix twice": (False, lambda tensors: {f"model.{name}": value for name, value in tensors.items()}),
    "tied, a copy stored": (True, lambda tensors: tensors | {HEAD: tensors[TABLE]}),
    "tied, stored as the head": (True, table_as_head),
    "tied, a head of its own": (True, lambda tensors: tensors | {HEAD: tensors[TABLE] + 0.1}),
    "tables that are computed": (
        True, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
    ),
    "float64": (False, lambda tensors: {name: value.double() for name, value in tensors.items()}),
    "half the tensors in half precision": (
        False, lambda tensors: {n: v.half() if i % 2 else v for i, (n, v) in enumerate(tensors.items())},
    ),
}  # fmt: skip


# What names and a head beside the embedding mean is as in transformers 5, whatever version is installed.
OF_TRANSFORMERS_5 = {
    "decoder alone", "decoder and head", "prefix twice", "tied, stored as the head", "tied, a head of its own",
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "granite", "phi3", "gemma3_text"])
def test_every_layout_that_transformers_reads(name, layout, tmp_path):
    if TRANSFORMERS_4 and layout in OF_TRANSFORMERS_5:
        pytest.skip("transformers 4 fills some of these with random numbers")
    tied, change = LAYOUTS[layout]
    agrees(stored(dense(tmp_path, name, tied), change))


def test_shards(tmp_path):
    agrees(sharded(dense(tmp_path)))


def test_an_index_of_the_single_file_itself(tmp_path):
    folder = dense(tmp_path)
    places = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    agrees(said(folder, "model.safetensors.index.json", weight_map=places))


@pytest.mark.skipif(TRANSFORMERS_4, reason="it ties them all the same")
def test_a_head_of_its_own_is_kept_whatever_the_config_says(tmp_path):
    folder = stored(dense(tmp_path, tied=True), LAYOUTS["tied, a head of its own"][1])
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.spec.tied and "head of its own" in checkpoint.warnings[0]
    assert agrees(folder).config.tie_word_embeddings is False
    assert open_checkpoint(stored(folder, lambda t: t | {HEAD: t[TABLE]})).spec.tied  # a folder that changed


def test_a_quantisation_that_was_left_in_the_config(tmp_path):
    folder = said(dense(tmp_path), quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    checkpoint = open_checkpoint(folder)
    assert "bitsandbytes" in checkpoint.warnings[0] and "quantization_config" not in checkpoint.config
    model = load_model(folder)
    agrees(said(folder, quantization_config=...))
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize(("field", "value", "kept"), [
    ("bos_token_id", -1, None), ("eos_token_id", [0, 9999], [0]), ("eos_token_id", [9999], None),
    ("pad_token_id", 320, None), ("pad_token_id", -1, None),
])  # fmt: skip
def test_ids_that_no_vocabulary_has_are_left_out(field, value, kept, tmp_path):
    checkpoint = open_checkpoint(said(dense(tmp_path), **{field: value}))
    assert checkpoint.config[field] == kept and "outside the vocabulary" in checkpoint.warnings[0]
    assert load_model(tmp_path).config.to_dict()[field] == kept


def quantised(tensors):
    scale = tensors[Q].abs().amax()
    return tensors | {Q: (tensors[Q] / scale * 127).to(torch.int8)}


SCALED = {
    "bitsandbytes": ".SCB",
    "fp8": "_scale",
    "compressed-tensors": "_packed",
    "deepseek": "_scale_inv",
    "gptq": ".qzeros",
}
WRONG = {
    "gone": (lambda t: {n: v for n, v in t.items() if n != Q}, rf"tensor '{Q}' is missing"),
    "the head": (lambda t: {n: v for n, v in t.items() if n != HEAD}, "set tie_word_embeddings to true"),
    "short": (lambda t: t | {Q: t[Q][:-1]}, rf"{Q} is \(127, 64\), config.json says \(128, 64\)"),
    "flat": (lambda t: t | {Q: t[Q].flatten()}, rf"{Q} is \(8192,\)"),
    "another layer": (lambda t: t | {Q.replace("1", "3"): t[Q]}, "is of layer 3, and config.json says 3 layers"),
    "norms of a fork": (lambda t: t | {Q.replace("_proj", "_norm"): torch.ones(16)}, "q_norm.* has no place in a Lla"),
    "a bias": (lambda t: t | {Q.replace("weight", "bias"): torch.ones(128)}, "has no place"),
    "an adapter": (lambda t: t | {Q.replace("weight", "lora_A.weight"): torch.ones(4, 64)}, "merge it first"),
    "a wrapper": (lambda t: {f"_orig_mod.{n}": v for n, v in t.items()}, "a wrapper put '_orig_mod.' before"),
    "peft": (lambda t: {f"base_model.model.{n}": v for n, v in t.items()}, "a wrapper put 'base_model.model.' before"),
    "twice": (lambda t: t | {f"model.{Q}": t[Q]}, "stored twice"),
    "beyond float32": (
        lambda t: t | {Q: t[Q].double().index_fill(0, torch.tensor([5]), 1e300)}, f"{Q} holds values that",
    ),
    "int8": (quantised, rf"already quantised \('{Q}', int8\)"),
    "fp8": (lambda t: t | {Q: t[Q].to(torch.float8_e4m3fn)}, r"already quantised .*float8_e4m3fn\)"),
    "not a number": (lambda t: t | {Q: t[Q].index_fill(0, torch.tensor([5]), torch.nan)}, rf"{Q} holds values that"),
    "infinite": (lambda t: t | {"model.norm.weight": torch.full((64,), torch.inf)}, "model.norm.weight holds values"),
} | {
    name: (lambda t, end=end: t | {Q.removesuffix(".weight") + f".weight{end}".replace(".weight.", "."): torch.ones(1)},
           "already quantised")
    for name, end in SCALED.items()
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_tensors_that_are_not_what_the_config_says(fault, tmp_path):
    change, reason = WRONG[fault]
    refuses(stored(dense(tmp_path), change), reason)


def refuses(folder, reason):
    with pytest.raises(SaapError, match=reason) as caught:
        load_model(folder)
        beyond_fp16(folder)
    assert "\n" not in str(caught.value)


def index(**changes):
    def change(folder):
        path = folder / "model.safetensors.index.json"
        places = json.loads(path.read_text())["weight_map"]
        path.write_text(json.dumps({"weight_map": {n: p for n, p in (places | changes).items() if p}}))

    return change


FILES = {
    "no shard": (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "damaged or missing"),
    "no index": (lambda f: (f / "model.safetensors.index.json").unlink(), "index of the shards is missing"),
    "a tensor of none": (index(**{"model.more": "model-00001-of-00002.safetensors"}), "'model.more' is in"),
    "not in the index": (index(**{Q: None}), f"'{Q}' is in .* does not know it"),
    "in another file": (index(**{Q: "model-00001-of-00002.safetensors"}), f"{Q}.*says model-00001"),
    "outside": (index(**{Q: "../model.safetensors"}), "no index of safetensors"),
    "above": (index(**{Q: ".."}), "no index of safetensors"),
    "too deep": (lambda f: (f / "model.safetensors.index.json").write_text("[" * 100_000), "index.json: not JSON that"),
    "a list": (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "index.json: not a JSON object"),
    "an empty index": (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {}}'), "no index of"),
    "cut short": (
        lambda f: (f / "model-00002-of-00002.safetensors").write_bytes(
            (f / "model-00002-of-00002.safetensors").read_bytes()[:-8]
        ), "damaged",
    ),
    "another single file": (
        lambda f: save_file({"x": torch.ones(1)}, f / "model.safetensors"), "Remove what is out of date",
    ),
    "a pickle alone": (
        lambda f: [path.unlink() for path in f.glob("model*")] + [(f / "pytorch_model.bin").write_bytes(b"x")],
        "only safetensors weights are read",
    ),
    "an adapter alone": (
        lambda f: [path.unlink() for path in f.glob("model*")] + [save_file({}, f / "adapter_model.safetensors")],
        "holds an adapter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILES)
def test_files_that_disagree(fault, tmp_path):
    change, reason = FILES[fault]
    folder = sharded(dense(tmp_path))
    if fault == "in another file":  # the one of the two that does not hold it
        places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        other = next(place for place in set(places.values()) if place != places[Q])
        change, reason = index(**{Q: other}), f"{Q}.*says {re.escape(other)}"
    change(folder)
    refuses(folder, reason)


FIELDS = [
    ("intermediate_size", 128.0, "valid integer, got 128.0"),
    ("hidden_size", None, "hidden_size: .* got None"),
    ("hidden_size", "64", "valid integer, got '64'"),
    ("hidden_size", 10**12, "less than or equal"),
    ("num_attention_heads", 0, "greater than or equal to 1"),
    ("num_attention_heads", True, "valid integer, got True"),
    ("num_key_value_heads", 3, "8 attention heads cannot share 3"),
    ("num_hidden_layers", ..., r"is missing and .* \(it lacks num_hidden_layers"),
    ("num_hidden_layers", 10**9, "less than or equal to 10000"),
    ("vocab_size", ..., r"config.json says \(32000, 64\) \(it lacks vocab_size"),
    ("rms_norm_eps", float("nan"), "rms_norm_eps: "),
    ("rms_norm_eps", 0, "greater than or equal to"),
    ("tie_word_embeddings", None, "valid boolean"),
    ("eos_token_id", "0", "eos_token_id: Input"),
    ("bos_token_id", [0], "bos_token_id: Input"),
    ("rope_parameters", {"rope_type": "linear", "factor": "two", "rope_theta": 1e4}, "has factor 'two'"),
    ("rope_parameters", {"rope_type": "linear", "factor": -2.0, "rope_theta": 1e4}, "has factor -2.0"),
    ("rope_parameters", [1], "rope_parameters: "),
    ("model_type", ..., "model_type: it is missing"),
    ("model_type", 7, "model_type: "),
    ("quantization_config", "4bit", "quantization_config: "),
    ("hidden_act", 3, "hidden_act: "),
    ("hidden_act", None, "hidden_act"),
    ("rms_norm_eps", "1e-5", "rms_norm_eps: .*valid number"),
    ("rope_theta", 1e300, "rope_theta: "),
    ("rope_scaling", {"rope_type": "default", "rope_theta": None}, "transformers cannot make the model .TypeError"),
    ("rope_scaling", {"full_attention": {"rope_type": "default", "rope_theta": 5e3}}, "for each type of layer"),
    ("layer_types", ["full_attention", "chunked_attention", "full_attention"], "layer_types has 'chunked_attention'"),
    ("layer_types", ["sliding_attention"] * 3, "layer_types has 'sliding_attention', and there is no sliding_window"),
    ("sliding_window", 10**30, "sliding_window: "),
    ("transformers_weights", "other.safetensors", "transformers_weights names 'other.safetensors'"),
    ("text_config", {"hidden_size": 3}, "transformers cannot make the model .AttributeError"),
]


@pytest.mark.parametrize(("field", "value", "reason"), FIELDS)
def test_fields_that_cannot_be(field, value, reason, tmp_path):
    if TRANSFORMERS_4 and field in ("hidden_act", "rope_scaling"):
        pytest.skip("it says so in other words, or has rope_theta elsewhere")
    refuses(said(dense(tmp_path), **{field: value}), reason)


@pytest.mark.parametrize(("content", "reason"), [
    (b"[" * 100_000, "not JSON that can be read"), (b'{"a": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
    (b"{", "not valid JSON"), (b"[]", "not a JSON object"), ("{}".encode("utf-16"), "UTF-8"), (b"", "not valid JSON"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_files_that_are_no_json(name, content, reason, tmp_path):
    (dense(tmp_path) / name).write_bytes(content)
    refuses(tmp_path, rf"{name}.*{reason}")


def test_widths_of_layers_that_are_not_there(pruned_folder, tmp_path):
    for path in pruned_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    widths = json.loads((tmp_path / "config.json").read_text())["layer_widths"]
    refuses(said(tmp_path, layer_widths=widths[:2]), "layer_widths is of 2 layers, num_hidden_layers says 3")
    refuses(said(tmp_path, layer_widths=[[4, 0, 64], *widths[1:]]), "cannot be shared by 0 kv heads")
    refuses(said(tmp_path, layer_widths=[[8, 4, 64], *widths[1:]]), "layer_widths and per_layer_config say different")
    refuses(said(tmp_path, per_layer_config=...), "layers.0.mlp.gate_proj.weight is")


def test_values_beyond_half_precision(tmp_path):
    folder = write_folder(raw_model("llama"), tmp_path / "m")
    stored(folder, lambda tensors: tensors | {Q: tensors[Q] * 1e6})
    assert list(beyond_fp16(folder)) == [Q]
    weights = ExportWeights(folder)
    with pytest.raises(SaapError, match=rf"{Q} holds values beyond what fp16 does .*gguf-bf16"):
        weights.tensor(Q, torch.float16)
    assert weights.tensor(Q, torch.bfloat16).isfinite().all()


@pytest.mark.parametrize(("field", "value"), [("embedding_multiplier", 0.0), ("logits_scaling", 0)])
def test_factors_of_granite_that_divide(field, value, tmp_path):
    refuses(said(dense(tmp_path, "granite"), **{field: value}), f"{field}: .*cannot be 0")


def test_what_a_reader_changes_is_its_own(pruned_folder, tmp_path):
    """An ONNX folder has another model_type than the model it is of: that one is opened again, to be compared."""
    write_artifact(pruned_folder, tmp_path / "onnx", "onnx-fp32")
    own = open_checkpoint(pruned_folder).config
    said = json.loads((pruned_folder / "config.json").read_text())
    assert own | {"per_layer_config": said["per_layer_config"]} == said  # which says the widths again
    own["layer_widths"][0][0] += 1
    assert open_checkpoint(pruned_folder).config != own


def test_what_is_of_a_call_and_not_of_the_model_is_left_out(tmp_path):
    raw = raw_model("llama")
    raw.save_pretrained(tmp_path)
    model = load_model(said(tmp_path, return_dict=False, output_hidden_states=True, attn_implementation="flash_mla"))
    answer = model(IDS)
    torch.testing.assert_close(answer.logits, raw(IDS).logits, atol=1e-5, rtol=1e-5)
    assert answer.hidden_states is None


def test_the_old_word_for_rope_goes_before_the_new_one_as_in_transformers(tmp_path):
    linear, yarn = {"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    agrees(said(dense(tmp_path), rope_scaling=linear, rope_parameters=yarn, rope_theta=...))
    assert open_checkpoint(tmp_path).spec.rope_scaling["rope_type"] == "linear"


def test_a_family_that_has_no_widths_per_layer(pruned_folder, tmp_path):
    for path in pruned_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("granite", "phi3", "gemma2"):
        refuses(said(tmp_path, base_model_type=name), f"base_model_type '{name}'")
    refuses(said(tmp_path, base_model_type="llama", qk_norm=True), "qk_norm is True, and not so in base_model_type")


@pytest.mark.parametrize("name", ["phi3", "granite", "mistral"])
def test_rope_by_type_of_layer_where_the_family_has_one_rope(name, tmp_path):
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 5e3}}
    refuses(said(dense(tmp_path, name), rope_parameters=nested, rope_scaling=None), "for each type of layer")


@pytest.mark.parametrize("name", ["embedding_multiplier", "attention_multiplier", "logits_scaling"])
def test_integers_that_no_tensor_is_multiplied_by(name, tmp_path):
    refuses(said(dense(tmp_path, "granite"), **{name: 10**30}), f"{name}: Input")


def test_an_adapter_beside_a_whole_model_is_told(tmp_path):
    (dense(tmp_path) / "adapter_config.json").write_text("{}")
    assert "is an adapter beside a whole model" in open_checkpoint(tmp_path).warnings[0]


@pytest.mark.parametrize("change", [
    lambda path: path.write_bytes(path.read_bytes()[:-100]), lambda path: path.unlink(),
    lambda path: save_file({Q: torch.ones(3, 3)}, path), lambda path: save_file({"x": torch.ones(1)}, path),
])  # fmt: skip
def test_a_file_that_is_changed_while_it_is_read(change, tmp_path):
    checkpoint = open_checkpoint(dense(tmp_path))
    change(tmp_path / "model.safetensors")
    with pytest.raises(SaapError, match=f"was changed while it was read .tensor '{Q}'"):
        checkpoint.read(checkpoint.source(Q), 0, 4)


def test_a_refused_artifact_leaves_nothing(tmp_path):
    folder = write_folder(raw_model("llama"), tmp_path / "m")
    stored(folder, lambda tensors: tensors | {"model.norm.weight": torch.full((64,), torch.inf)})
    for name in ("gguf-f32", "gguf-q4_0", "onnx-fp32", "onnx-int4"):
        with pytest.raises(SaapError, match=r"model\.norm\.weight holds values that are no finite numbers"):
            write_artifact(folder, tmp_path / name, name)
        assert not (tmp_path / name).exists()
