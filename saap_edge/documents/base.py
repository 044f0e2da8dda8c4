"""What all documents share: one version field, reading and writing in one place, and errors that name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema

from saap_edge.errors import SaapError
from saap_edge.files import save_document

__all__ = ["Document", "Number", "Part", "Real", "check_version", "fault", "finite"]


def finite(value: Any) -> Any:
    """The value with None for every number that is not finite, because JSON has no word for those.

    >>> finite({"perplexity": float("inf"), "samples": [1.5, float("nan")]})
    {'perplexity': None, 'samples': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fault(error: ValidationError, whole: str = "") -> str:
    """The first fault of a validation in one line: the field's place (`whole` where it is none), and what is wrong."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or whole
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def check_version(kind: type[Document], found: Any, where: str) -> None:
    """Raises SaapError with the remedy when `found` is not the version that this saap-edge reads.

    `where` names the file, and the section where the document is part of another.
    """
    if found != kind.VERSION:
        raise SaapError(
            f"{where} has {kind.VERSION_WORD} {found!r}, this saap-edge reads {kind.VERSION}: {kind.REMEDY}"
        )


def _measured(value: Any) -> Any:
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _real(value: Any) -> Any:
    return math.nan if value is None else value


# A figure that may be missing: what is no finite number was not measured.
Number = Annotated[float | None, BeforeValidator(_measured)]
# A figure that is always there: null in JSON where it is not finite, NaN in Python.
Real = Annotated[float, BeforeValidator(_real), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]})]


class Part(BaseModel):
    """A part of a document. It reads by attribute, and by key as in the file. Fields that this version does not know
    are kept.

    >>> part = Part.model_validate({"format": "gguf-q4_0"})
    >>> part.format == part["format"], "bytes" in part
    (True, False)
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())

    def __getitem__(self, key: str) -> Any:
        fields = type(self).model_fields
        name = next((name for name, field in fields.items() if key == (field.alias or name)), key)
        if name not in fields and name not in (self.model_extra or {}):
            raise KeyError(key)
        return getattr(self, name)

    def __contains__(self, key: str) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def as_dict(self) -> dict[str, Any]:
        """The part as JSON, as it stands in the file: fields that were never set are left out."""
        document: dict[str, Any] = finite(self.model_dump(mode="json", by_alias=True, exclude_unset=True))
        return document


class Document(Part):
    """A whole document, with `version` as its one version field (under another name in some files)."""

    VERSION: ClassVar[int]
    VERSION_WORD: ClassVar[str] = "version"
    REMEDY: ClassVar[str]  # what to do about a document of another version

    def model_post_init(self, context: Any, /) -> None:
        self.model_fields_set.add("version")  # it is written even where nobody set it

    @classmethod
    def version_of(cls, document: Mapping[str, Any]) -> Any:
        """The version that a JSON document states; None where it states none."""
        return document.get(cls.model_fields["version"].alias or "version")

    @classmethod
    def parse(cls, document: Any, where: str, inside: str = "") -> Self:
        """Check a JSON document and return its model.

        `where` names the file, `inside` the section of the file that the document is. Raises SaapError in one line:
        which version it or a document inside it has and what to do, or which field is damaged.
        """
        if not isinstance(document, Mapping):
            raise SaapError(f"{where} is damaged: {inside or 'it'} is no JSON object")
        check_version(cls, cls.version_of(document), f"{where}, section {inside}," if inside else where)
        cls._check_sections(document, where)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            place = f"{inside}." if inside and error.errors()[0]["loc"] else ""
            raise SaapError(f"{where} is damaged: {place}{fault(error)}") from None

    @classmethod
    def _check_sections(cls, document: Mapping[str, Any], where: str) -> None:
        """Raises SaapError with the remedy where a document inside this one states another version than is read."""
        for name, field in cls.model_fields.items():
            kind, section = field.annotation, document.get(field.alias or name)
            if not (isinstance(kind, type) and issubclass(kind, Document) and isinstance(section, Mapping)):
                continue
            if (kind.model_fields["version"].alias or "version") in section:
                check_version(kind, kind.version_of(section), f"{where}, section {name},")

    @classmethod
    def of(cls, document: Self | Mapping[str, Any]) -> Self:
        """A model as it is; a JSON document after `parse`. Raises SaapError as `parse`."""
        return document if isinstance(document, cls) else cls.parse(document, f"the {cls.__name__.lower()} document")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises SaapError when it cannot be read, and as `parse`."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SaapError(f"cannot read '{path}': {error}") from None
        return cls.parse(document, f"'{path}'")

    def write(self, path: Path) -> None:
        """Write a file, whole or not at all. Raises SaapError as `parse` for what `read` would not accept."""
        document = self.as_dict()
        self.parse(document, f"what is to be '{path}'")
        save_document(document, path)
