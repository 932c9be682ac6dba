"""The words in which JSON documents are described: JSON Schema, in short."""

from __future__ import annotations

from typing import Any

__all__ = ["ANY", "Schema", "by", "flag", "known", "many", "maybe", "number", "text", "thing", "time", "whole"]

Schema = dict[str, Any]


def _as(kind: str, told: str) -> Schema:
    return {"type": kind, "description": told}


def text(told: str = "") -> Schema:
    """Text."""
    return _as("string", told)


def whole(told: str = "") -> Schema:
    """A whole number."""
    return _as("integer", told)


def number(told: str = "") -> Schema:
    """A number."""
    return _as("number", told)


def flag(told: str = "") -> Schema:
    """True or false."""
    return _as("boolean", told)


def time(told: str = "") -> Schema:
    """A time, as ISO 8601 has it."""
    return {**text(told), "format": "date-time"}


def maybe(what: Schema) -> Schema:
    """Something, or null."""
    if "type" not in what or "allOf" in what:
        return {"anyOf": [what, {"type": "null"}]}
    kind = what["type"]
    return {**what, "type": [*(kind if isinstance(kind, list) else [kind]), "null"]}


def many(what: Schema, told: str = "") -> Schema:
    """A list."""
    return {"type": "array", "items": what, "description": told}


def by(what: Schema, told: str = "") -> Schema:
    """An object whose keys are data."""
    return {"type": "object", "additionalProperties": what, "description": told}


def thing(**fields: Schema) -> Schema:
    """An object, all of whose fields are there."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def known(kind: type) -> Schema:
    """A record of the engine's own."""
    return {"$ref": f"#/$defs/{kind.__name__}"}


ANY: Schema = {}
