"""Speed of pruned against dense on a model where weights matter, beside the ideal from bytes read per token.

    python benchmarks/speed.py --threads 1 --out benchmarks/results/speed.json

Decoding one token reads every weight once, so it is bound by memory: the ideal speed-up is the ratio of the bytes read
(weights, scales and KV cache). Where a cache holds the pruned model but not the dense one, reading gets faster too:
the column "floors" is the ratio of the times one thread needs to read as many bytes. Prefill is bound by arithmetic.

The model is random with SmolLM2-135M's shape (speed does not depend on the weights' values), pruned at random but
non-uniform widths on the runtimes' grid. Dense and pruned run in alternating rounds, each in a child process of its
own. Needs 4 GB of disk in the temporary folder and about 5 minutes on 2 cores; ends with one JSON line.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import torch
from result import publish
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from saap_edge.bench.measure import BenchConditions, Pair, Subject, measure_pairs
from saap_edge.export.artifacts import Artifact, engine_of, export_artifacts
from saap_edge.model.folder import build_pruned, save_model
from saap_edge.model.spec import LayerShape
from saap_edge.prune.space import Cost
from saap_edge.targets import measure_bandwidth

HIDDEN, HEAD_DIM, LAYERS = 576, 64, 30
DENSE = LayerShape(heads=9, kv_heads=3, ffn=1536)
FORMATS = ("gguf-f16", "gguf-q8_0", "gguf-q4_0", "onnx-fp32", "onnx-int4")
console = Console(width=120)


def random_widths(ratio: float, seed: int = 0) -> list[LayerShape]:
    """Non-uniform widths that remove `ratio` of attention and FFN parameters to within half a percent."""
    dice, widths = random.Random(seed), [DENSE] * LAYERS
    total = LAYERS * Cost().layer(DENSE, HIDDEN, HEAD_DIM)

    def removed() -> float:
        return 1 - sum(Cost().layer(shape, HIDDEN, HEAD_DIM) for shape in widths) / total

    while removed() < ratio - 0.002:
        index = dice.randrange(LAYERS)
        shape = widths[index]
        if dice.random() < 0.1 and shape.kv_heads > 1 and ratio - removed() > 0.01:
            widths[index] = LayerShape(shape.heads - 3, shape.kv_heads - 1, shape.ffn)
        elif shape.ffn > 32:
            widths[index] = LayerShape(shape.heads, shape.kv_heads, shape.ffn - 32)
    assert abs(removed() - ratio) < 0.005
    return widths


def write_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *alphabet, "th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))  # llama.cpp wants at least one merge
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>").save_pretrained(
        folder
    )


def write_models(scratch: Path, ratios: list[float]) -> dict[str, Path]:
    """The dense model and its pruned versions as Hugging Face folders."""
    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=HIDDEN, intermediate_size=DENSE.ffn, num_hidden_layers=LAYERS,
        num_attention_heads=DENSE.heads, num_key_value_heads=DENSE.kv_heads, head_dim=HEAD_DIM,
        max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip
    folders = {}
    for name, ratio in [("dense", 0.0), *((f"{ratio:.0%}", ratio) for ratio in ratios)]:
        folder = scratch / f"model-{name.rstrip('%')}"
        folder.mkdir()
        write_tokenizer(folder)
        model = dense
        if ratio:
            model = build_pruned(dense, random_widths(ratio))
            with torch.no_grad():
                for parameter in model.model.layers.parameters():
                    if parameter.ndim == 2:
                        parameter.normal_(0, 0.02)
        save_model(model, folder, folder)
        folders[name] = folder
    return folders


def export(folders: dict[str, Path], scratch: Path, formats: list[str]) -> dict[str, dict[str, Subject]]:
    """Artifacts by model and format."""
    found: dict[str, dict[str, Subject]] = {}
    for name, folder in folders.items():
        out = scratch / f"export-{folder.name}"
        out.mkdir()
        manifest = export_artifacts(folder, out, tuple(formats), name, {}, lambda _: None)

        def subject(artifact: Artifact, out: Path = out) -> Subject:
            return Subject(out / artifact.path, artifact.projection_bytes, artifact.bytes)

        found[name] = {artifact.format: subject(artifact) for artifact in manifest.artifacts}
    return found


def floor_seconds(subject: Subject) -> float:
    """Seconds one thread needs to read as many bytes as a token does, over and over: caches count, as they do there."""
    size = subject.projection_bytes
    return size / measure_bandwidth(max(1, size >> 20), rounds=9)[1] / 1e9


def show_costs(subjects: dict[str, dict[str, Subject]], floors: dict[str, dict[str, float]]) -> None:
    table = Table(title="cost card: bytes of weights read per token, and the time one thread needs to read them")
    for column in ("format", "model", "MB/token", "read at GB/s", "floor ms/token", "ceiling tok/s"):
        table.add_column(column, justify="right")
    for name, formats in subjects.items():
        for kind, subject in formats.items():
            size, seconds = subject.projection_bytes, floors[name][kind]
            figures = (size / 1e6, size / seconds / 1e9, 1000 * seconds, 1 / seconds)
            table.add_row(kind, name, *(f"{figure:.1f}" for figure in figures))
    console.print(table)


def show_results(rows: list[dict]) -> None:
    table = Table(title="decode, dense against pruned, alternating")
    for column in (
        "format",
        "pruned",
        "dense tok/s",
        "pruned tok/s",
        "speed-up [95 %]",
        "ideal",
        "of ideal",
        "floors",
        "prefill",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["format"], row["pruned"], f"{row['dense_tok_s']:.0f}", f"{row['pruned_tok_s']:.0f}",
            f"{row['speedup']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", f"{row['ideal']:.2f}",
            f"{row['speedup'] / row['ideal']:.2f}", f"{row['floor_ratio']:.2f}", f"{row['prefill_speedup']:.2f}",
        )  # fmt: skip
    console.print(table)


def row_of(ratio: str, pair: dict, floors: dict[str, dict[str, float]]) -> dict:
    decode = pair["ratios"]["decode_tok_s"]
    return {
        "format": pair["format"], "pruned": ratio, "dense_tok_s": round(pair["dense"]["decode_tok_s"]["median"], 1),
        "pruned_tok_s": round(pair["pruned"]["decode_tok_s"]["median"], 1), "speedup": round(decode["ratio"], 4),
        "low": round(decode["low"], 4), "high": round(decode["high"], 4), "ideal": round(pair["ideal_decode_ratio"], 4),
        "floor_ratio": round(floors["dense"][pair["format"]] / floors[ratio][pair["format"]], 3),
        "of_ideal": round(decode["ratio"] / pair["ideal_decode_ratio"], 3),
        "prefill_speedup": round(pair["ratios"]["prefill_tok_s"]["ratio"], 3),
        "dense_bytes_per_token": pair["dense"]["bytes_per_token"],
        "pruned_bytes_per_token": pair["pruned"]["bytes_per_token"],
        "dense_peak_rss_mib": round(pair["dense"]["peak_rss_mib"]["median"], 1),
        "pruned_peak_rss_mib": round(pair["pruned"]["peak_rss_mib"]["median"], 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="alternating rounds that count (default 15)")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), help="artifacts to measure")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--out", type=Path, help="save the JSON document here too")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="saap-edge-speed-") as name:
        scratch = Path(name)
        with console.status("building and exporting"):
            subjects = export(write_models(scratch, args.ratios), scratch, args.formats)
        bandwidth = measure_bandwidth()[1]
        floors = {name: {kind: floor_seconds(s) for kind, s in formats.items()} for name, formats in subjects.items()}
        show_costs(subjects, floors)
        conditions = BenchConditions(args.threads, prompt_tokens=64, decode_tokens=32, rounds=args.rounds)
        rows = []
        for ratio in list(subjects)[1:]:
            pairs = [Pair(engine_of(f), f, subjects["dense"][f], subjects[ratio][f]) for f in args.formats]
            with console.status(f"measuring {ratio}"):
                document = measure_pairs(pairs, conditions)
            rows += [row_of(ratio, pair, floors) for pair in document["pairs"]]
        show_results(rows)
    result = {
        "benchmark": "speed", "shape": "SmolLM2-135M, random weights", "machine": document["machine"],
        "conditions": document["conditions"], "read_bandwidth_gb_s": round(bandwidth, 2), "rows": rows,
    }  # fmt: skip
    publish(result, args.out)


if __name__ == "__main__":
    main()
