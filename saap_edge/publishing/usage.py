"""How the files of a repository are run: lines for each runtime, of what is there and holds for it.

docs/runtimes.md says what each runtime takes. A runtime that was not tried there is named so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from saap_edge.engines.onnx_folder import GENAI_FILE
from saap_edge.layouts.registry import LAYOUTS
from saap_edge.layouts.transformers_js import dtype_of, file_of
from saap_edge.model.spec import PRUNED_TYPE
from saap_edge.publishing.contents import Contents, Shipped
from saap_edge.publishing.names import found_by_llama_cpp, gguf_name, gguf_tag

__all__ = ["GGUF", "ONNX", "Usage", "by_layer", "of_kind", "usages", "usual"]

# Kinds of artifacts (formats.py), by the layouts that take them.
GGUF, ONNX = LAYOUTS.find("ollama").kind, LAYOUTS.find("transformers.js").kind


@dataclass(frozen=True)
class Usage:
    """Lines for one runtime: its name, a language for highlighting, the lines, and a word on them."""

    runtime: str
    language: str
    lines: tuple[str, ...]
    note: str = ""


def by_layer(folder: Path) -> bool:
    """Whether a Hugging Face folder needs our modelling file, because its layers differ."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return bool(config["model_type"] == PRUNED_TYPE)


def of_kind(contents: Contents, kind: str | None) -> list[Shipped]:
    """The published artifacts of a kind."""
    return [shipped for shipped in contents.artifacts if shipped.record.kind == kind]


def usages(contents: Contents, repo: str) -> list[Usage]:
    """What holds for a repository of that name with these contents."""
    found: list[Usage] = []
    if of_kind(contents, GGUF):
        found += _of_gguf(contents, repo)
    if of_kind(contents, ONNX):
        found += _of_onnx(contents, repo)
    if contents.model is not None:
        found.append(_transformers(contents.model, repo))
    found += [_elsewhere(shipped, repo) for shipped in contents.artifacts if shipped.record.kind not in (GGUF, ONNX)]
    return found


def usual(shipped: list[Shipped], layout: str) -> Shipped:
    """The artifact that a layout would take first."""
    order = LAYOUTS.find(layout).takes()
    return min(shipped, key=lambda one: order.index(one.record.name) if one.record.name in order else len(order))


def _of_gguf(contents: Contents, repo: str) -> list[Usage]:
    files = of_kind(contents, GGUF)
    names = [gguf_name(repo, one.record.quantisation) for one in files]
    first = usual(files, "ollama")
    tag, name = gguf_tag(first.record.quantisation), gguf_name(repo, first.record.quantisation)
    lines = [f"llama-cli -hf {repo}:{tag}" + _choice(files, first)]
    lines += [
        f"llama-cli --hf-repo {repo} --hf-file {other}   # the tag {other_tag} would find another file"
        for one, other in zip(files, names, strict=True)
        if found_by_llama_cpp(other_tag := gguf_tag(one.record.quantisation), names) != other
    ]
    modelfile = "the folder's Modelfile says the same" if len(files) == 1 else "the Modelfiles say the same"
    return [
        Usage("llama.cpp", "sh", tuple(lines)),
        Usage("LM Studio", "sh", (f"lms get https://huggingface.co/{repo}@{tag.lower()}",), "not tried"),
        Usage("Ollama", "sh", (f"ollama run hf.co/{repo}:{tag}",), f"not tried; {modelfile} for `ollama create`"),
        Usage("llama-cpp-python", "python", (
            "from llama_cpp import Llama", f'model = Llama.from_pretrained("{repo}", "{name}")',
        )),
    ]  # fmt: skip


def _choice(files: list[Shipped], first: Shipped) -> str:
    others = [gguf_tag(one.record.quantisation) for one in files if one is not first]
    return f"   # or {', '.join(others)}" if others else ""


def _of_onnx(contents: Contents, repo: str) -> list[Usage]:
    folders = of_kind(contents, ONNX)
    first = usual(folders, "transformers.js")
    dtype = dtype_of(first.record)[0]
    options = f'{{ dtype: "{dtype}" }}'
    before: tuple[str, ...] = ()
    if contents.model is not None and by_layer(contents.model):  # transformers.js does not know its config.json
        address = f"https://huggingface.co/{repo}/resolve/main/onnx/config.json"
        before = (f'const config = await (await fetch("{address}")).json();',)
        options = f'{{ config, dtype: "{dtype}" }}'
    found = [Usage("transformers.js", "js", (
        'import { pipeline } from "@huggingface/transformers";', *before,
        f'const generate = await pipeline("text-generation", "{repo}", {options});',
        'console.log(await generate("Once upon a time", { max_new_tokens: 64 }));',
    ))]  # fmt: skip
    graph = file_of(first.record.name)
    if (first.path / GENAI_FILE).is_file():
        found.append(Usage("onnxruntime-genai", "python", (
            "import onnxruntime_genai as og", "from huggingface_hub import snapshot_download",
            f'model = og.Model(snapshot_download("{repo}", allow_patterns="onnx/*") + "/onnx")',
        ), f"of {graph}"))  # fmt: skip
    return found


def _transformers(folder: Path, repo: str) -> Usage:
    trust, note = ("", "") if not by_layer(folder) else (
        ", trust_remote_code=True", "the layers have widths of their own, which modeling_saap_edge.py builds"
    )  # fmt: skip
    return Usage("transformers", "python", (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("{repo}"{trust})',
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
    ), note)  # fmt: skip


def _elsewhere(shipped: Shipped, repo: str) -> Usage:
    place = shipped.record.path
    return Usage(f"{shipped.record.engine}, {shipped.record.name}", "sh", (
        f'hf download {repo} --include "{place}/*" --local-dir .   # then open {place}',
    ))  # fmt: skip
