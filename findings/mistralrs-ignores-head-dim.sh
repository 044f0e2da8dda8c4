#!/usr/bin/env bash
# mistralrs 0.9.5: a Llama whose heads do not fill its hidden size is not run, though its files name the head size.
#
# One would expect that head_dim of config.json and attention.key_length of a GGUF file are what a head is wide: they
# exist because hidden size / heads is not always that. Seen: of a Hugging Face folder with head_dim the weights are
# called misshapen, and a GGUF file with key_length loads and fails at its first prompt. The same two with twice the
# heads, so that hidden size / heads is right by chance, answer. The way round is to fill the heads up with zeros.
#
# Run: findings/mistralrs-ignores-head-dim.sh      (half a minute)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check mistralrs==0.9.5 gguf==0.19.0 safetensors==0.8.0 \
  tokenizers==0.23.3 2> /dev/null
cat > "$folder/make.py" << 'PY'
import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, WIDTH, FFN = 64, 16, 96
folder, heads = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
words = sorted(pre_tokenizers.ByteLevel.alphabet())
vocab = {word: index for index, word in enumerate(["<s>", "</s>", *words])}
tokenizer = Tokenizer(models.BPE(vocab, [], fuse_unk=False))
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer.add_special_tokens(["<s>", "</s>"])
tokenizer.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
    "chat_template": "{{ messages[0]['content'] }}",
}))
(folder / "config.json").write_text(json.dumps({
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "head_dim": WIDTH,
    "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": FFN, "num_hidden_layers": 1,
    "vocab_size": len(vocab), "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512,
    "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float32",
}))
dice = np.random.default_rng(0)
layer = {
    "self_attn.q_proj": (heads * WIDTH, HIDDEN), "self_attn.k_proj": (heads * WIDTH, HIDDEN),
    "self_attn.v_proj": (heads * WIDTH, HIDDEN), "self_attn.o_proj": (HIDDEN, heads * WIDTH),
    "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN),
    "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
}
shapes = {"model.embed_tokens": (len(vocab), HIDDEN), "model.norm": (HIDDEN,), "lm_head": (len(vocab), HIDDEN)}
shapes |= {f"model.layers.0.{name}": shape for name, shape in layer.items()}
weights = {
    f"{name}.weight": np.ones(shape, np.float32) if len(shape) == 1
    else dice.normal(0, 0.1, shape).astype(np.float32)
    for name, shape in shapes.items()
}
save_file(weights, folder / "model.safetensors", {"format": "pt"})

writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
writer.add_context_length(512)
writer.add_embedding_length(HIDDEN)
writer.add_block_count(1)
writer.add_feed_forward_length(FFN)
writer.add_head_count(heads)
writer.add_head_count_kv(heads)
writer.add_key_length(WIDTH)
writer.add_value_length(WIDTH)
writer.add_rope_dimension_count(WIDTH)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_vocab_size(len(vocab))
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("gpt-2")
writer.add_token_list(list(vocab))
writer.add_token_types([3, 3] + [1] * len(words))
writer.add_token_merges([])
writer.add_bos_token_id(0)
writer.add_eos_token_id(1)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
for name, value in weights.items():
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
PY
cat > "$folder/look.py" << 'PY'
import sys
from pathlib import Path

from mistralrs import Architecture, CompletionRequest, Runner, Which

path = Path(sys.argv[1])
if path.is_file():
    which = Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
else:
    which = Which.Plain(model_id=str(path), arch=Architecture.Llama)
try:
    Runner(which=which).send_completion_request(CompletionRequest(model="default", prompt="abc", max_tokens=2, temperature=0.0))
    print("answers")
except Exception as error:
    print(str(error).splitlines()[0])
PY
told=""
for heads in 4 2; do
  "$folder/venv/bin/python" "$folder/make.py" "$folder/$heads" "$heads"
  for what in "$folder/$heads" "$folder/$heads/model.gguf"; do
    name=$([ -d "$what" ] && echo folder || echo GGUF)
    line=$("$folder/venv/bin/python" "$folder/look.py" "$what" 2> "$folder/errors" | tail -1)
    told+="hidden size 64, head size 16, $heads heads, $name: $line"$'\n'
  done
done
"$folder/venv/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep '^mistralrs '
printf '%s' "$told"
wrong=$(grep -c "2 heads, .*hape mismatch" <<< "$told" || true)
[[ $wrong == 2 && $(grep -c "4 heads, .*: answers" <<< "$told") == 2 ]] || { echo "the behaviour has changed"; exit 1; }
# Output seen:
#   mistralrs          0.9.5
#   hidden size 64, head size 16, 4 heads, folder: answers
#   hidden size 64, head size 16, 4 heads, GGUF: answers
#   hidden size 64, head size 16, 2 heads, folder: shape mismatch for model.layers.0.self_attn.q_proj.weight, expected: [64, 64], got: [32, 64]
#   hidden size 64, head size 16, 2 heads, GGUF: Shape mismatch, got buffer of size 96 which is compatible with shape [1, 3, 2, 32]
