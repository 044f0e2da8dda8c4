// A folder of `saap-edge export --for transformers.js` in transformers.js.
import path from "node:path";
import {AutoModelForCausalLM, Tensor, env} from "@huggingface/transformers";

const asked = JSON.parse(process.argv[2]);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(asked.path) + "/";
const model = await AutoModelForCausalLM.from_pretrained(path.basename(asked.path), {device: "cpu"});
const ids = BigInt64Array.from(asked.ids.map(BigInt));
const shape = [1, asked.ids.length];
const made = await model.generate({
  input_ids: new Tensor("int64", ids, shape),
  attention_mask: new Tensor("int64", ids.map(() => 1n), shape),
  max_new_tokens: asked.new, min_new_tokens: asked.new, do_sample: false, repetition_penalty: 1.0,
});
const tokens = Array.from(made.data, Number).slice(asked.ids.length);
console.log(JSON.stringify({version: env.version, tokens}));
