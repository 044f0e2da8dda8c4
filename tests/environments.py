"""Other Python environments and a llama-bench, made of what the suite itself runs on: no network is needed."""

from __future__ import annotations

import sys
import sysconfig
import venv
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))
ROOT = Path(__file__).parents[1]


def make_environment(folder: Path, *names: str, everything: bool = False) -> Path:
    """An environment without pip. It has links to the suite's modules of these names, or with `everything` all."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if everything:
        (site / "suite.pth").write_text(f"{PACKAGES}\n")
    for name in names:
        found = [path for end in ("", ".py", ".libs") if (path := PACKAGES / f"{name}{end}").exists()]
        found += PACKAGES.glob(f"{name.replace('-', '_')}-*.dist-info")
        assert found, name
        for path in found:
            (site / path.name).symlink_to(path)
    return folder


# It prints what llama-bench prints (tests/measuring/llama-bench.json is from one), and runs the file in llama.cpp.
LLAMA_BENCH = """#!{python}
import json, sys, time
sys.path[:0] = {path!r}
if "--help" in sys.argv:
    print("usage: llama-bench [options]\\n  --n-prompt <n>\\n  --n-gen <n>\\n  --n-depth <n>\\n  --output <json>")
    sys.exit(0)
options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
assert options["-o"] == "json" and options["-r"] == "1" and options["-ngl"] == "0" and options["-fa"] == "1", options
from pathlib import Path
from saap_edge.engines.llama_cpp import LlamaCppEngine
prompt, decode, depths = int(options["-p"]), int(options["-n"]), [int(d) for d in options["-d"].split(",")]
try:
    engine = LlamaCppEngine(Path(options["-m"]), int(options["-t"]), max(depths) + max(prompt, decode))
except Exception as error:
    print(f"main: error: failed to load model '{{options['-m']}}'", file=sys.stderr)
    sys.exit(1)
rows = []
for depth in depths:
    for n_prompt, n_gen in ((prompt, 0), (0, decode)):
        engine.reset()
        if depth:
            engine.forward(list(range(depth)))
        start = time.perf_counter_ns()
        if n_prompt:
            engine.forward(list(range(n_prompt)))
        for token in range(n_gen):
            engine.forward([token])
        rows.append({{"build_commit": "abc1234", "build_number": 10222, "cpu_info": "A CPU", "gpu_info": "",
                     "backends": "CPU", "model_filename": options["-m"], "n_threads": int(options["-t"]),
                     "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": depth,
                     "samples_ns": [time.perf_counter_ns() - start]}})
print(json.dumps(rows))
"""


def write_llama_bench(path: Path) -> Path:
    """A program that answers as llama-bench does, of the suite's own llama.cpp."""
    path.write_text(LLAMA_BENCH.format(python=sys.executable, path=[str(ROOT), str(PACKAGES)]))
    path.chmod(0o755)
    return path
