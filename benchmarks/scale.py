"""Memory and time of scoring a model with Llama-3.2-1B's shape, against its weights and a plain backward pass.

    python benchmarks/scale.py --threads 1 --out benchmarks/results/scale.json
    python benchmarks/scale.py --layers 2 --vocabulary 8192 --tokens 64 --window 64    # a try, in seconds

Two bounds: scoring's peak memory is at most 1.35 x the weights' bytes plus activations, and its time at most 1.15 x a
plain forward and backward over the same tokens, in the same process, alternating. Time is the process's CPU time, so
that other work on the machine does not count; the ratio of wall-clock times stands beside it.

  peak         VmHWM, set to zero when scoring starts, less VmRSS of the process before any model. It counts all pages
               that are in the process's memory: weights too where they are pages of the mapped file (column "mapped":
               the kernel may drop those when memory is short, "own" is the peak of RssAnon, sampled, without them).
  activations  bytes of unique storages that autograd saves over one forward of the decoder, parameters left out
               (torch.autograd.graph.saved_tensors_hooks), plus logits, log-probabilities and their gradient: for as
               many tokens as scoring takes at a time. With checkpointing: one hidden state a layer, plus the larger of
               one layer's saved bytes and those of the logits.
  plain        the model's own loss over all logits, gradients of all parameters, dropped after each batch.
  plain, same  the same, but gradients only of those parameters that are scored: embeddings, head and norms left out.

The model is random, written in a temporary folder a layer at a time; every measurement runs in a fresh process. Needs
8 GB of disk, 12 GB of memory and about 20 minutes of one core; ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from result import publish
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from sampling import sampling
from transformers import LlamaConfig
from transformers.utils import logging

from saap_edge.machine.facts import machine_facts
from saap_edge.model import head
from saap_edge.model.checkpointing import checkpointed
from saap_edge.model.folder import load_model
from saap_edge.pruning.score import score_model

MEMORY_BOUND, TIME_BOUND = 1.35, 1.15
BYTES = {"float32": 4, "bfloat16": 2}
console = Console(width=130)


# The model.


def config_of(layers: int, vocabulary: int) -> LlamaConfig:
    """Llama-3.2-1B's shape (16 layers, 128256 tokens)."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_theta=500000.0, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def write_model(folder: Path, config: LlamaConfig, dtype: str) -> None:
    """A random model, one file a layer, so that no more than a layer is ever held."""
    folder.mkdir()
    config.architectures, config.dtype = ["LlamaForCausalLM"], dtype
    config.save_pretrained(folder)
    torch.manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) * 0.02).to(getattr(torch, dtype))

    def ones() -> torch.Tensor:
        return torch.ones(config.hidden_size, dtype=getattr(torch, dtype))

    hidden, ffn, kv = config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }  # fmt: skip
    where: dict[str, str] = {}
    for index in range(config.num_hidden_layers + 1):
        prefix = f"model.layers.{index}."
        if index < config.num_hidden_layers:
            tensors = {f"{prefix}{name}.weight": random(*shape) for name, shape in shapes.items()}
            tensors |= {f"{prefix}{name}_layernorm.weight": ones() for name in ("input", "post_attention")}
        else:
            embeddings = random(config.vocab_size, hidden)
            tensors = {"model.embed_tokens.weight": embeddings, "model.norm.weight": ones()}
            if not config.tie_word_embeddings:
                tensors["lm_head.weight"] = random(config.vocab_size, hidden)
        name = f"model-{index:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    index_file = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file), encoding="utf-8")


# Measurements, each in a child process.


def memory() -> dict[str, int]:
    """VmRSS, VmHWM, RssAnon and RssFile of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.startswith(("VmRSS", "VmHWM", "RssAnon", "RssFile")))
    return {field[0].rstrip(":"): int(field[1]) * 1024 for field in fields}


@contextlib.contextmanager
def peaks(base: dict[str, int]) -> Iterator[dict[str, int]]:
    """Fills in the peak of memory inside the context, less `base`; own pages and mapped files by sampling."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    found = {"own": 0, "mapped": 0}

    def look() -> None:
        now = memory()
        found["own"] = max(found["own"], now["RssAnon"] - base["RssAnon"])
        found["mapped"] = max(found["mapped"], now["RssFile"] - base["RssFile"])

    try:
        with sampling(look, 0.01):
            yield found
    finally:
        found["peak"] = memory()["VmHWM"] - base["VmRSS"]


