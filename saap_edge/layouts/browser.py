"""The layout of a page: a folder that any web server can serve, and a browser then runs the model in itself.

The page is ours (page/), the runtime is onnxruntime-web's plain WebAssembly build, the tokenizer and the chat template
are read by @huggingface/tokenizers and @huggingface/jinja. All lies in the folder: nothing else is fetched.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from saap_edge.errors import SaapError
from saap_edge.layouts.npm import Package, unpack
from saap_edge.layouts.registry import Given
from saap_edge.layouts.transformers_js import complete_tokenizer, copy_rest, write_graph
from saap_edge.model.chat import DEFAULT, read_chat, sampling_of
from saap_edge.model.checkpoint import read_spec

__all__ = ["PACKAGES", "write"]

PACKAGES = (
    Package(
        "onnxruntime-web", "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==", "MIT",
        {f"dist/{name}": f"lib/{name}" for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")},
    ),
    Package(
        "@huggingface/tokenizers", "0.2.0",
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==", "Apache-2.0",
        {"dist/tokenizers.min.mjs": "lib/tokenizers.min.mjs", "LICENSE": "licences/tokenizers.txt"},
    ),
    Package(
        "@huggingface/jinja", "0.5.11",
        "YzEzwM5oQf4r0vs7ifWQ+yuVR1YkAHrjERQ+a8WRsStHHp4NRBg+NesjiFc+X2AFUpRvvrIeHDS1xFy9jY/IjQ==", "MIT",
        {"dist/index.js": "lib/jinja.js", "LICENSE": "licences/jinja.txt"},
    ),
)  # fmt: skip
PAGE = ("index.html", "page.js", "worker.js", "style.css", "serve.py")
GRAPH = "model.onnx"
LARGEST = 2**31  # bytes: a browser keeps the file and what it loaded of it, and WebAssembly ends at 4 GiB


def write(given: Given, out: Path) -> list[str]:
    """Write the page of an ONNX folder into the empty folder `out`; returns what the user should read.

    Raises SaapError for a model too large for a browser, and as `unpack`.
    """
    size = sum(path.stat().st_size for path in given.path.iterdir() if path.is_file())
    if size >= LARGEST:
        raise SaapError(
            f"{given.format} has {size / 2**30:.1f} GiB, a browser takes less than {LARGEST / 2**30:.0f}: "
            "take fewer bits (--format onnx-int4) or a smaller model"
        )
    unpack(PACKAGES, given.packages, out, given.bar)
    page = resources.files("saap_edge.layouts") / "page"
    for name in PAGE:
        (out / name).write_bytes((page / name).read_bytes())
    write_graph(given, out / "model" / GRAPH, standard=False)
    copy_rest(given.path, out / "model")
    complete_tokenizer(given.model, out / "model" / "tokenizer_config.json")
    (out / "model.json").write_text(json.dumps(_described(given, out), indent=1), encoding="utf-8")
    (out / "licences" / "README.txt").write_text(
        "".join(f"{package.pinned}: {package.licence}\n" for package in PACKAGES), encoding="utf-8"
    )
    return [
        "serve it: python3 -m http.server in the folder, then open the address that it prints",
        "with several threads: python3 serve.py, which sends the headers that browsers ask for",
    ]


def _described(given: Given, out: Path) -> dict[str, Any]:
    """What the page must know of the model: model.json."""
    spec, chat = read_spec(given.model), read_chat(given.model)
    sampling = sampling_of(chat.generation)
    files = [out / "model" / name for name in (GRAPH, f"{GRAPH}_data", "tokenizer.json", "tokenizer_config.json")]
    return {
        "name": given.base.name, "format": given.format, "context": spec.context, "vocabulary": spec.vocab_size,
        "files": {path.name: path.stat().st_size for path in files},
        "cache": [
            {"name": f"{index}.{kind}", "heads": layer.kv_heads, "width": spec.head_dim}
            for index, layer in enumerate(spec.layers) for kind in ("key", "value")
        ],
        "template": chat.templates.get(DEFAULT), "variables": chat.variables, "ends": list(chat.ends),
        "sampling": {
            "temperature": sampling.temperature if sampling.do_sample else 0, "top_k": sampling.top_k,
            "top_p": sampling.top_p, "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty,
        },
    }  # fmt: skip
