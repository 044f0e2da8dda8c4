"""The runtimes of runtime_matrix.py: what each is installed from, what it reads, and which program runs it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PROGRAMS", "RUNTIMES", "Runtime", "installed"]

PROGRAMS = Path(__file__).parent / "matrix"
# GCC drops the stores to llama.cpp's AMX tile configuration (Makefile): a build from source leaves AMX out.
BUILT = {name: "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" for name in ("CFLAGS", "CXXFLAGS")}
GGUF, ONNX, HF = "gguf", "onnx", "hf"


@dataclass(frozen=True)
class Runtime:
    """One runtime in one version.

    Attributes:
        name: as its table has it.
        program: of the folder `matrix`.
        reads: "gguf", "onnx" or "hf", or the name of a layout of `saap-edge export --for`.
        packages: pinned; of pip, or of npm where the program is JavaScript. Empty: it is what runs this benchmark.
        beside: whether packages of this environment (torch, transformers) are seen beside its own.
        change: what a user has to do to a file or folder of ours first; "" where it is taken as it is.
    """

    name: str
    program: str
    reads: tuple[str, ...]
    packages: tuple[str, ...] = ()
    beside: bool = False
    change: str = ""

    @property
    def node(self) -> bool:
        return self.program.endswith(".mjs")


RUNTIMES = (  # the references first
    Runtime("transformers", "transformers_.py", (HF,)),
    Runtime("llama-cpp-python", "llama_cpp_python.py", (GGUF,)),
    Runtime("ONNX Runtime", "onnxruntime_.py", (ONNX,)),
    Runtime("llama-cpp-python, a year old", "llama_cpp_python.py", (GGUF,), ("llama-cpp-python==0.3.16",)),
    Runtime("xllamacpp", "xllamacpp_.py", (GGUF,), ("xllamacpp==2026.10.11549",)),
    Runtime("node-llama-cpp", "node_llama_cpp.mjs", (GGUF,), ("node-llama-cpp@3.22.1",)),
    Runtime("wllama, in Chromium", "wllama_.py", (GGUF,), ("@wllama/wllama@3.13.0",)),
    Runtime("OpenVINO GenAI", "openvino_genai_.py", (GGUF,), ("openvino-genai==2026.4.1",)),
    Runtime("transformers, gguf_file", "transformers_.py", (GGUF,)),
    Runtime("mistralrs", "mistralrs_.py", (GGUF, HF), ("mistralrs==0.9.5",)),
    Runtime("gpt4all", "gpt4all_.py", (GGUF,), ("gpt4all==2.8.2",)),
    Runtime("ctransformers", "ctransformers_.py", (GGUF,), ("ctransformers==0.2.27",)),
    Runtime("CTranslate2", "ctranslate2_.py", (HF,), ("ctranslate2==4.8.5",), beside=True),
    Runtime("onnxruntime-genai", "genai.py", (ONNX,)),
    Runtime("OpenVINO", "openvino_.py", (ONNX,), ("openvino==2026.4.1",)),
    Runtime("optimum-onnx", "optimum_.py", (ONNX,), ("optimum-onnx==0.1.0", "transformers==4.57.6"), beside=True),
    Runtime("transformers.js, in node", "transformers_js.mjs", (ONNX,), ("@huggingface/transformers@4.3.2",),
            change="export --for transformers.js"),
)  # fmt: skip


def installed(runtime: Runtime, work: Path, told: Callable[[str], None]) -> list[str]:
    """The command that runs the runtime's program, in an environment that is made where it is missing.

    Raises RuntimeError with the installer's last words where a package cannot be had.
    """
    if not runtime.packages:
        return [sys.executable, str(PROGRAMS / runtime.program)]
    folder = work / "environments" / "".join(c if c.isalnum() or c in ".-" else "_" for c in "+".join(runtime.packages))
    npm = runtime.packages[0].startswith("@") or runtime.node
    if not (folder / ".ready").exists():
        told(f"installing {' '.join(runtime.packages)}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (_by_npm if npm else _by_pip)(runtime, folder)
        (folder / ".ready").touch()
    if not npm:
        return [str(folder / "bin" / "python"), str(PROGRAMS / runtime.program)]
    if runtime.node:  # node looks for packages beside the program
        return ["node", shutil.copy(PROGRAMS / runtime.program, folder)]
    return [sys.executable, str(PROGRAMS / runtime.program), str(folder)]


def _by_npm(runtime: Runtime, folder: Path) -> None:
    if shutil.which("npm") is None:
        raise RuntimeError("npm is not installed")
    (folder / "package.json").write_text("{}", encoding="utf-8")
    _run(
        [
            "npm",
            "install",
            "--silent",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--prefix",
            str(folder),
            *runtime.packages,
        ]
    )


def _by_pip(runtime: Runtime, folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    if runtime.beside:
        here = next(path for path in sys.path if path.endswith("site-packages"))
        there = next((folder / "lib").glob("python3*/site-packages"))
        (there / "beside.pth").write_text(here + "\n", encoding="utf-8")
    built = BUILT if platform.machine() == "x86_64" else {}
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *runtime.packages], built)


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3600, env=os.environ | (environment or {})
    )  # fmt: skip
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise RuntimeError(lines[-1])
