"""Layouts: how a model has to lie in a folder so that one runtime takes it. One record for each.

A layout is made of what a run has already written: of one artifact, or of the model's Hugging Face folder. `export`
writes artifacts, which are verified and measured; `export --for` lays one of them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saap_edge.formats import of_kind
from saap_edge.progress import Bar, no_bar
from saap_edge.registry import Registry, resolve

__all__ = ["LAYOUTS", "OWN", "Given", "Layout", "register_layout"]


@dataclass(frozen=True)
class Given:
    """What a layout is made of.

    Attributes:
        format: the artifact's format, or the variant that was chosen of a layout that takes the model.
        path: the artifact, a file or folder; of a layout that takes the model: its Hugging Face folder.
        model: the Hugging Face folder with the model's tokenizer, chat template and generation_config.json.
        base: the Hugging Face folder of the dense model, which has the licence.
        packages: a folder with the npm packages that the layout needs; None: they are fetched.
        bar: opens a bar for long work (progress.py).
    """

    format: str
    path: Path
    model: Path
    base: Path
    packages: Path | None = None
    bar: Bar = field(default=no_bar, compare=False)


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes:
        name: its name after `--for`.
        about: what takes it, in one line.
        writes: what is written, in one line.
        writer: "module:function" of `writer(given, out)`: it fills the empty folder `out` from a `Given` and returns
            lines that the user should read.
        formats: what `--format` may name, the usual first. Of an artifact: its formats; without `--format`, the first
            that the run has. Of a layout that takes the model: variants of its own, of which the first is usual.
        kind: every format of this kind of artifacts (formats.py) may be named too, after those; None: no others.
        takes_model: it is made of the model's Hugging Face folder; else of an artifact.
        packages: it puts npm packages into the folder, which `--packages` may give.
        attention_only: what takes it keeps keys and values alone, and not what short convolutions remember (LFM2).

    >>> LAYOUTS.find("olama")
    Traceback (most recent call last):
    saap_edge.errors.SaapError: unknown layout 'olama', did you mean 'ollama'?
    """

    name: str
    about: str
    writes: str
    writer: str
    formats: tuple[str, ...]
    kind: str | None = None
    takes_model: bool = False
    packages: bool = False
    attention_only: bool = False

    def takes(self) -> tuple[str, ...]:
        """All that `--format` may name, the usual first."""
        others = (record.name for record in (of_kind(self.kind) if self.kind else []))
        return tuple(dict.fromkeys((*self.formats, *others)))

    def write(self) -> Callable[[Given, Path], list[str]]:
        """The function that writes it. Raises SaapError where it cannot be loaded."""
        found: Any = resolve(self.writer)
        return found  # type: ignore[no-any-return]


_IN_JAVASCRIPT = ("onnx-int4", "onnx-int8", "onnx-fp32")
OWN: tuple[Layout, ...] = (
    Layout(
        "ollama", about="Ollama: `ollama create NAME -f Modelfile` in the folder",
        writes="the GGUF file and a Modelfile with template, ends and sampling",
        writer="saap_edge.layouts.ollama:write",
        formats=("gguf-q4_0", "gguf-q4_k_m", "gguf-q8_0"), kind="gguf",
    ),
    Layout(
        "gpt4all", about="gpt4all and mistralrs, which know no head size but hidden size / heads (docs/runtimes.md)",
        writes="the GGUF file of a uniform model, with heads of zeros for those that were removed",
        writer="saap_edge.layouts.gpt4all:write",
        formats=("gguf-q4_0", "gguf-q8_0", "gguf-q4_1", "gguf-f16", "gguf-bf16", "gguf-f32"), attention_only=True,
    ),
    Layout(
        "transformers.js", about="@huggingface/transformers 4, in node and in browsers",
        writes="onnx/model.onnx with its data, config.json and the tokenizer",
        writer="saap_edge.layouts.transformers_js:write", formats=_IN_JAVASCRIPT, kind="onnx",
        attention_only=True,
    ),
    Layout(
        "browser", about="a page that runs the model in the browser, from any web server",
        writes="index.html, its scripts, onnxruntime-web's wasm and the ONNX model",
        writer="saap_edge.layouts.browser:write", formats=_IN_JAVASCRIPT, kind="onnx", packages=True,
        attention_only=True,
    ),
    Layout(
        "executorch", about="ExecuTorch's LLM runners on phones (docs/executorch.md)",
        writes="model.pte for XNNPACK, the tokenizer, and a README.txt on how it is run",
        writer="saap_edge.layouts.executorch:write", formats=("xnnpack-int4", "xnnpack-fp32"), takes_model=True,
        attention_only=True,
    ),
)  # fmt: skip
LAYOUTS: Registry[Layout] = Registry("layout", "saap_edge.layouts", own=OWN)


def register_layout(layout: Layout) -> Layout:
    """Add a layout and return it; docs/adding.md has an example. Raises SaapError when its name is another's."""
    return LAYOUTS.register(layout)
