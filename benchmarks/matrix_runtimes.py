"""The runtimes of runtime_matrix.py: what each is installed from, what it reads, and which program runs it."""

from __future__ import annotations

import json
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
GGUF, ONNX, HF, OPENVINO, PTE = "gguf", "onnx", "hf", "openvino", "pte"
NOT_FOR_CPUS = ("nvidia-", "cuda-", "flashinfer")  # how packages begin that bring gigabytes for GPUs


@dataclass(frozen=True)
class Runtime:
    """One runtime in one version.

    Attributes:
        name: as its table has it.
        program: of the folder `matrix`; "" where the package cannot be had on a CPU.
        reads: kinds of files, as FILES of runtime_matrix.py has them.
        packages: pinned; of pip, or of npm where the program is JavaScript. Empty: it is what runs this benchmark.
        beside: whether packages of this environment (torch, transformers) are seen beside its own. What `change` does
            is then done in its environment.
        change: what a user has to do to a file or folder of ours first, `export --for NAME`; "" where it is taken as
            it is.
    """

    name: str
    program: str
    reads: tuple[str, ...]
    packages: tuple[str, ...] = ()
    beside: bool = False
    change: str = ""

    @property
    def layout(self) -> str:
        """The name after `--for`, or ""."""
        return self.change.rpartition(" ")[2]

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
    Runtime("OpenVINO GenAI, GGUF", "openvino_genai_.py", (GGUF,), ("openvino-genai==2026.4.1",)),
    Runtime("OpenVINO GenAI", "openvino_genai_.py", (OPENVINO,), ("openvino-genai==2026.4.1",)),
    Runtime("transformers, gguf_file", "transformers_.py", (GGUF,)),
    Runtime("mistralrs", "mistralrs_.py", (GGUF, HF), ("mistralrs==0.9.5",)),
    Runtime("mistralrs, whole heads", "mistralrs_.py", (GGUF,), ("mistralrs==0.9.5",), change="export --for gpt4all"),
    Runtime("gpt4all", "gpt4all_.py", (GGUF,), ("gpt4all==2.8.2",)),
    Runtime("gpt4all, whole heads", "gpt4all_.py", (GGUF,), ("gpt4all==2.8.2",), change="export --for gpt4all"),
    Runtime("ctransformers", "ctransformers_.py", (GGUF,), ("ctransformers==0.2.27",)),
    Runtime("transformers 4.57", "transformers_.py", (HF,), ("transformers==4.57.6",), beside=True),
    Runtime("CTranslate2", "ctranslate2_.py", (HF,), ("ctranslate2==4.8.5",), beside=True),
    Runtime("LiteRT", "litert_.py", (HF,), ("litert-torch==0.10.0", "tensorflow-cpu==2.21.0"), beside=True),
    Runtime("vLLM", "", (HF,), ("vllm==0.33.0",)),
    Runtime("onnxruntime-genai", "genai.py", (ONNX,)),
    Runtime("OpenVINO", "openvino_.py", (ONNX,), ("openvino==2026.4.1",)),
    Runtime("optimum-onnx", "optimum_.py", (ONNX,), ("optimum-onnx==0.1.0", "transformers==4.57.6"), beside=True),
    Runtime("MNN", "mnn_.py", (ONNX,), ("mnn==3.6.1",)),
    Runtime("transformers.js, in node", "transformers_js.mjs", (ONNX,), ("@huggingface/transformers@4.3.2",),
            change="export --for transformers.js"),
    Runtime("ExecuTorch", "executorch_.py", (PTE,), ("executorch==1.5.1", "torchao==0.18.0"), beside=True,
            change="export --for executorch"),
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
        if not runtime.program:
            raise RuntimeError("it can be had now: write its program")
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
    quiet = ["--silent", "--ignore-scripts", "--no-audit", "--no-fund"]
    _run(["npm", "install", *quiet, "--prefix", str(folder), *runtime.packages])


def _by_pip(runtime: Runtime, folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)])
    python = str(folder / "bin" / "python")
    if runtime.beside:
        here = next(path for path in sys.path if path.endswith("site-packages"))
        there = next((folder / "lib").glob("python3*/site-packages"))
        (there / "beside.pth").write_text(here + "\n", encoding="utf-8")
    _refuse_gpus(python, runtime.packages, folder / "report.json")
    built = BUILT if platform.machine() == "x86_64" else {}
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *runtime.packages], built)


def _refuse_gpus(python: str, packages: tuple[str, ...], report: Path) -> None:
    """Raise RuntimeError where one of the packages asks for others that are for GPUs only; nothing is installed."""
    asked = ["install", "--quiet", "--disable-pip-version-check", "--dry-run", "--no-deps", "--ignore-installed"]
    _run([python, "-m", "pip", *asked, "--report", str(report), *packages])
    for package in json.loads(report.read_text(encoding="utf-8"))["install"]:
        told = package["metadata"]
        needs = (line for line in told.get("requires_dist", ()) if "extra ==" not in line)
        found = [line for line in needs if line.lower().startswith(NOT_FOR_CPUS)]
        if found:
            raise RuntimeError(f"{told['name']} {told['version']} on PyPI is for GPUs: it requires {', '.join(found)}")


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=3600, env=os.environ | (environment or {})
    )  # fmt: skip
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise RuntimeError(lines[-1])
