"""Published measurements of boards as rows that a fit can use, and the rules by which the others are dropped."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from saap_edge.errors import SaapError
from saap_edge.targets import Bandwidth, Core, Figure, Target, list_targets, load_target

__all__ = ["DATA", "RULES", "Row", "read_boards", "read_rows"]

DATA = Path(__file__).with_name("data")
RULES = {
    "in_stats": "the column in_stats says n: few threads, mixtures of experts, no file size, end-to-end figures, NPUs",
    "engine": "on a CPU, another engine than llama.cpp or what wraps it (Ollama, llamafile): not what runs our files",
    "npu": "an NPU: nothing of ours runs there",
    "bandwidth": "no bandwidth of the board is known",
    "model": "the shape of the model or the size of its file is not known",
}
_ENGINES = ("llama.cpp", "ollama", "llamafile")
_BOARDS = {
    "rk3588_cpu": "rk3588", "rk356x": "rk3566", "orin_nano_cpu": "orin-nano", "jetson_nano_cpu": "jetson-nano",
    "steamdeck_cpu": "steam-deck", "tensor_g3": "pixel8", "x86_rai340": "x86-laptop", "x86_8700": "i7-8700",
    "x86_sb3": "surface-book-3",
}  # fmt: skip
# Bits of a weight in llama.cpp's files; the head is Q6_K in 4-bit files, and rows that are no multiple of 256 take the
# next type that fits: Q8_0 for Q6_K.
_BITS = {"Q4_K_M": 4.5, "Q4_0": 4.5, "Q8_0": 8.5, "F16": 16.0, "Q6_K": 6.5625}
_Q6_K, _Q8_0 = 6.5625, 8.5


@dataclass(frozen=True)
class Row:
    """One published measurement. `bytes` are read, `weights` multiplied for a decoded token."""

    target: Target
    model: str
    quantisation: str
    engine: str
    bytes: float
    weights: float
    bits: float
    decode: float
    prefill: float | None
    source: str

    @property
    def author(self) -> str:
        """The owner of a repository, else the site."""
        url = urlsplit(self.source.split()[0])
        return url.path.split("/")[1] if url.netloc == "github.com" else url.netloc or self.source


def read_boards(folders: list[Path]) -> dict[str, Target]:
    """The shipped boards, and those of further folders, by name."""
    paths = [str(path) for folder in folders for path in sorted(folder.glob("*.yaml"))]
    return {board.name: board for board in map(load_target, [*(n for n in list_targets() if n != "host"), *paths])}


def read_rows(path: Path, boards: dict[str, Target]) -> tuple[list[Row], Counter[str]]:
    """(rows that a fit can use, number of dropped rows by rule: the first that applies)."""
    with (DATA / "models.csv").open(encoding="utf-8") as file:
        models = {name: model for model in csv.DictReader(file) for name in model["names"].split("|")}
    rows, dropped = [], Counter(dict.fromkeys(RULES, 0))
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                row = _row(line, boards, models)
                if isinstance(row, Row):
                    rows.append(row)
                else:
                    dropped[row] += 1
    except (OSError, KeyError, ValueError) as error:
        raise SaapError(f"'{path}' is no table of measurements: {error!r}") from None
    return rows, dropped


def _row(line: dict[str, str], boards: dict[str, Target], models: dict[str, dict[str, str]]) -> Row | str:
    """A row, or the rule by which there is none."""
    if line["in_stats"] != "y":
        return "in_stats"
    if line["board"].endswith("_npu"):
        return "npu"
    accelerated = line["board"].endswith("_gpu") or "GPU" in line["threads"]
    if not accelerated and not line["engine"].lower().startswith(_ENGINES):
        return "engine"
    target = _accelerator(line) if accelerated else boards.get(_BOARDS.get(line["board"], line["board"]))
    if target is None or not (target.bandwidth_gb_s.copy_measured or target.bandwidth_gb_s.theoretical):
        return "bandwidth"
    model = models.get(line["model"])
    if model is None or not line["file_bytes"]:
        return "model"
    read, weights, bits = _read(line, model)
    return Row(
        target, model["model"], line["quant"], line["engine"], read, weights, bits, float(line["tg_tps"]),
        float(line["pp_tps"]) if line["pp_tps"] else None, line["source"],
    )  # fmt: skip


def _accelerator(line: dict[str, str]) -> Target | None:
    """Of an accelerator only the bandwidth counts."""
    if not line["bw_theo_GBs"]:
        return None
    name = line["board"].replace("_", "-").removesuffix("-gpu") + "-gpu"
    figure = Figure(value=float(line["bw_theo_GBs"]), source="column bw_theo_GBs")
    return Target(
        name=name, title=name, cpu="", accelerator=name, cores=[Core(kind="accelerator", count=1)], ram_mib=[1],
        threads=1, bandwidth_gb_s=Bandwidth(theoretical=figure), source=line["source"],
    )  # fmt: skip


def _read(line: dict[str, str], model: dict[str, str]) -> tuple[float, float, float]:
    """(bytes read, weights multiplied, bits of a weight) of a decoded token.

    A table of embeddings that is not the head is not read. Where the file's size is an estimate it is made again, with
    the head in llama.cpp's type for it.
    """
    parameters, table = 1e6 * float(model["parameters_m"]), int(model["vocabulary"]) * int(model["hidden"])
    tied, bits = model["tied"] == "y", _BITS.get(line["quant"], 4.5)
    weights = parameters if tied else parameters - table
    if line["bytes_basis"].startswith("EST") and line["quant"] in _BITS:
        odd = int(model["hidden"]) % 256 != 0
        head = max(bits, _Q6_K)
        head = _Q8_0 if odd and head == _Q6_K else head
        body = (
            (2 * _Q8_0 + bits) / 3 if odd and bits == _Q6_K else bits
        )  # a third of a layer, down_proj, has other rows
        return ((weights - table) * body + table * head) / 8, weights, bits
    return float(line["file_bytes"]) - (0 if tied else table * bits / 8), weights, bits
