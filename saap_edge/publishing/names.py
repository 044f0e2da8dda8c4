"""Names of files in a repository, as runtimes look for them.

llama.cpp's `-hf OWNER/NAME:TAG` takes the first file, in the order of the repository, whose path holds the tag before a
"." or "-" in any case (find_best_model in common/download.cpp). Ollama's `hf.co/OWNER/NAME:TAG` and the hub take the
last type that a file's name holds (GGUF_QUANT_RE in huggingface.js), or the whole name of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from saap_edge.errors import SaapError

__all__ = ["check_repo", "found_by_llama_cpp", "gguf_name", "gguf_tag", "model_name"]

# llama.cpp takes a file whose name holds one of these for something that goes with a model.
_NO_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


def check_repo(repo: str, option: str = "--repo") -> str:
    """The name of a repository, OWNER/NAME. Raises SaapError, which names `option`, for one that the hub or llama.cpp
    does not take."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise SaapError(f"{option} '{repo}': {' '.join(str(error).split()).rstrip('.')}") from None
    if repo.count("/") != 1:
        raise SaapError(f"{option} '{repo}': say whose it is, as OWNER/NAME")
    part = next((part for part in _NO_MODEL if part in f"{model_name(repo)}-"), None)
    if part is not None:
        raise SaapError(
            f"{option} '{repo}': llama.cpp takes files with '{part}' in their names for no model: choose another"
        )
    return repo


def model_name(repo: str) -> str:
    """With what the names of a repository's files begin: its own name, without the usual -GGUF at its end.

    >>> model_name("me/SmolLM2-135M-pruned-GGUF")
    'SmolLM2-135M-pruned'
    """
    return re.sub(r"[-_.]gguf$", "", repo.rpartition("/")[2], flags=re.IGNORECASE)


def gguf_tag(quantisation: str) -> str:
    """The tag of a GGUF file.

    >>> gguf_tag("q4_k_m")
    'Q4_K_M'
    """
    return quantisation.upper()


def gguf_name(repo: str, quantisation: str) -> str:
    """The name of a GGUF file in a repository.

    >>> gguf_name("me/small", "q4_0")
    'small-Q4_0.gguf'
    """
    return f"{model_name(repo)}-{gguf_tag(quantisation)}.gguf"


def found_by_llama_cpp(tag: str, paths: Iterable[str]) -> str | None:
    """The file that `llama-cli -hf OWNER/NAME:TAG` takes of a repository; None: none.

    >>> found_by_llama_cpp("F16", ["small-BF16.gguf", "small-F16.gguf"])
    'small-BF16.gguf'
    """
    holds = re.compile(f"{re.escape(tag)}[.-]", re.IGNORECASE)
    models = (path for path in sorted(paths) if path.endswith(".gguf") and not any(part in path for part in _NO_MODEL))
    return next((path for path in models if holds.search(path)), None)
