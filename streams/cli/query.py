"""`refold query`: models by what is in them."""

from __future__ import annotations

from typing import Annotated

import orjson
from cyclopts import Parameter
from cyclopts.types import PositiveInt
from rich.console import Console

from streams.cli.output import document, named, shown
from streams.cli.wiring import Flag, PlaceOptions, ProjectionName
from streams.data.filters import Query, read_condition

__all__ = ["query"]


def query(
    projection: ProjectionName,
    /,
    *where: str,
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    order_by: Annotated[tuple[str, ...], Parameter(negative=(), allow_leading_hyphen=True, show_default=False)] = (),
    limit: PositiveInt = 100,
    after: str | None = None,
    pretty: Flag = False,
    json: Flag = False,
) -> None:
    """Print the models of which some conditions hold, one JSON object a line: {"id": …, "model": …}.

    Every model is looked at, as of one instant, also while they are being folded; only those that are printed are kept
    in memory. Conditions: FIELD=VALUE, with = != > >= < <=; FIELD in A,B; FIELD contains VALUE; FIELD starts_with
    VALUE. A field may be below others: customer.city. Values are JSON where they are, and texts otherwise.

    Example: refold query order-summary status=open 'total_cents>=10000' --order-by -total_cents --limit 10

    Args:
        projection: Whose models.
        where: Conditions, all of which hold.
        options: Where the state is.
        order_by: A field to sort by, with a - before it for the largest first; again for the next one. By default, ids.
        limit: At most so many.
        after: The cursor that the page before ended with.
        pretty: Each over several lines, for people.
        json: Print one JSON object with the models and the cursor of the next page.
    """
    asked = Query(where=tuple(map(read_condition, where)), order_by=order_by, limit=limit, after=after)
    found = options.find(projection)
    with found.store.reader(found.projection) as reader:
        page = asked.run(reader.raw_items())
    if json:
        models = [{"id": model_id, "model": orjson.Fragment(raw)} for model_id, raw in page.models]
        print(shown(document("models", {"models": models, "cursor": page.cursor})))  # noqa: T201
        return
    for model_id, raw in page.models:
        print(shown(named(model_id, raw), pretty=pretty))  # noqa: T201
    if page.cursor is not None:
        console = Console(stderr=True, highlight=False, markup=False)
        console.print(f"There are more: --after {page.cursor}", soft_wrap=True)
