"""What a reader asks for, by the query of a request; whatever is wrong with it is a problem."""

from __future__ import annotations

import base64
from typing import Any

import orjson
from aiohttp import web

from streams.control.record import Generation
from streams.serve.finding import MinPosition
from streams.serve.problems import Problem

__all__ = ["cursor_of", "cursor_to", "min_position", "seconds", "whole_number"]


def min_position(request: web.Request, generation: Generation) -> MinPosition | None:
    """Give what a reader is to see, by `min_position`; None where it asks for nothing."""
    given = request.query.get("min_position")
    if given is None:
        return None
    partition, colon, position = given.partition(":")
    if not (colon and partition.isdecimal() and position.isdecimal()) or int(partition) >= generation.partitions:
        raise Problem(
            400,
            "bad-request",
            f"min_position is PARTITION:POSITION, such as 3:1234 (the offset that was written, and one), with a "
            f"partition below {generation.partitions}; it was {given!r}.",
        )
    return MinPosition(int(partition), int(position))


def seconds(request: web.Request, key: str, default: float, most: float) -> float:
    """Give a number of seconds from the query."""
    given = request.query.get(key)
    if given is None:
        return default
    try:
        found = float(given)
    except ValueError:
        found = -1.0
    if not 0 <= found <= most:
        raise Problem(400, "bad-request", f"{key} is a number of seconds, from 0 to {most:g}; it was {given!r}.")
    return found


def whole_number(request: web.Request, key: str, default: int, most: int) -> int:
    """Give a number from 1 on from the query."""
    given = request.query.get(key, str(default))
    if not given.isdecimal() or not 1 <= int(given) <= most:
        raise Problem(400, "bad-request", f"{key} is a number from 1 to {most}; it was {given!r}.")
    return int(given)


def cursor_of(request: web.Request) -> dict[str, Any]:
    """Give where a page begins, by `cursor`: generation, partition and after; nothing for the first page."""
    given = request.query.get("cursor")
    if given is None:
        return {}
    try:
        found = orjson.loads(base64.urlsafe_b64decode(given.encode()))
        return {
            "generation": str(found["generation"]),
            "partition": int(found["partition"]),
            "after": None if found["after"] is None else str(found["after"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(400, "bad-request", f"cursor is what `next` of the page before was; it was {given!r}.") from error


def cursor_to(generation: str, partition: int, after: str | None) -> str:
    """Write where the next page begins."""
    return base64.urlsafe_b64encode(
        orjson.dumps({"generation": generation, "partition": partition, "after": after})
    ).decode()
