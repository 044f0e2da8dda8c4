"""Names of files as llama.cpp, the hub and Ollama look for them."""

from __future__ import annotations

import re

import pytest

from saap_edge.errors import SaapError
from saap_edge.formats import FORMATS
from saap_edge.publishing.names import check_repo, found_by_llama_cpp, gguf_name, gguf_tag
from saap_edge.publishing.usage import GGUF

# GGUF_QUANT_RE of huggingface.js, packages/tasks/src/gguf.ts, by which the hub and Ollama know a file's type.
HUB = re.compile(
    r"(UD-)?(F32|F16|Q4_0|Q4_1|Q4_1_SOME_F16|Q4_2|Q4_3|Q8_0|Q5_0|Q5_1|Q2_K|Q3_K_S|Q3_K_M|Q3_K_L|Q4_K_S|Q4_K_M|Q5_K_S|"
    r"Q5_K_M|Q6_K|IQ2_XXS|IQ2_XS|Q2_K_S|IQ3_XS|IQ3_XXS|IQ1_S|IQ4_NL|IQ3_S|IQ3_M|IQ2_S|IQ2_M|IQ4_XS|IQ1_M|BF16|TQ1_0|TQ2_0)"
    r"(_[A-Z]+)?"
)
ALL = [record.quantisation for record in FORMATS.values() if record.kind == GGUF]
NAMES = [gguf_name("me/Some-1.5B-GGUF", one) for one in ALL]


@pytest.mark.parametrize("quantisation", ALL)
def test_the_hub_knows_the_type(quantisation):
    name = gguf_name("me/Some-Q8_0-1.5B", quantisation)
    assert [found.group() for found in HUB.finditer(name.upper())][-1] == gguf_tag(quantisation)


@pytest.mark.parametrize("quantisation", ALL)
def test_llama_cpp_finds_it_by_its_tag(quantisation):
    found = found_by_llama_cpp(gguf_tag(quantisation), NAMES)
    wanted = gguf_name("me/Some-1.5B-GGUF", quantisation)
    assert found == wanted or (quantisation == "f16" and found == "Some-1.5B-BF16.gguf")
    assert found_by_llama_cpp(gguf_tag(quantisation).lower(), [wanted]) == wanted


def test_files_that_are_no_models():
    assert found_by_llama_cpp("Q4_0", ["mmproj-x-Q4_0.gguf", "x-Q4_0.txt", "x-Q4_01.gguf"]) is None


@pytest.mark.parametrize(
    "name", ["me", "me/", "/x", "me/x/y", "me/x.git", "me/a--b", "me/-x", "me/" + "x" * 97, "me/mmproj"]
)
def test_names_that_are_refused(name):
    with pytest.raises(SaapError, match="--repo"):
        check_repo(name)
