// node generate.mjs ROOT CASES: the greedy tokens of [{folder, text, dtype, batch}], folders being in ROOT.
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const [root, cases] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = `${root}/`;
const numbers = (tensor) => tensor.tolist().map((row) => row.map(Number));
const out = [];
for (const { folder, text, dtype, chat, tokens } of JSON.parse(cases)) {
  const tokenizer = await AutoTokenizer.from_pretrained(folder);
  const model = await AutoModelForCausalLM.from_pretrained(folder, dtype ? { dtype } : {});
  const inputs = chat
    ? tokenizer.apply_chat_template(chat, { add_generation_prompt: true, return_dict: true })
    : tokenizer(text);
  const ids = await model.generate({ ...inputs, max_new_tokens: tokens, do_sample: false });
  const { logits } = await model(inputs); // outside of generate, all positions have logits
  out.push({ prompt: numbers(inputs.input_ids)[0], ids: numbers(ids)[0], logits: logits.dims });
}
console.log(JSON.stringify(out));
