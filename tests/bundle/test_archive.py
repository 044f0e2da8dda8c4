"""One file: whole it is the folder, and nothing else is written or believed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import zstandard

from saap_edge.bundle.archive import pack, unpacked
from saap_edge.bundle.check import check_bundle
from saap_edge.bundle.schema import is_inside
from saap_edge.errors import SaapError


@pytest.fixture
def packed(made, tmp_path):
    pack(made["gguf-q4_0"], tmp_path / "b.tar.zst")
    return tmp_path / "b.tar.zst"


def refused(archive: Path) -> str:
    """What is said of it; nothing may be left beside it."""
    before = sorted(archive.parent.iterdir())
    check = check_bundle(archive)
    assert check.exit_code == 2 and len(check.problems) == 1, check
    assert sorted(archive.parent.iterdir()) == before
    return check.problems[0]


def test_round_trip(made, packed):
    source = made["gguf-q4_0"]
    with unpacked(packed) as folder:
        for path in source.rglob("*"):
            if path.is_file():
                assert (folder / path.relative_to(source)).read_bytes() == path.read_bytes()
    assert not folder.exists()
    assert check_bundle(packed).exit_code == 0
    again = packed.with_name("again.tar.zst")
    pack(source, again)
    assert again.read_bytes() == packed.read_bytes()


def test_stock_tools_read_it(packed):
    with (
        packed.open("rb") as raw,
        zstandard.ZstdDecompressor().stream_reader(raw) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        members = tar.getmembers()
    assert members[0].name == "gguf-q4_0/bundle.json"
    assert {member.name: member.mode for member in members}["gguf-q4_0/run.sh"] & 0o100


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, -100, -1])
def test_cut_archives(packed, keep):
    data = packed.read_bytes()
    packed.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert "cut short" in refused(packed)


def test_flipped_and_foreign_bytes(packed, tmp_path):
    data = packed.read_bytes()
    for at in (1, 300, len(data) // 2, len(data) - 2):
        packed.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        refused(packed)
    packed.write_bytes(data + b"x")
    assert "bytes follow its end" in refused(packed)
    packed.write_bytes(b"PK\x03\x04 not zstandard")
    assert "damaged or not a .tar.zst" in refused(packed)
    assert "no bundle" in refused(tmp_path / "none")


def write_archive(out: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    out.write_bytes(zstandard.compress(buffer.getvalue()))
    return out


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


UNLISTED = [tarfile.TarInfo("b/evil"), tarfile.TarInfo("b/bundle.json"), tarfile.TarInfo("b/model-q4_0.gguf")]
OUTSIDE = [tarfile.TarInfo(name) for name in ("b/../../evil", "/b/evil", "../evil", "b//evil", "evil", "other/evil")]
NO_FILE = [
    link("b/evil", "/etc/passwd"), link("b/model-q4_0.gguf", "../../evil"), link("b/evil", "b/run.sh", tarfile.LNKTYPE),
    link("b/evil", "", tarfile.FIFOTYPE), link("b/evil", "", tarfile.CHRTYPE), link("b/..", "", tarfile.DIRTYPE),
]  # fmt: skip
CASES = [(member, "does not list") for member in UNLISTED]
CASES += [(member, "not a plain file inside one folder") for member in OUTSIDE + NO_FILE]


@pytest.mark.parametrize(("member", "said"), CASES)
def test_members_that_no_bundle_has(made, tmp_path, member, said):
    manifest = (made["gguf-q4_0"] / "bundle.json").read_bytes()
    (tmp_path / "in").mkdir()
    head = (tarfile.TarInfo("b/bundle.json"), manifest)
    archive = write_archive(tmp_path / "in" / "b.tar.zst", [head, (member, b"x" if member.isreg() else b"")])
    assert said in refused(archive)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "b.tar.zst"]


def test_sizes_and_order(made, tmp_path):
    manifest = (made["gguf-q4_0"] / "bundle.json").read_bytes()
    model = tarfile.TarInfo("b/model-q4_0.gguf")
    head = (tarfile.TarInfo("b/bundle.json"), manifest)
    assert "does not list" in refused(write_archive(tmp_path / "a.tar.zst", [head, (model, b"x" * 99)]))
    assert "does not begin" in refused(write_archive(tmp_path / "b.tar.zst", [(model, b"x" * 99), head]))
    assert "does not begin" in refused(write_archive(tmp_path / "c.tar.zst", [(head[0], b" " * (2**24 + 1))]))
    assert "empty" in refused(write_archive(tmp_path / "d.tar.zst", []))
    missing = check_bundle(write_archive(tmp_path / "e.tar.zst", [head]))
    assert missing.exit_code == 2 and all("is missing" in line for line in missing.problems)


def test_without_the_package_it_says_so(packed, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(SaapError, match="zstandard"), unpacked(packed):
        pass


@pytest.mark.parametrize(("path", "inside"), [
    ("a", True), ("a/b.c", True), ("", False), (".", False), ("/a", False), ("../a", False), ("a/../b", False),
    ("a/", False), ("./a", False), ("a//b", False), ("a\\b", False), ("c:a", False), ("a\0b", False),
])  # fmt: skip
def test_is_inside(path, inside):
    assert is_inside(path) is inside
