"""The files that start a bundle on its board, with the board's threads: run.sh, run.py and requirements.txt."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from saap_edge import __version__
from saap_edge.engines.options import AS_IT_IS, KV_TYPES, PIECE, EngineOptions
from saap_edge.errors import SaapError
from saap_edge.formats import format_of
from saap_edge.machine.pages import HUGE_PAGES
from saap_edge.registry import resolve

__all__ = ["IN_GENAI", "IN_LLAMA_CPP", "IN_OPENVINO", "Program", "launch_files", "program_of"]

TOKENS = 64
CONTEXT = 2048  # tokens of KV cache at most: a model's whole context may not fit a board

SHELL = """\
#!/bin/sh
# Continues a text with the likeliest tokens:  ./run.sh "Once upon a time" [tokens]
# Needs requirements.txt:  pip install -r requirements.txt
cd "$(dirname "$0")" || exit 1
text=${{1:-{prompt}}}
tokens=${{2:-{tokens}}}
{native}exec "${{PYTHON:-python3}}" run.py "$text" "$tokens"
"""

# llama-cli is for chats: it ignores -no-cnv and waits for input (ggml-org/llama.cpp#27214).
NATIVE = """\
# llama.cpp's own program, if it is installed. For a chat: llama-cli -m {model} -t {threads} -c {context} -fa on{flags}
if command -v llama-completion > /dev/null; then
{reading}{pages}  exec llama-completion{how} -m {model} -t {threads} -c {context} -fa on{flags} -no-cnv --temp 0 \\
    --repeat-penalty 1 -n "$tokens" -p "$text"
fi
"""

# For a file whose matrices llama.cpp repacks (Format.repacked). --no-mmap is the older name.
READING = """\
  # The file is read, not mapped: mapped pages would stay in memory beside the matrices that llama.cpp repacks.
  how=--no-mmap
  llama-completion --help 2> /dev/null | grep -q -e --load-mode && how="--load-mode none"
"""

PAGES = """\
  # Large blocks of memory in huge pages, where the C library is glibc and the kernel has them: decoding is faster.
  export {0}="${{{0}:-{1}}}"
