"""Write converter.json: what llama.cpp's own converter makes of the models in converter_models.py.

Run in the repository's root with the converter of the pinned version, which the source of llama-cpp-python holds:

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    pip install sentencepiece
    PYTHONPATH=. python tests/exporting/make_converter_json.py llama_cpp_python-0.3.36/vendor/llama.cpp

It knows a tokenizer's splitting rule only by a hash of what known tokenizers give: for these models the name is ours.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from saap_edge.exporting.tokenizer_rules import splitting_rule
from tests.exporting.converter_models import CASES, TYPES, metadata, tensors, write_case

OUT = Path(__file__).with_name("converter.json")
RUN = """
import runpy, sys
root, rule, *arguments = sys.argv[1:]
sys.path[:0] = [root, root + "/gguf-py"]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: rule
sys.argv = ["convert_hf_to_gguf.py", *arguments]
runpy.run_path(root + "/convert_hf_to_gguf.py", run_name="__main__")
"""


def convert(root: Path, folder: Path, kind: str, out: Path) -> None:
    """Run the converter on a folder."""
    rule = splitting_rule(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    arguments = [str(root), rule, str(folder), "--outtype", kind, "--outfile", str(out)]
    subprocess.run([sys.executable, "-c", RUN, *arguments], check=True)


def main() -> None:
    """One entry a case: metadata, and the tensors of every type."""
    root, record = Path(sys.argv[1]).resolve(), {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in CASES:
            folder = write_case(name, Path(scratch) / name)
            record[name] = {"metadata": {}, "tensors": {}}
            for kind in TYPES:
                out = Path(scratch) / f"{name}-{kind}.gguf"
                convert(root, folder, kind, out)
                record[name]["metadata"] = metadata(out)
                record[name]["tensors"][kind] = tensors(out)
    OUT.write_text(re.sub(r"\n {4,}|\n {3}(?=\])", " ", json.dumps(record, indent=1)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
