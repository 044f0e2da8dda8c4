"""A GGUF file in wllama, in headless Chromium. Called as PROGRAM FOLDER REQUEST, where FOLDER has node_modules.

It takes text only.
"""

import functools
import http.server
import json
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

RUN = """
async ({text, count}) => {
  const {Wllama} = await import("/wllama/index.js");
  const quiet = () => {};
  const wllama = new Wllama({default: "/wllama/wasm/wllama.wasm"},
                            {logger: {debug: quiet, log: quiet, warn: quiet, error: quiet}});
  const file = await (await fetch("/model.gguf")).blob();
  await wllama.loadModel([file], {n_ctx: 512, n_threads: 1, n_gpu_layers: 0});
  const made = await wllama.createCompletion({prompt: text, max_tokens: count, temperature: 0, top_k: 1,
                                              repeat_penalty: 1.0});
  return made.choices[0].text;
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


asked = json.loads(sys.argv[2])
package = Path(sys.argv[1], "node_modules", "@wllama", "wllama")
with tempfile.TemporaryDirectory() as folder:
    Path(folder, "wllama").symlink_to(package / "esm")
    Path(folder, "model.gguf").symlink_to(asked["path"])
    Path(folder, "index.html").write_text("<!doctype html><title>wllama</title>", encoding="utf-8")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        text = page.evaluate(RUN, {"text": asked["text"], "count": asked["new"]})
        browser.close()
    server.shutdown()
version = json.loads((package / "package.json").read_text(encoding="utf-8"))["version"]
print(json.dumps({"version": version, "text": text}))
