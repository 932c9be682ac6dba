"""What differs between two JSON values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

__all__ = ["ABSENT", "Change", "changes"]


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One place at which two JSON values differ.

    As JSON, `before` is not there where the place is new, and `after` where it is gone.
    """

    path: str
    """JSON Pointer (RFC 6901); "" is the whole value."""
    before: Any = msgspec.UNSET
    after: Any = msgspec.UNSET


ABSENT = msgspec.UNSET
"""Stands for a value that is not there."""


def changes(before: Any, after: Any) -> list[Change]:
    """List the places at which two JSON values differ, the deepest that tell, in the order of the second value.

    Objects are compared by key and arrays by index.

    Args:
        before: The one; ABSENT where there was none.
        after: The other; ABSENT where there is none.
    """
    return list(_changes(before, after, ""))


def _changes(before: Any, after: Any, path: str) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*after, *(key for key in before if key not in after)]:
            name = str(key).replace("~", "~0").replace("/", "~1")
            yield from _changes(before.get(key, ABSENT), after.get(key, ABSENT), f"{path}/{name}")
    elif isinstance(before, list) and isinstance(after, list):
        for number in range(max(len(before), len(after))):
            was = before[number] if number < len(before) else ABSENT
            now = after[number] if number < len(after) else ABSENT
            yield from _changes(was, now, f"{path}/{number}")
    elif type(before) is not type(after) or before != after:
        yield Change(path, before, after)
