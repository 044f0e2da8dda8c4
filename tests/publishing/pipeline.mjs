// node pipeline.mjs ROOT REPO DTYPE TEXT TOKENS [CONFIG]: as the card's lines have it, from ROOT/REPO on this machine.
import { readFileSync } from "node:fs";
import { env, pipeline } from "@huggingface/transformers";

const [root, repo, dtype, text, tokens, file] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = `${root}/`;
const options = file ? { config: JSON.parse(readFileSync(file, "utf8")), dtype } : { dtype };
const generate = await pipeline("text-generation", repo, options);
const [{ generated_text }] = await generate(text, { max_new_tokens: Number(tokens), do_sample: false });
console.log(JSON.stringify(generated_text));
