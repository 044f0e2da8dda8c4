// The page: shows the chat, and asks the worker, which runs the model.
const at = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
let messages = [];
let answer = null; // the element of the answer that is being written

const writing = (on) => {
  at("send").hidden = on;
  at("stop").hidden = !on;
  at("clear").disabled = on || !messages.length;
};

const add = (role, text) => {
  const line = document.createElement("li");
  line.className = role;
  line.textContent = text;
  at("chat").append(line);
  line.scrollIntoView({ block: "end" });
  return line;
};

const fail = (text) => {
  at("fault").textContent = text;
  at("fault").hidden = false;
  at("loading").hidden = true;
};

const told = {
  model({ model, threads }) {
    at("name").textContent = document.title = model.name;
    const wide = threads > 1 ? `${threads} threads` : "one thread";
    at("about").textContent = `${model.format}, ${wide}. Runs in this browser: nothing leaves it.`;
    at("temperature").value = model.sampling.temperature;
    at("longest").max = model.context;
    at("longest").value = Math.min(256, model.context);
  },
  loading({ step, part }) {
    at("step").textContent = step;
    if (part === null) at("progress").removeAttribute("value");
    else at("progress").value = part;
  },
  ready() {
    at("loading").hidden = true;
    at("send").disabled = false;
    document.body.dataset.ready = "yes";
    at("message").focus();
  },
  piece({ text, speed }) {
    answer.textContent = text;
    at("speed").textContent = speed ? `${speed.toFixed(1)} tokens/s` : "";
    answer.scrollIntoView({ block: "end" });
  },
  answered({ text, ids, prompt, end }) {
    answer.textContent = text;
    answer.dataset.tokens = JSON.stringify(ids);
    answer.dataset.prompt = JSON.stringify(prompt);
    answer.dataset.end = end;
    if (end === "context") at("speed").textContent += ", the context is full";
    messages.push({ role: "assistant", content: text });
    writing(false);
  },
  fault({ text, loaded }) {
    fail(text);
    if (!loaded) return;
    at("message").value = messages.pop().content; // the question that was not answered
    answer.previousSibling.remove();
    answer.remove();
    writing(false);
  },
};

worker.onmessage = ({ data }) => told[data.what](data);
worker.onerror = (event) => fail(event.message || "the page's worker did not start: serve the folder over http");

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("message").value.trim();
  if (!text || at("send").disabled || at("send").hidden) return;
  at("message").value = "";
  at("fault").hidden = true;
  messages.push({ role: "user", content: text });
  add("user", text);
  answer = add("assistant", "");
  writing(true);
  const system = at("system").value.trim();
  worker.postMessage({
    what: "ask",
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    temperature: Number(at("temperature").value),
    longest: Number(at("longest").value),
  });
});

at("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});

at("stop").addEventListener("click", () => worker.postMessage({ what: "stop" }));
at("clear").addEventListener("click", () => {
  messages = [];
  at("chat").replaceChildren();
  at("speed").textContent = "";
  writing(false);
  at("message").focus();
});
