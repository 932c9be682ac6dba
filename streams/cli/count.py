"""`refold count`: how many read models there are."""

from __future__ import annotations

from streams.cli.output import document, shown
from streams.cli.wiring import Flag, PlaceOptions, ProjectionName

__all__ = ["count"]


def count(
    projection: ProjectionName,
    /,
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Print how many read models a projection has, as last committed.

    Example: refold count aircraft-log

    Args:
        projection: Whose models.
        options: Where the state is.
        json: Print one JSON object: projection, models.
    """
    found = options.find(projection)
    with found.store.reader(found.projection) as reader:
        models = reader.count()
    print(shown(document("count", {"projection": found.name, "models": models})) if json else models)  # noqa: T201
