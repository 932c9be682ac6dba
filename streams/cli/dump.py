"""`refold dump`: all read models of a projection."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt

from projections.contract import CqrsProjection
from streams.cli.output import named, shown
from streams.cli.wiring import Flag, PlaceOptions, ProjectionName
from streams.data.query import read_query
from streams.errors import ConfigError

__all__ = ["dump"]


def dump(
    projection: ProjectionName,
    /,
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    *,
    query: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    limit: NonNegativeInt | None = None,
    pretty: Flag = False,
    json: Flag = True,  # noqa: ARG001 - as everywhere
) -> None:
    """Print all read models, one JSON object a line: {"id": …, "model": …}, by partition and then by id.

    They are as of one instant, also while they are being folded.

    Example: refold dump aircraft-log --limit 10
    Example: refold dump order-summary --query status=paid

    Args:
        projection: Whose models.
        options: Where the state is.
        query: FIELD=VALUE of the projection's Query, again for each: only the models that it asks for.
        limit: At most so many.
        pretty: Each over several lines, for people.
        json: What is printed in any case.
    """
    found = options.find(projection)
    with found.store.reader(found.projection) as reader:
        chosen = reader.raw_items() if not query else reader.select(_query(found.projection, query))
        for model_id, raw in islice(chosen, limit):
            print(shown(named(model_id, raw), pretty=pretty))  # noqa: T201


def _query(projection: CqrsProjection[Any], given: tuple[str, ...]) -> Any:
    fields: dict[str, list[str]] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise ConfigError(f"--query is FIELD=VALUE (got {one!r}).")
        fields.setdefault(name, []).append(value)
    return read_query(projection, fields)
