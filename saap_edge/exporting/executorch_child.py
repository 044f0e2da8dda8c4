"""A process that runs a .pte: `python -m saap_edge.exporting.executorch_child PTE IN OUT`.

It is a process of its own because a program may abort it, and because ExecuTorch writes its log to stderr. IN is a
safetensors file of token ids, int64 [n], by names that sort in the order in which they are run, each after the other;
OUT gets the logits that follow each, float32 [vocab], under the same names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import executorch.extension.llm.custom_ops.custom_ops
import executorch.kernels.quantized  # noqa: F401 (both register operators with the runtime)
import torch
from executorch.runtime import Runtime
from safetensors.torch import load_file, save_file

__all__ = ["main"]


def main() -> None:
    """Run the program."""
    path, source, out = map(Path, sys.argv[1:])
    method = Runtime.get().load_program(path).load_method("forward")
    answers, start = {}, 0
    for name, tokens in sorted(load_file(source).items()):
        places = torch.arange(start, start + len(tokens))
        answers[name] = method.execute([tokens[None], places])[0][0].clone()
        start += len(tokens)
    save_file(answers, out)


if __name__ == "__main__":
    main()
