"""`refold dump`: all read models of a projection."""

from __future__ import annotations

from itertools import islice

from cyclopts.types import NonNegativeInt

from streams.cli.output import named, shown
from streams.cli.wiring import Flag, PlaceOptions, ProjectionName

__all__ = ["dump"]


def dump(
    projection: ProjectionName,
    /,
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    *,
    limit: NonNegativeInt | None = None,
    pretty: Flag = False,
    json: Flag = True,  # noqa: ARG001 - as everywhere
) -> None:
    """Print all read models, one JSON object a line: {"id": …, "model": …}, by partition and then by id.

    They are as of one instant, also while they are being folded.

    Example: refold dump aircraft-log --limit 10

    Args:
        projection: Whose models.
        options: Where the state is.
        limit: At most so many.
        pretty: Each over several lines, for people.
        json: What is printed in any case.
    """
    found = options.find(projection)
    with found.store.reader(found.projection) as reader:
        for model_id, raw in islice(reader.raw_items(), limit):
            print(shown(named(model_id, raw), pretty=pretty))  # noqa: T201