"""

GGUF = '''\
"""python3 run.py TEXT TOKENS: llama.cpp through llama-cpp-python."""

import sys
from pathlib import Path

import llama_cpp

from saap_edge.machine.pages import collapse

model = llama_cpp.Llama(
    str(Path(__file__).with_name("{model}")), n_threads={threads}, n_threads_batch={threads}, n_ctx={context},
    flash_attn=True, verbose=False, use_mmap={mapped},{arguments}
)
collapse()
text, tokens = sys.argv[1], int(sys.argv[2])
print(text, end="", flush=True)
for piece in model(text, max_tokens=tokens, temperature=0.0, repeat_penalty=1.0, stream=True):
    print(piece["choices"][0]["text"], end="", flush=True)
print()
'''

ONNX = '''\
"""python3 run.py TEXT TOKENS: ONNX Runtime through onnxruntime-genai."""

import json
import os
import sys
from pathlib import Path

if os.environ.get("SAAP_EDGE_TELEMETRY") != "1":  # before the import: it sends usage events to its maker otherwise
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime_genai as genai
{imports}
from saap_edge.engines.onnx_prepared import refusal
from saap_edge.engines.onnxruntime import environment, spinning
from saap_edge.machine.pages import collapse

folder = Path(__file__).with_name("{model}")
if told := refusal(folder):
    sys.exit(told)
os.environ.update({{**environment(), **os.environ}})
config = genai.Config(str(folder))
options = {{"intra_op_num_threads": {threads}, "session.intra_op.allow_spinning": str(int(spinning({threads})))}}
search = {{"chunk_size": {ubatch}}}  # tokens of a prompt that are computed at once
config.overlay(json.dumps({{"model": {{"decoder": {{"session_options": options}}}}, "search": search}}))
model = genai.Model(config)
collapse()
{tokenizer}
text, tokens = sys.argv[1], int(sys.argv[2])
ids = {ids}
search = genai.GeneratorParams(model)
length = min(len(ids) + tokens, {context})
search.set_search_options(do_sample=False, repetition_penalty=1.0, max_length=length)
generator = genai.Generator(model, search)
generator.append_tokens(ids)
print(text, end="", flush=True)
while not generator.is_done():
    generator.generate_next_token()
    print({piece}, end="", flush=True)
print()
'''

# How it makes ids and texts: in genai's own way, or by tokenizer.json where genai reads that otherwise.
BY_GENAI = {
    "imports": "",
    "tokenizer": '''\
tokenizer = genai.Tokenizer(model)
tokenizer.update_options(add_special_tokens="true")
stream = tokenizer.create_stream()''',
    "ids": "tokenizer.encode(text)", "piece": "stream.decode(generator.get_next_tokens()[0])",
}  # fmt: skip
BY_TOKENIZERS = {
    "imports": "from tokenizers import Tokenizer\nfrom tokenizers.decoders import DecodeStream\n",
    "tokenizer": '''\
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))  # genai splits some texts into other tokens
tokenizer.no_truncation()
tokenizer.no_padding()
stream = DecodeStream(skip_special_tokens=True)''',
    "ids": "tokenizer.encode(text).ids", "piece": 'stream.step(tokenizer, int(generator.get_next_tokens()[0])) or ""',
}  # fmt: skip

OPENVINO = '''\
"""python3 run.py TEXT TOKENS: OpenVINO through openvino_genai."""

import os
import sys
from pathlib import Path

if os.environ.get("SAAP_EDGE_TELEMETRY") != "1":  # before the import: it sends a usage event to its maker otherwise
    sys.modules["openvino_telemetry"] = None

import openvino_genai as genai

from saap_edge.machine.pages import collapse

model = genai.LLMPipeline(str(Path(__file__).with_name("{model}")), "CPU", INFERENCE_NUM_THREADS={threads})
collapse()
text, tokens = sys.argv[1], int(sys.argv[2])
search = model.get_generation_config()
search.apply_chat_template, search.do_sample, search.repetition_penalty = False, False, 1.0
search.max_new_tokens = tokens
print(text, end="", flush=True)
model.generate(text, search, lambda piece: print(piece, end="", flush=True))
print()
'''


@dataclass(frozen=True)
class Program:
    """How a bundle runs its artifact.

    Attributes:
        script: text of run.py.
        native: lines of run.sh that come before run.py is started, to try the runtime's own program.
        packages: packages that run.py needs beside saap-edge[device].
        vocabulary: the engine whose tokenizer run.py takes, where that may give other ids than tokenizer.json.
        own_ids: the program to take where it does.

    `str.format` puts `model`, `threads`, `context`, `mapped`, `reading`, `pages` and `how` into the texts, and what
    `asked` makes of the runtime's options, as `flags` of its program and `arguments` of its class.
    """

    script: str
    native: str = ""
    packages: tuple[str, ...] = ()
    asked: Callable[[EngineOptions], dict[str, str]] = lambda options: {}
    vocabulary: str | None = None
    own_ids: Program | None = None


def _of_llama_cpp(options: EngineOptions) -> dict[str, str]:
    """Options of llama-completion and of llama_cpp.Llama.

    >>> _of_llama_cpp(EngineOptions(kv="q8_0"))
    {'flags': ' -ctk q8_0 -ctv q8_0', 'arguments': ' type_k=llama_cpp.GGML_TYPE_Q8_0, type_v=llama_cpp.GGML_TYPE_Q8_0,'}
    """
    flags, arguments = "", ""
    if options.kv is not None:
        symbol = f"llama_cpp.{KV_TYPES[options.kv].symbol}"
        flags += f" -ctk {options.kv} -ctv {options.kv}"
        arguments += f" type_k={symbol}, type_v={symbol},"
    if options.ubatch is not None:
        flags += f" -ub {options.ubatch}"
        arguments += f" n_ubatch={options.ubatch},"
    return {"flags": flags, "arguments": arguments}


def _in_genai(ids: dict[str, str]) -> Callable[[EngineOptions], dict[str, str]]:
    """What the options of genai make, beside how ids are made."""
    return lambda options: {"ubatch": str(options.ubatch or PIECE), **ids}


IN_LLAMA_CPP = Program(GGUF, NATIVE, asked=_of_llama_cpp)
IN_GENAI = Program(
    ONNX, packages=("onnxruntime-genai",), vocabulary="onnxruntime-genai",
    asked=_in_genai(BY_GENAI),
    own_ids=Program(ONNX, packages=("onnxruntime-genai", "tokenizers"), asked=_in_genai(BY_TOKENIZERS)),
)  # fmt: skip
IN_OPENVINO = Program(OPENVINO, packages=("openvino", "openvino-tokenizers", "openvino-genai"))


def program_of(artifact_format: str) -> Program:
    """How a bundle of a format runs it. Raises SaapError for a format that no bundle can have."""
    record = format_of(artifact_format)
    if record.launch is None:
        raise SaapError(f"'{artifact_format}': {record.no_bundle}")
    program: Program = resolve(record.launch)
    return program


def launch_files(
    artifact_format: str, model: str, threads: int, context: int, prompt: str, options: EngineOptions = AS_IT_IS,
    own_ids: bool = False,
) -> dict[str, str]:  # fmt: skip
    """The files that start a bundle: their texts, by name.

    Args:
        artifact_format: format of the artifact.
        model: its file or folder in the bundle.
        threads: threads of the runtime.
        context: the model's longest sequence, tokens; the KV cache holds CONTEXT at most.
        prompt: text that run.sh continues where it is given none.
        options: what the runtime is asked for.
        own_ids: token ids are made by tokenizer.json, as far as there is a program for it.

    Raises SaapError for a format that no bundle can have.

    >>> sorted(launch_files("gguf-q4_0", "model-q4_0.gguf", threads=4, context=2048, prompt="Once"))
    ['requirements.txt', 'run.py', 'run.sh']
    """
    record, program = format_of(artifact_format), program_of(artifact_format)
    program = program.own_ids if own_ids and program.own_ids else program
    values = {
        "model": model, "threads": threads, "context": min(context, CONTEXT), "mapped": not record.repacked,
        "reading": READING if record.repacked else "", "how": " $how" if record.repacked else "",
        **program.asked(options),
    }  # fmt: skip
    pages = "".join(PAGES.format(*pair) for pair in HUGE_PAGES.items()) if record.repacked else ""
    native = program.native.format(pages=pages, **values)
    shell = SHELL.format(native=native, tokens=TOKENS, prompt=shlex.quote(prompt))
    requirements = [f"saap-edge[device]=={__version__}"]
    requirements += [f"{package}=={importlib.metadata.version(package)}" for package in program.packages]
    return {
        "run.sh": shell,
        "run.py": program.script.format(**values),
        "requirements.txt": "\n".join(requirements) + "\n",
    }
