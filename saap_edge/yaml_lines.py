"""YAML files checked against a schema, with errors that name file, line and field."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from saap_edge.errors import SaapError

__all__ = ["YamlFile", "complaint", "field_of", "item_lines", "load_yaml_model", "read_yaml"]

Model = TypeVar("Model", bound=BaseModel)


def load_yaml_model(path: Path, schema: type[Model]) -> Model:
    """Read a YAML file into `schema`; an empty file is an empty mapping.

    Raises SaapError in one line, with file, line and field:

    >>> import tempfile
    >>> from saap_edge.recipe import Recipe
    >>> file = Path(tempfile.mkdtemp()) / "recipe.yaml"
    >>> _ = file.write_text("prune:\\n  ratio: 1.5\\n")
    >>> try:
    ...     load_yaml_model(file, Recipe)
    ... except SaapError as error:
    ...     print(str(error).removeprefix(f"{file.parent}/"))
    recipe.yaml:2: prune.ratio: Input should be less than 1
    """
    file = read_yaml(path)
    try:
        return schema.model_validate(file.document)
    except ValidationError as error:
        # A mistyped name is both unknown and missing: the unknown one is where the mistake stands.
        first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
        raise SaapError(file.told(field_of(first), complaint(first, schema))) from None


@dataclass(frozen=True)
class YamlFile:
    """A YAML file that was read: its document, and where each field stands."""

    path: Path
    document: dict[str, Any]
    root: yaml.Node | None

    def line(self, location: Sequence[Any]) -> int:
        """Line of the field at `location`, or of the innermost part of the location that exists."""
        return _line(self.root, list(location))

    def told(self, location: Sequence[Any], message: str, name: Sequence[Any] | None = None) -> str:
        """The message with file, line and field. `name` is the field's name where it is not the location."""
        field = ".".join(str(part) for part in (location if name is None else name))
        return f"{self.path}:{self.line(location)}: {field + ': ' if field else ''}{message}"


def read_yaml(path: Path) -> YamlFile:
    """Read a YAML file of fields; an empty one has none. Raises SaapError in one line, with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SaapError(f"cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise SaapError(f"'{path}' is not a text file") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = {} if root is None else yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SaapError(f"{place}: not valid YAML: {problem or 'it cannot be read'}") from None
    twice = _twice(root)
    if twice is not None:
        raise SaapError(
            f"{path}:{twice.start_mark.line + 1}: '{twice.value}' is there twice: one of them would be lost"
        )
    if not isinstance(document, dict):
        raise SaapError(f"{path}:1: fields as 'name: value' are expected at the top, not a {type(document).__name__}")
    return YamlFile(path, document, root)


def item_lines(path: Path, field: str) -> list[int]:
    """Lines of the entries of a list or mapping at the top of a YAML file that `load_yaml_model` has read."""
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    parts = root.value if isinstance(root, yaml.MappingNode) else []
    node = next((value for key, value in parts if key.value == field), None)
    return [_line(node, [index]) for index in range(len(node.value))] if isinstance(node, yaml.CollectionNode) else []


def _twice(node: yaml.Node | None) -> yaml.Node | None:
    """The first key that a mapping has twice: YAML would keep the last and drop the other silently."""
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                return key
            names.add(str(key.value))
            if (found := _twice(value)) is not None:
                return found
    elif isinstance(node, yaml.SequenceNode):
        return next(filter(None, map(_twice, node.value)), None)
    return None


def field_of(error: Any) -> list[Any]:
    """Where the field stands that pydantic complains of."""
    return [part for part in error["loc"] if not str(part).startswith("function-")]


def complaint(error: Any, schema: type[BaseModel]) -> str:
    """What pydantic complains of, in words; with the nearest known name where a field is unknown."""
    if error["type"] != "extra_forbidden":
        return str(error["msg"]).removeprefix("Value error, ")
    location = field_of(error)
    near = difflib.get_close_matches(str(location[-1]), _fields(schema, location[:-1]), n=1)
    return "unknown field" + (f", did you mean '{near[0]}'?" if near else "")


def _line(node: yaml.Node | None, location: list[Any]) -> int:
    """Line of the field at `location`, or of the innermost part of the location that exists."""
    line = node.start_mark.line + 1 if node else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if str(k.value) == str(part)), None)
            if found is None and isinstance(part, int) and part < len(node.value):
                found = node.value[part]  # a list that was written as a mapping
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _fields(schema: type[BaseModel], location: list[Any]) -> list[str]:
    """Field names of the section at `location`."""
    for part in location:
        kind = schema.model_fields[part].annotation if part in schema.model_fields else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            return []
        schema = kind
    return list(schema.model_fields)
