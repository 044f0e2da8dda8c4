"""layout.json: what a layout's folder holds, so that only such a folder is ever replaced."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from saap_edge.documents.base import Document, Part

__all__ = ["LAYOUT_FILE", "File", "Written"]

LAYOUT_FILE = "layout.json"


class File(Part):
    """A file of the folder. layout.json itself is not listed."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="relative to the folder")
    bytes: int = Field(description="its size, bytes")


class Written(Document):
    """A layout that was written: the file layout.json in its folder."""

    model_config = ConfigDict(extra="forbid")

    VERSION = 1
    REMEDY = "write the layout again with this version"

    version: Literal[1] = Field(default=1, description="version of this format")
    saap_edge: str = Field(description="version of saap-edge that wrote it")
    layout: str = Field(description="name of the layout")
    format: str = Field(description="format of the artifact, or the layout's own variant")
    notes: list[str] = Field(description="lines that the user should read")
    files: list[File] = Field(description="every file but this one")
