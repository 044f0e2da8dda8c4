"""Sending a folder to the hub: one commit, so that a repository has all of it or nothing of it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from saap_edge.errors import SaapError
from saap_edge.layouts.document import LAYOUT_FILE, Written
from saap_edge.progress import Bar
from saap_edge.publishing.write import CARD, LAYOUT

__all__ = ["Sent", "has_token", "send"]

_BY_THE_HUB = ".gitattributes"  # it is in every repository from the beginning


@dataclass(frozen=True)
class Sent:
    """What the hub has: address of the repository, its commit, whether it is private, and whether anything changed."""

    url: str
    commit: str
    private: bool
    changed: bool


@dataclass(frozen=True)
class _There:
    """A repository before the commit: its last commit, visibility, whether this call made it, and what is removed."""

    commit: str | None
    private: bool
    made: bool
    gone: tuple[str, ...] = ()


def has_token() -> bool:
    """Whether the user is logged in: a token in HF_TOKEN, or by `hf auth login`."""
    return get_token() is not None


def send(folder: Path, written: Written, repo: str, private: bool, message: str, bar: Bar) -> Sent:
    """Send a folder that was laid out for the hub to a repository, which is made where it is not there.

    Large files go first; the commit that shows them comes last. Of an earlier push, files that are not in this one are
    removed; files that others put there stay.

    Raises SaapError in one line for whatever the hub refuses, a network that fails, a public repository where a private
    one was asked for, and a repository with a file of others in the place of one of these. The repository is then as it
    was before, or made and empty.
    """
    api, there = HfApi(), None
    paths = [file.path for file in written.files] + [LAYOUT_FILE]
    try:
        ModelCard((folder / CARD).read_text(encoding="utf-8")).validate(repo_type="model")
        there = _there(api, repo, private, paths)
        operations: list[Any] = [CommitOperationAdd(path, str(folder / path)) for path in paths]
        with bar(f"upload to {repo}", sum(file.bytes for file in written.files)) as advance:
            for operation in operations:  # one by one, to tell how far it is
                api.preupload_lfs_files(repo, [operation])
                advance((folder / operation.path_in_repo).stat().st_size, operation.path_in_repo)
        operations += [CommitOperationDelete(path) for path in there.gone]
        with _quiet():
            made = api.create_commit(repo, operations, commit_message=message, parent_commit=there.commit)
    except SaapError:
        raise
    except Exception as error:  # hub versions use three HTTP libraries, and hf_xet raises errors of its own
        raise SaapError(_told(error, repo, there)) from error
    url = f"{api.endpoint}/{repo}"
    return Sent(url, str(made.oid), _is_private(api, repo, there.private), there.commit != made.oid)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own warning on commits that change nothing: `Sent.changed` says so."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _is_private(api: HfApi, repo: str, assumed: bool) -> bool:
    with suppress(Exception):  # the commit is there, whatever becomes of this question
        return bool(api.model_info(repo).private)
    return assumed


def _there(api: HfApi, repo: str, private: bool, paths: list[str]) -> _There:
    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private or None)  # None: as its owner has it
        return _There(None, private, True)
    if private and not info.private:
        raise SaapError(f"--private: '{repo}' is there, and public: make it private on the hub, or choose another name")
    names = {str(sibling.rfilename) for sibling in info.siblings or ()} - {_BY_THE_HUB}
    ours = _of_before(api, repo) if LAYOUT_FILE in names else set()
    foreign = sorted((names - ours) & set(paths))
    if foreign:
        raise SaapError(
            f"--repo '{repo}' has a file that saap-edge did not write, '{foreign[0]}': remove it there, or choose "
            "another name"
        )
    return _There(info.sha, bool(info.private), False, tuple(sorted((names & ours) - set(paths))))


def _of_before(api: HfApi, repo: str) -> set[str]:
    """The files of an earlier push, by its layout.json; none where that file is something else."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(api.hf_hub_download(repo, LAYOUT_FILE, local_dir=scratch))
        try:
            before = Written.read(path)
        except SaapError:
            return set()
    return {file.path for file in before.files} | {LAYOUT_FILE} if before.layout == LAYOUT else set()


def _told(error: Exception, repo: str, there: _There | None) -> str:
    state = f"'{repo}' was made and is empty" if there and there.made else f"'{repo}' is as it was"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status is not None and isinstance(error, HfHubHTTPError):
        return f"the hub refuses ({status}): {_reason(error)}{_hint(status, repo)}; {state}"
    if isinstance(error, OfflineModeIsEnabled):
        return f"the hub is switched off by HF_HUB_OFFLINE; {state}"
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error  # "Error while uploading" says nothing
    if isinstance(cause, HfHubHTTPError):
        return _told(cause, repo, there)
    return f"the upload failed: {type(cause).__name__}: {_line(str(cause))}; {state}, as far as is known"


def _reason(error: HfHubHTTPError) -> str:
    return _line(error.server_message or str(error)) or "it says no more"


def _hint(status: int, repo: str) -> str:
    owner = repo.partition("/")[0]
    known = {
        401: ". Log in with `hf auth login`, or set HF_TOKEN",
        403: f". The token must be allowed to write to '{owner}'",
        404: ". Is the owner's name right, and may the token see it?",
        409: ". Somebody else changed it meanwhile, or it is there and you may not see it",
        412: ". Somebody else changed it meanwhile: give the same command again", 429: ". Wait, then give it again",
    }  # fmt: skip
    return known.get(status, "")


def _line(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".")