def saved_bytes(model, batch: torch.Tensor) -> tuple[int, int]:
    """Bytes autograd saves over a forward of the decoder, parameters left out: of all layers, of the last one."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}
    layer: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    last = model.model.layers[-1]  # the first saves less where nothing before it gets a gradient
    handles = [
        last.register_forward_pre_hook(lambda *_: layer.append(sum(seen.values()))),
        last.register_forward_hook(lambda *_: layer.append(sum(seen.values()))),
    ]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model.model(input_ids=batch, use_cache=False).last_hidden_state
    seen[states.untyped_storage().data_ptr()] = states.untyped_storage().nbytes()
    for handle in handles:
        handle.remove()
    return sum(seen.values()), layer[1] - layer[0]


def logit_bytes(tokens: int, vocabulary: int, dtype: str) -> int:
    """Logits, log-probabilities and the gradient in float32; in bfloat16 the head's output and its gradient too."""
    return tokens * vocabulary * (12 if dtype == "float32" else 16)


def random_batches(job: dict, vocabulary: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    shape = (job["tokens"] // job["window"], job["window"])
    return [torch.randint(0, vocabulary, shape) for _ in range(job["batches"])]


def child_count(job: dict, base: dict[str, int]) -> dict:
    """Peak of loading, weights and activations."""
    dtype = getattr(torch, job["dtype"])
    with peaks(base) as load:
        model = load_model(job["folder"], dtype)
    after = memory()
    vocabulary, layers = model.config.vocab_size, model.config.num_hidden_layers
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    result = {"load": load, "loaded_rss": after["VmRSS"] - base["VmRSS"], "weights": weights}
    if not job["count"]:
        return result
    batch = random_batches(job, vocabulary)[0]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("_proj" in name)
    saved, layer = saved_bytes(model, batch)
    held = min(head.LOGITS // vocabulary, batch[:, 1:].numel())
    logits = logit_bytes(held, vocabulary, job["dtype"])
    states = layers * batch.numel() * model.config.hidden_size * BYTES[job["dtype"]]
    activations = {False: saved + logits, True: states + max(layer, logits)}
    plain = saved + logit_bytes(batch.numel(), vocabulary, job["dtype"])
    return result | {"activations": [activations[False], activations[True]], "plain_activations": plain}


def child_score(job: dict, base: dict[str, int]) -> dict:
    """Times of scoring and of plain passes, alternating, and the peak memory of the first of each."""
    checkpointing = job["checkpointing"]
    model = load_model(job["folder"], getattr(torch, job["dtype"]))
    batches = random_batches(job, model.config.vocab_size)

    def scoring() -> None:
        score_model(model, batches, {}, checkpointing=checkpointing)

    def plain(all_parameters: bool = True) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(all_parameters or "_proj" in name)
        with checkpointed(model, checkpointing):
            for batch in batches:
                model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
                model.zero_grad()

    arms: dict[str, Callable[[], None]] = {"scoring": scoring, "plain": plain}
    if not checkpointing:
        arms["same"] = lambda: plain(False)
    for parameter in model.parameters():  # the file's pages are read before the clock runs
        parameter.detach().sum()
    memory_of: dict[str, dict[str, int]] = {}
    wall: dict[str, list[float]] = {name: [] for name in arms}
    cpu: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(job["rounds"]):
        for name, arm in arms.items():
            with peaks(base) if number == 0 else contextlib.nullcontext({}) as peak:
                start, busy = time.perf_counter(), time.process_time()
                arm()
                cpu[name].append(time.process_time() - busy)
                wall[name].append(time.perf_counter() - start)
            memory_of.setdefault(name, peak)
            print(f"{name}: {wall[name][-1]:.1f} s, {cpu[name][-1]:.1f} s of CPU", file=sys.stderr)
    return {"memory": memory_of["scoring"], "plain_memory": memory_of["plain"], "wall": wall, "cpu": cpu}


def child(job: dict, works: dict[str, Callable[[dict, dict[str, int]], dict]]) -> None:
    """Do the job's work, by its name, and print what it gives."""
    logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    base = memory()
    print(json.dumps(works[job["what"]](job, base) | {"base_rss": base["VmRSS"]}))


def run(job: dict, script: str = __file__, environment: dict[str, str] | None = None) -> dict:
    """What a fresh process of `script` gives for a job."""
    command = [sys.executable, script, "--child", json.dumps(job)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


# Tables.


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def show_costs(counts: dict[str, dict]) -> None:
    table = Table(title="cost card, GiB")
    columns = ("dtype", "checkpointing", "weights", "activations", "bound", "activations of a plain pass")
    for column in columns:
        table.add_column(column, justify="right")
    for dtype, count in counts.items():
        for checkpointing in (False, True):
            size = count["activations"][checkpointing]
            bound = MEMORY_BOUND * count["weights"] + size
            other = "" if checkpointing else gib(count["plain_activations"])
            figures = (gib(count["weights"]), gib(size), gib(bound), other)
            table.add_row(dtype, "yes" if checkpointing else "no", *figures)
    console.print(table)


def show_loads(loads: list[dict]) -> None:
    table = Table(title="loading, x the weights' bytes in memory")
    for column in ("file", "in memory", "weights GiB", "peak", "own pages at most", "after loading"):
        table.add_column(column, justify="right")
    for load in loads:
        weights = load["weights"]
        figures = (f"{load[name] / weights:.2f}" for name in ("peak", "own", "loaded_rss"))
        table.add_row(load["file"], load["dtype"], gib(weights), *figures)
    console.print(table)


def show_results(rows: list[dict]) -> None:
    table = Table(title="scoring: peak memory (GiB, less the libraries') and time against plain passes")
    for column in (
        "dtype", "checkp.", "peak", "bound", "x weights", "own", "mapped", "plain peak",
        "scoring s", "plain s", "ratio", "wall", "to same",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for row in rows:
        same = f"{row['time_ratio_same']:.3f}" if "time_ratio_same" in row else ""
        table.add_row(
            row["dtype"], "yes" if row["checkpointing"] else "no", gib(row["peak"]), gib(row["bound"]),
            f"{row['weights_factor']:.2f}", gib(row["own"]), gib(row["mapped"]), gib(row["plain_peak"]),
            f"{row['scoring_s']:.1f}", f"{row['plain_s']:.1f}", f"{row['time_ratio']:.3f}", f"{row['wall_ratio']:.3f}",
            same,
        )  # fmt: skip
    console.print(table)


def row_of(dtype: str, checkpointing: bool, count: dict, measured: dict) -> dict:
    """Judged figures; `weights_factor` is (peak - activations) / weights, which the bound holds to 1.35."""
    weights, activations = count["weights"], count["activations"][checkpointing]
    peak = measured["memory"]["peak"]

    def ratio(clock: str, other: str = "plain") -> float:
        pairs = zip(measured[clock]["scoring"], measured[clock][other], strict=True)
        return round(statistics.median(mine / its for mine, its in pairs), 4)

    bound = round(MEMORY_BOUND * weights) + activations
    row = {
        "dtype": dtype, "checkpointing": checkpointing, "weights": weights, "activations": activations,
        "bound": bound, "peak": peak, "own": measured["memory"]["own"], "mapped": measured["memory"]["mapped"],
        "base_rss": measured["base_rss"], "weights_factor": round((peak - activations) / weights, 4),
        "memory_met": peak <= bound, "plain_peak": measured["plain_memory"]["peak"],
        "scoring_s": round(statistics.median(measured["cpu"]["scoring"]), 3),
        "plain_s": round(statistics.median(measured["cpu"]["plain"]), 3), "time_ratio": ratio("cpu"),
        "time_met": ratio("cpu") <= TIME_BOUND, "wall_ratio": ratio("wall"),
        "cpu_seconds": measured["cpu"], "wall_seconds": measured["wall"],
    }  # fmt: skip
    return row | ({} if checkpointing else {"time_ratio_same": ratio("cpu", "same")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--tokens", type=int, default=256, help="tokens a batch (default 256)")
    parser.add_argument("--window", type=int, default=256, help="tokens a window (default 256)")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=3, help="alternating rounds, with checkpointing one less (default 3)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=list(BYTES), choices=list(BYTES))
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child), {"count": child_count, "score": child_score})
        return

    config = config_of(args.layers, args.vocabulary)
    job = {name: getattr(args, name) for name in ("tokens", "window", "batches", "rounds", "threads")}
    counts, loads, rows = {}, [], []
    with tempfile.TemporaryDirectory(prefix="saap-edge-scale-") as name:
        folders = {dtype: Path(name) / dtype for dtype in args.dtypes}
        for dtype, folder in folders.items():
            with console.status(f"writing the model in {dtype}, loading it and counting activations"):
                write_model(folder, config, dtype)
                for target in args.dtypes:
                    loading = job | {"what": "count", "folder": str(folder), "dtype": target, "count": target == dtype}
                    count = run(loading)
                    loads.append({
                        "file": dtype, "dtype": target, "weights": count["weights"], "loaded_rss": count["loaded_rss"],
                        **count["load"],
                    })  # fmt: skip
                    if target == dtype:
                        counts[dtype] = count
        show_costs(counts)
        show_loads(loads)
        for dtype, folder in folders.items():
            for checkpointing in (False, True):
                with console.status(f"scoring in {dtype}, checkpointing {'on' if checkpointing else 'off'}"):
                    scoring = job | {"what": "score", "folder": str(folder), "dtype": dtype}
                    rounds = max(1, args.rounds - checkpointing)
                    measured = run(scoring | {"checkpointing": checkpointing, "rounds": rounds})
                rows.append(row_of(dtype, checkpointing, counts[dtype], measured))
    show_results(rows)
    result = {
        "benchmark": "scale", "shape": {"layers": args.layers, "vocabulary": args.vocabulary, "hidden": 2048},
        "machine": machine_facts(), "torch": torch.__version__, "conditions": job, "loading": loads, "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


if __name__ == "__main__":
    main()
