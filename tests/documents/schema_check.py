"""JSON schema as far as our documents use it, so that a document is not judged by the classes that wrote it."""

from __future__ import annotations

from typing import Any

TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip
KNOWN = {
    "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "enum",
    "exclusiveMinimum", "items", "maxItems", "maxLength", "minItems", "minLength", "minimum", "multipleOf",
    "prefixItems", "properties", "required", "title", "type",
}  # fmt: skip


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], place: str = "") -> list[str]:
    """Places at which a document is not what its schema says."""
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    if "$ref" in schema:
        return faults(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, place)
    if "anyOf" in schema:
        tried = [faults(value, option, root, place) for option in schema["anyOf"]]
        return [] if [] in tried else min(tried, key=len)
    kind = schema.get("type")
    wrong = kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"))
    if wrong or value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return [f"{place}: {value!r}"]
    if isinstance(value, dict):
        return _of_object(value, schema, root, place)
    if isinstance(value, list):
        parts = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        length = [] if len(parts) == len(value) else [f"{place}: {len(value)} items"]
        pairs = enumerate(zip(value, parts, strict=False))
        return length + [fault for index, pair in pairs for fault in faults(*pair, root, f"{place}.{index}")]
    low = schema.get("minimum")
    return [f"{place}: {value!r}"] if low is not None and value < low else []


def _of_object(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], place: str) -> list[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = [f"{place}.{name}: missing" for name in schema.get("required", []) if name not in value]
    for name, entry in value.items():
        part = known.get(name, others)
        if part is False:
            found.append(f"{place}.{name}: unknown")
        elif isinstance(part, dict):
            found += faults(entry, part, root, f"{place}.{name}")
    return found


def fields(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(class.field, what the schema says of it) of every class."""
    classes = schema.get("$defs", {}) | {schema["title"]: schema}
    return [
        (f"{name}.{field}", told)
        for name, each in classes.items()
        for field, told in each.get("properties", {}).items()
    ]
