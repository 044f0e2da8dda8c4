"""What running a GGUF file costs, read from its header."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from saap_edge.engines.base import ArtifactCost
from saap_edge.engines.gguf_header import read_header
from saap_edge.engines.gguf_shape import read_shape
from saap_edge.errors import SaapError

__all__ = ["gguf_cost"]

# Bytes of work space of a token for each number of the widest FFN and of the hidden size, from benchmarks/ubatch.py.
_FFN_WORK, _HIDDEN_WORK = 14, 6
_F32 = 4  # of a number of what convolutions remember
_F16 = 2  # bytes of a number in llama.cpp's KV cache
_TABLES = {"per_layer_token_embd.weight", "position_embd.weight", "token_types.weight"}
_KNOWN = re.compile(
    r"(blk\.\d+\.[\w.]+|token_embd|token_embd_norm|token_types|position_embd|output|output_norm|rope_freqs"
    r"|rope_factors_long|rope_factors_short|altup_proj|altup_unembd_proj|per_layer_\w+)(\.weight|\.bias|\.scale)?"
)


def gguf_cost(path: Path, artifact_format: str | None) -> ArtifactCost:
    """The cost of a GGUF file. Without `artifact_format`, the type of most tensors names the format.

    Raises SaapError when the header is damaged, or does not tell how many bytes a token reads.
    """
    header = read_header(path)
    sizes = {tensor.name: tensor.bytes for tensor in header.tensors}
    if any("_exps" in name for name in sizes):
        raise SaapError(f"'{path}' is a mixture of experts: how many of its bytes a token reads cannot be told")
    shape = read_shape(header)
    strange = next((name for name in sizes if not _KNOWN.fullmatch(name)), None)
    if strange is not None:
        raise SaapError(f"'{path}' holds '{strange}': how much of it a token reads cannot be told")
    # A token reads one row of a table. The embedding is such a table, unless it is the head, too.
    tables = _TABLES | ({"token_embd.weight"} if "output.weight" in sizes else set())
    kinds: Counter[str] = Counter()
    for tensor in header.tensors:
        kinds[tensor.kind] += tensor.bytes if tensor.name.startswith("blk.") else 0
    return ArtifactCost(
        artifact_format or f"gguf-{kinds.most_common(1)[0][0]}",
        sum(size for name, size in sizes.items() if name not in tables), _F16 * shape.kv_elements, header.bytes,
        sum(tensor.elements for tensor in header.tensors), shape.context, shape.kv_elements, shape.head_dims,
        state_bytes=_F32 * shape.state_elements, batch_bytes=_FFN_WORK * shape.widest_ffn + _HIDDEN_WORK * shape.hidden,
    )  # fmt: skip
