// Runs the model with onnxruntime-web, away from the page so that it stays quick.
import * as ort from "./lib/ort.wasm.bundle.min.mjs";
import { Template } from "./lib/jinja.js";
import { Tokenizer } from "./lib/tokenizers.min.mjs";

const MOST_THREADS = 8;
const tell = (what, more = {}) => postMessage({ what, ...more });
let model, session, tokenizer, template;
let stopped = false;
let kept = { ids: [], past: null }; // the tokens in the KV cache, and the cache

// A file of the folder, with progress over all of them.
async function fetched(name, progress) {
  const answer = await fetch(`model/${name}`);
  if (!answer.ok) throw new Error(`model/${name}: the server answers ${answer.status}`);
  const size = model.files[name];
  const bytes = new Uint8Array(size);
  const reader = answer.body.getReader();
  let done = 0;
  for (;;) {
    const { value, done: over } = await reader.read();
    if (over) break;
    if (done + value.length > size) throw new Error(`model/${name} is longer than it should be`);
    bytes.set(value, done);
    done += value.length;
    progress(value.length);
  }
  if (done !== size) throw new Error(`model/${name} is cut short: ${done} of ${size} bytes`);
  return bytes;
}

async function load() {
  model = await (await fetch("model.json")).json();
  const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { wasm: new URL("lib/ort-wasm-simd-threaded.wasm", self.location.href).href };
  tell("model", { model, threads });
  const all = Object.values(model.files).reduce((sum, size) => sum + size, 0);
  const mebibytes = (bytes) => (bytes / 2 ** 20).toFixed(1);
  let done = 0;
  const progress = (bytes) => {
    done += bytes;
    tell("loading", { step: `Loading ${mebibytes(done)} of ${mebibytes(all)} MiB`, part: done / all });
  };
  const files = {};
  for (const name of Object.keys(model.files)) files[name] = await fetched(name, progress);
  tell("loading", { step: "Starting the runtime", part: null });
  const json = (name) => JSON.parse(new TextDecoder().decode(files[name]));
  tokenizer = new Tokenizer(json("tokenizer.json"), json("tokenizer_config.json"));
  template = model.template === null ? null : new Template(model.template);
  session = await ort.InferenceSession.create(files["model.onnx"], {
    executionProviders: ["wasm"],
    externalData: [{ path: "model.onnx_data", data: files["model.onnx_data"] }],
  });
  tell("ready");
}

function promptOf(messages) {
  if (template === null) return tokenizer.encode(messages.map((each) => each.content).join("\n")).ids;
  const text = template.render({ messages, add_generation_prompt: true, ...model.variables });
  return tokenizer.encode(text, { add_special_tokens: false }).ids; // the template has them
}

// The first `length` tokens of a cache tensor [1, heads, tokens, width].
function shortened(tensor, length) {
  const [, heads, tokens, width] = tensor.dims;
  if (tokens === length) return tensor;
  const data = new Float32Array(heads * length * width);
  for (let head = 0; head < heads; head++) {
    const from = head * tokens * width;
    data.set(tensor.data.subarray(from, from + length * width), head * length * width);
  }
  return new ort.Tensor("float32", data, [1, heads, length, width]);
}

// The cache of as many first tokens of `ids` as it has; the last token is always run, for its logits.
function reused(ids) {
  let same = 0;
  while (same < Math.min(kept.ids.length, ids.length - 1) && kept.ids[same] === ids[same]) same++;
  const past = {};
  for (const { name, heads, width } of model.cache) {
    past[`past_key_values.${name}`] = same
      ? shortened(kept.past[`past_key_values.${name}`], same)
      : new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
  }
  kept = { ids: ids.slice(0, same), past };
  return ids.slice(same);
}

// Append tokens; returns the logits of the last one.
async function run(ids) {
  const total = kept.ids.length + ids.length;
  const whole = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  const outputs = await session.run({
    input_ids: whole(ids, [1, ids.length]),
    attention_mask: whole(new Array(total).fill(1), [1, total]),
    num_logits_to_keep: whole([1], []),
    ...kept.past,
  });
  const past = {};
  for (const { name } of model.cache) past[`past_key_values.${name}`] = outputs[`present.${name}`];
  kept = { ids: [...kept.ids, ...ids], past };
  return outputs.logits.data;
}

function likeliest(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

function next(logits, ids, temperature) {
  const { top_k, top_p, min_p, repetition_penalty: penalty } = model.sampling;
  if (penalty !== 1) {
    for (const id of new Set(ids)) logits[id] = logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty;
  }
  if (!(temperature > 0)) return likeliest(logits);
  let order = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
  if (top_k > 0) order = order.slice(0, top_k);
  const weights = order.map((id) => Math.exp((logits[id] - logits[order[0]]) / temperature));
  const sum = weights.reduce((a, b) => a + b, 0);
  let count = 0;
  let mass = 0;
  while (count < order.length && (count === 0 || (mass < top_p * sum && weights[count] >= min_p))) {
    mass += weights[count++];
  }
  let left = Math.random() * mass;
  for (let i = 0; i < count; i++) if ((left -= weights[i]) <= 0) return order[i];
  return order[count - 1];
}

// Other messages, a stop among them, are read only between tasks.
const breath = () => new Promise((go) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = () => (port1.close(), go());
  port2.postMessage(0);
});

async function ask({ messages, temperature, longest }) {
  stopped = false;
  const prompt = promptOf(messages);
  if (prompt.length >= model.context) {
    throw new Error(`the chat has ${prompt.length} tokens, the model takes ${model.context}: begin a new chat`);
  }
  const ids = [];
  let end = "length";
  let text = "";
  let first = 0;
  let logits = await run(reused(prompt));
  while (ids.length < longest) {
    const id = next(logits, [...prompt, ...ids], temperature);
    first ||= performance.now();
    if (model.ends.includes(id)) { end = "end"; break; }
    ids.push(id);
    text = tokenizer.decode(ids, { skip_special_tokens: true });
    const seconds = (performance.now() - first) / 1000;
    tell("piece", { text, speed: ids.length > 1 ? (ids.length - 1) / seconds : 0 });
    await breath();
    if (stopped) { end = "stopped"; break; }
    if (prompt.length + ids.length >= model.context) { end = "context"; break; }
    if (ids.length < longest) logits = await run([id]);
  }
  tell("answered", { text, ids, prompt, end });
}

onmessage = async ({ data }) => {
  if (data.what === "stop") { stopped = true; return; }
  try {
    await ask(data);
  } catch (error) {
    kept = { ids: [], past: null };
    tell("fault", { text: `${error.message ?? error}`, loaded: true });
  }
};

load().catch((error) => tell("fault", { text: `${error.message ?? error}`, loaded: false }));
