"""Finding a model: a folder, a GGUF file or a name on the hub."""

from __future__ import annotations

from pathlib import Path

from saap_edge.errors import SaapError

__all__ = ["LICENCES", "resolve_model", "stated_by"]

# At the root of a model folder; a licence may need its notice and its use policy beside it.
LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")
_STATED = ["README.md", *LICENCES]


def resolve_model(name: str) -> Path:
    """The local folder of a model: a folder as it is, a GGUF file unpacked, a hub name downloaded.

    Raises SaapError when there is no such model.
    """
    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", *_STATED]
    return _here(name) or _fetched(name, patterns)


def stated_by(name: str) -> Path:
    """A folder with README.md and licence files of a model: that of `resolve_model`, but of a hub name no weights are
    fetched, and what the cache has is taken as it is.

    Raises SaapError as `resolve_model`.
    """
    found = _here(name)
    if found is not None:
        return found
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_STATED, local_files_only=True))
    except LocalEntryNotFoundError:
        return _fetched(name, _STATED)


def _here(name: str) -> Path | None:
    """The folder of a model that is on this machine; None for a hub name. Raises SaapError for anything else."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        from saap_edge.gguf_input.folder import unpack

        return unpack(Path(name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise SaapError(
            f"no model folder '{name}': give a Hugging Face folder, a .gguf file or a hub name (owner/name)"
        )
    return None


def _fetched(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SaapError(f"no model folder '{name}', and no such model on the hub: {reason}") from None
