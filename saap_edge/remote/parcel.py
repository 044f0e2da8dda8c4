"""The files of a bundle that go to a board, by their content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saap_edge.bundle.schema import BUNDLE_FILE, read_bundle
from saap_edge.errors import SaapError
from saap_edge.files import file_hash

__all__ = ["Parcel"]


@dataclass(frozen=True)
class Parcel:
    """A bundle's files, bundle.json included: `tree` has the sha256 of each path, `sizes` the bytes of each sha256."""

    folder: Path
    tree: dict[str, str]
    sizes: dict[str, int]

    @classmethod
    def of(cls, folder: Path) -> Parcel:
        """The parcel of a bundle's folder. Raises SaapError for what is no bundle, and for a file of a wrong size."""
        listed = [(file.path, file.sha256, file.bytes) for file in read_bundle(folder).files]
        manifest = folder / BUNDLE_FILE
        listed.append((BUNDLE_FILE, file_hash(manifest), manifest.stat().st_size))
        for path, _, size in listed:
            if not (folder / path).is_file() or (folder / path).stat().st_size != size:
                raise SaapError(
                    f"'{folder / path}' is missing or not as {BUNDLE_FILE} says: `saap-edge verify {folder}`"
                )
        return cls(folder, {path: name for path, name, _ in listed}, {name: size for _, name, size in listed})
