"""`refold count`: how many read models there are."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from streams.cli.output import shown
from streams.cli.wiring import ProjectionName, StateOptions

__all__ = ["count"]


def count(
    projection: ProjectionName,
    /,
    options: StateOptions = StateOptions(),  # noqa: B008 - frozen
    *,
    json: Annotated[bool, Parameter(negative=())] = False,
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
    print(shown({"projection": found.name, "models": models}) if json else models)  # noqa: T201
