"""Files of npm packages: pinned versions, checked by their hashes, fetched once by the program npm."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from saap_edge.errors import SaapError
from saap_edge.progress import Bar

__all__ = ["Package", "cache_folder", "unpack"]

_SECONDS = 600  # for one package


@dataclass(frozen=True)
class Package:
    """An npm package, and what is taken from it.

    Attributes:
        name, version: as npm knows it.
        sha512: hash of its archive in base64, as npm prints it (`npm view NAME dist.integrity`).
        licence: name of its licence.
        files: path in the package -> path in the folder.

    >>> Package("@huggingface/jinja", "0.5.11", "", "MIT", {}).archive
    'huggingface-jinja-0.5.11.tgz'
    """

    name: str
    version: str
    sha512: str
    licence: str
    files: Mapping[str, str]

    @property
    def archive(self) -> str:
        """The file that `npm pack` makes of it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def pinned(self) -> str:
        """Name and version, as npm takes them."""
        return f"{self.name}@{self.version}"


def cache_folder() -> Path:
    """Where archives are kept: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saap-edge" / "npm"


def unpack(packages: tuple[Package, ...], folder: Path | None, out: Path, bar: Bar) -> None:
    """Put the files of `packages` into `out`.

    Their archives are taken from `folder`, or, where that is None, from the cache, into which npm fetches them first.
    Raises SaapError when an archive is missing, is another than was pinned, or cannot be fetched.
    """
    for package in packages:
        archive = _given(package, folder) if folder is not None else _fetched(package, bar)
        _extract(package, archive, out)


def _given(package: Package, folder: Path) -> Path:
    archive = folder / package.archive
    if not archive.is_file():
        raise SaapError(f"--packages '{folder}' has no {package.archive}: make it with `npm pack {package.pinned}`")
    if _hash(archive) != package.sha512:
        raise SaapError(f"'{archive}' is not {package.pinned} (its sha512 differs): make it again with `npm pack`")
    return archive


def _fetched(package: Package, bar: Bar) -> Path:
    archive = cache_folder() / package.archive
    if archive.is_file() and _hash(archive) == package.sha512:
        return archive
    with bar(f"fetching {package.pinned}", None):
        try:
            archive.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
                _pack(package, Path(scratch))
                if _hash(Path(scratch) / package.archive) != package.sha512:
                    raise SaapError(f"npm gave another {package.pinned} than saap-edge was tested with: not used")
                (Path(scratch) / package.archive).replace(archive)
        except OSError as error:
            raise SaapError(f"cannot write to '{archive.parent}': {error.strerror or error}") from None
    return archive


def _pack(package: Package, folder: Path) -> None:
    npm, remedy = shutil.which("npm"), f"put {package.archive} and the other packages in a folder and give --packages"
    if npm is None:
        raise SaapError(f"the page needs {package.pinned}, and npm is not installed: install it, or {remedy}")
    command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package.pinned]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise SaapError(f"npm did not fetch {package.pinned} in {_SECONDS // 60} minutes: {remedy}") from None
    if done.returncode or not (folder / package.archive).is_file():
        told = [line for line in done.stderr.splitlines() if line.strip()]
        reason = told[0].strip() if told else f"exit code {done.returncode}"
        raise SaapError(f"npm cannot fetch {package.pinned} ({reason}): without a network, {remedy}")


def _extract(package: Package, archive: Path, out: Path) -> None:
    """Only files that are asked for by name are read from the archive."""
    with tarfile.open(archive) as tar:
        for source, target in package.files.items():
            opened = tar.extractfile(f"package/{source}")
            assert opened is not None  # a hash was checked: the archive has what it had
            path = out / target
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(opened, file)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
