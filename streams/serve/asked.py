"""What a reader asks for, by the query of a request; whatever is wrong with it is a problem."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from streams.control.record import Generation
from streams.control.site import Site
from streams.data.query import Keep, filter_of, read_query
from streams.errors import ConfigError
from streams.serve.finding import MinPosition
from streams.serve.problems import Problem

__all__ = ["Selection", "cursor_of", "cursor_read", "cursor_to", "min_position", "seconds", "whole_number"]

_FIELD = "q."


def min_position(request: web.Request, generation: Generation) -> MinPosition | None:
    """Give what a reader is to see, by `min_position`; None where it asks for nothing."""
    given = request.query.get("min_position")
    if given is None:
        return None
    partition, colon, position = given.partition(":")
    partitions = generation.partitions if generation.source is None else generation.source.partitions
    if not (colon and partition.isdecimal() and position.isdecimal()) or int(partition) >= partitions:
        raise Problem(
            400,
            "bad-request",
            f"min_position is PARTITION:POSITION, such as 3:1234 (the offset that was written, and one), with a "
            f"partition below {partitions}; it was {given!r}.",
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


@dataclass(frozen=True, slots=True)
class Selection:
    """Which models a list is to have: those that the projection's `Query` asks for, by parameters `q.FIELD`."""

    given: Mapping[str, Sequence[str]]
    """By field, its texts; nothing where all models are asked for."""
    keep: Keep | None
    """Says which; None for all, or where this worker does not have the code."""

    @classmethod
    def of(cls, request: web.Request, site: Site, generation: Generation) -> Selection:
        """Read it.

        Raises:
            Problem: The code here says that it cannot be asked for.
        """
        names = dict.fromkeys(name for name in request.query if name.startswith(_FIELD))
        given = {name.removeprefix(_FIELD): request.query.getall(name) for name in names}
        if not given or not site.can_fold(generation):  # else whoever folds it says what is wrong
            return cls(given, None)
        try:
            return cls(given, filter_of(site.projection, read_query(site.projection, given)))
        except ConfigError as error:
            raise Problem(400, "bad-request", str(error)) from error

    def parameters(self) -> list[tuple[str, str]]:
        """Give it as parameters of another request."""
        return [(f"{_FIELD}{name}", text) for name, texts in self.given.items() for text in texts]


def cursor_of(request: web.Request) -> dict[str, Any]:
    """Give where a page begins, by `cursor`: generation, partition and after; nothing for the first page."""
    given = request.query.get("cursor")
    return {} if given is None else cursor_read(given)


def cursor_read(given: str) -> dict[str, Any]:
    """Read a cursor."""
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
