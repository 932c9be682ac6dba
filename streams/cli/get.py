"""`refold get`: read models by id, from the state on this machine."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from streams.cli.output import named, shown
from streams.cli.wiring import Flag, PlaceOptions, ProjectionName
from streams.errors import ModelNotFound

__all__ = ["get"]


def get(
    projection: ProjectionName,
    model_id: str,
    /,
    *more_ids: Annotated[str, Parameter(negative=())],
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    pretty: Flag = False,
    json: Flag = False,
) -> None:
    """Print read models as JSON, as last committed, also while they are being folded.

    One id gives the model. Several, or --json, give one line each: {"id": …, "model": …}.

    Example: refold get aircraft-log N14228

    Args:
        projection: Whose models.
        model_id: The model's id.
        more_ids: Further ids.
        options: Where the state is.
        pretty: Over several lines, for people.
        json: Name the id also where there is only one.
    """
    found = options.find(projection)
    missing = []
    with found.store.reader(found.projection) as reader:
        for one in (model_id, *more_ids):
            raw = reader.get_raw(one)
            if raw is None:
                missing.append(one)
            else:
                print(shown(named(one, raw) if more_ids or json else raw, pretty=pretty))  # noqa: T201
        if missing:
            raise ModelNotFound(
                f"{found.name} has no model {', '.join(map(repr, missing))} among its {reader.count():,} models in "
                f"{found.store.directory}.",
                projection=found.name,
            )
