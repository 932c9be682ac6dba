"""Whatever a command prints as JSON is held against the schema that it names, and says no more than that."""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson
from jsonschema import Draft202012Validator

from streams.cli.schemas import KINDS, schema_of

__all__ = ["check_printed", "seen"]

_PARTS = ("Record", "RebuildProgress", "Summary")
"""Records that documents add to."""

seen: set[str] = set()
"""Those that were met."""


@cache
def validator(kind: str) -> Draft202012Validator:
    found = schema_of(kind)
    for name, shared in found["$defs"].items():
        if name not in _PARTS:
            tighten(shared)
    tighten(found, is_whole=True)
    return Draft202012Validator(found)


def tighten(part: Any, *, is_whole: bool = False) -> None:
    """Let an object have no other fields than those that are told of.

    Args:
        part: A schema.
        is_whole: It is a document's; where that has alternatives, each tells of a part of it.
    """
    if not isinstance(part, dict):
        return
    if "properties" in part:
        part["unevaluatedProperties"] = False
    for inner in (*part.get("properties", {}).values(), part.get("items"), part.get("additionalProperties")):
        tighten(inner)
    for one in () if is_whole else part.get("anyOf", ()):
        tighten(one)


def check_printed(text: str) -> None:
    """Check each line that is a document of ours; other lines are left alone."""
    for line in text.splitlines():
        if line.startswith('{"schema":"refold.'):
            document = orjson.loads(line)
            kind = document["schema"].removeprefix("refold.")
            assert kind in KINDS, kind
            wrong = [f"{error.json_path}: {error.message[:300]}" for error in validator(kind).iter_errors(document)]
            assert not wrong, f"{kind}: {wrong}"
            seen.add(kind)
