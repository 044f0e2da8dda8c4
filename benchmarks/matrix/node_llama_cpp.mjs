// A GGUF file in node-llama-cpp.
import fs from "node:fs";
import {createRequire} from "node:module";
import {getLlama} from "node-llama-cpp";

const asked = JSON.parse(process.argv[2]);
const llama = await getLlama({gpu: false, maxThreads: 1, build: "never"});
const model = await llama.loadModel({modelPath: asked.path});
const context = await model.createContext({contextSize: 512, threads: 1});
const tokens = [];
for await (const token of context.getSequence().evaluate(asked.ids, {temperature: 0, yieldEogToken: true})) {
  tokens.push(Number(token));
  if (tokens.length === asked.new) break;
}
const home = createRequire(import.meta.url).resolve("node-llama-cpp").replace(/node-llama-cpp\/.*/, "node-llama-cpp/");
const version = JSON.parse(fs.readFileSync(`${home}package.json`)).version;
console.log(JSON.stringify({version, tokens}));
process.exit(0);
