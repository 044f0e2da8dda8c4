"""How fast a model writes its own calibration text, and how much of it is dropped; beside transformers.generate.

    python benchmarks/self_text.py --model MODEL --tokens 20000 --out RESULT.json

llama.cpp writes from the Q8_0 file, as `saap-edge write` does; transformers writes in bfloat16. Both write as many
documents at a time, with as many threads. Seconds are of CPU time, the start of the runtime included, so that other
programs disturb less; `clock_s` are those on the clock. --keep names a folder for the text.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from result import publish

from saap_edge.cli.base import bars, quiet_libraries
from saap_edge.engines.llama_writer import SLOTS
from saap_edge.machine.facts import machine_facts
from saap_edge.recipe import bundled_model
from saap_edge.writing.forms import read_form
from saap_edge.writing.write import LEAST_LIKELY, TEMPERATURES, write_text

GENERATED = 128  # tokens of each document that transformers writes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model(), help="Hugging Face folder")
    parser.add_argument("--tokens", type=int, default=20_000, help="tokens to write")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the text")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    result = {
        "benchmark": "self_text", "model": options.model.name, "threads": options.threads, "documents_at_a_time": SLOTS,
        "machine": machine_facts(), "llama.cpp": written(options), "transformers": generated(options.model),
    }  # fmt: skip
    publish(result, options.out)


def written(options: Any) -> dict[str, Any]:
    """What `saap-edge write` does. The child's CPU time is known when it has ended."""
    with tempfile.TemporaryDirectory() as scratch, bars.bar("llama.cpp", options.tokens) as advance:
        out, clock, cpu = Path(scratch), time.monotonic(), _children()
        record = write_text(
            options.model, out, out / "work", tokens=options.tokens, seed=options.seed, threads=options.threads,
            progress=advance,
        )  # fmt: skip
        record |= {"cpu_s": round(_children() - cpu, 1), "clock_s": round(time.monotonic() - clock, 1)}
        if options.keep:
            shutil.copytree(out, options.keep, ignore=shutil.ignore_patterns("work"), dirs_exist_ok=True)
    sampled = record["sampled_tokens"]
    dropped = round(sum(record["dropped"].values()) / record["drafted"], 3)
    return record | {"dropped_share": dropped, "tokens_per_cpu_s": round(sampled / record["cpu_s"], 1)}


def generated(model: Path) -> dict[str, Any]:
    """transformers.generate in bfloat16, from the first tokens of a document."""
    from transformers import AutoModelForCausalLM

    form = read_form(model)
    loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16).eval()
    given = [*form.parts[0][0], form.starts[0]]
    ids = torch.tensor([given] * SLOTS)
    with bars.bar("transformers", None):
        clock, cpu = time.monotonic(), time.process_time()
        loaded.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TEMPERATURES[1], top_k=0,
            min_p=LEAST_LIKELY, max_new_tokens=GENERATED, min_new_tokens=GENERATED,
        )  # fmt: skip
        seconds = time.process_time() - cpu
    return {
        "sampled_tokens": SLOTS * GENERATED, "cpu_s": round(seconds, 1), "clock_s": round(time.monotonic() - clock, 1),
        "tokens_per_cpu_s": round(SLOTS * GENERATED / seconds, 1),
    }  # fmt: skip


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
