"""A bundle as one .tar.zst file. The same bundle gives the same bytes; reading trusts nothing in the file."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from saap_edge.bundle.schema import BUNDLE_FILE, LIMIT, is_inside, read_bundle
from saap_edge.errors import SaapError

__all__ = ["SUFFIX", "pack", "unpacked", "zstandard"]

SUFFIX = ".tar.zst"
PIECE = 2**11  # compressed bytes at a time: what they can grow to (32 MiB) must fit a board


def zstandard() -> Any:
    """The package zstandard. Raises SaapError where it is not installed."""
    try:
        import zstandard
    except ImportError:
        raise SaapError(
            "a .tar.zst needs the package zstandard: pip install 'saap-edge[device]', or use a folder (tar --zstd -xf)"
        ) from None
    return zstandard


def pack(folder: Path, out: Path) -> None:
    """Write the bundle `folder` to the file `out`: under the folder's name, bundle.json first, without owners or times.

    Quantised weights hardly shrink, so that a low level of compression saves minutes and loses little.
    """
    package = zstandard()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files.sort(key=lambda path: path != folder / BUNDLE_FILE)
    compressor = package.ZstdCompressor(level=3, write_checksum=True)
    with (
        out.open("wb") as raw,
        compressor.stream_writer(raw) as plain,
        tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in files:
            member = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
            member.size, member.mode = path.stat().st_size, path.stat().st_mode & 0o777
            with path.open("rb") as file:
                tar.addfile(member, file)


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A context with the bundle of `archive`, unpacked into a temporary folder beside it.

    Its bundle.json must come first. Raises SaapError when the file is no bundle, is cut or damaged, or holds anything
    but the files that bundle.json lists, in their sizes.
    """
    if not archive.is_file():
        raise SaapError(f"no bundle '{archive}': give a folder or a {SUFFIX} that `saap-edge bundle` made")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{archive.name}-", dir=archive.absolute().parent))
    except OSError as error:
        raise SaapError(
            f"cannot unpack beside '{archive}' ({error.strerror}): unpack it elsewhere, verify the folder"
        ) from None
    try:
        with archive.open("rb") as raw:
            _unpack(raw, archive, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(raw: BinaryIO, archive: Path, folder: Path) -> None:
    plain, listed, top = _Plain(raw, archive), None, None
    try:
        with tarfile.open(fileobj=plain, mode="r|") as tar:
            for member in tar:
                first, _, name = member.name.partition("/")
                top = top or first
                if not is_inside(member.name) or first != top or not (member.isreg() or member.isdir()):
                    raise SaapError(f"'{archive}' is refused: '{member.name}' is not a plain file inside one folder")
                if member.isdir():
                    continue
                if listed is None:
                    if name != BUNDLE_FILE or member.size > LIMIT:
                        raise SaapError(f"'{archive}' is not a bundle: it does not begin with its {BUNDLE_FILE}")
                elif listed.pop(name, None) != member.size:
                    raise SaapError(f"'{archive}' is refused: its {BUNDLE_FILE} does not list '{name}' of that size")
                _write(tar, member, folder / name)
                if listed is None:
                    listed = {file.path: file.bytes for file in read_bundle(folder).files}
        while plain.read(2**16):  # to the end of the compressed data, which has a checksum
            pass
    except (tarfile.TarError, zstandard().ZstdError, ValueError, EOFError, OverflowError) as error:
        raise SaapError(f"'{archive}' is damaged or not a {SUFFIX}: {error}") from None
    if listed is None:
        raise SaapError(f"'{archive}' is not a bundle: it is empty")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("wb") as target:
        shutil.copyfileobj(source, target)


class _Plain(io.RawIOBase):
    """The decompressed bytes of one zstandard frame. The frame must be whole, and nothing may follow it."""

    def __init__(self, raw: BinaryIO, archive: Path) -> None:
        self._raw, self._archive = raw, archive
        self._frame = zstandard().ZstdDecompressor().decompressobj()
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held and not self._frame.eof:
            piece = self._raw.read(PIECE)
            if not piece:
                raise SaapError(f"'{self._archive}' is cut short")
            self._held = memoryview(self._frame.decompress(piece))
        if not self._held and (self._frame.unused_data or self._raw.read(1)):
            raise SaapError(f"'{self._archive}' is damaged: bytes follow its end")
        count = min(len(buffer), len(self._held))
        buffer[:count], self._held = self._held[:count], self._held[count:]
        return count
