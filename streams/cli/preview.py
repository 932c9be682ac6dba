"""`refold preview`: what a rebuild would change, in seconds."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from streams.cli.explain import as_json, said
from streams.cli.output import document, printer, shown
from streams.cli.parts import stream_ids
from streams.cli.signals import interrupted_by_signals
from streams.cli.wiring import Flag, FoldOptions, ProjectionName
from streams.control.preview import Difference, Preview
from streams.control.preview import preview as previewed
from streams.diff import ABSENT
from streams.errors import ConfigError

__all__ = ["preview"]

_SHOWN = 20


def preview(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    streams: str = "20",
    limit: int = _SHOWN,
    json: Flag = False,
) -> None:
    """Fold a sample of streams with the code as it is now, and show which stored models would differ, and how.

    Nothing is changed, and others may be folding: a correction is seen before the rebuild that brings it.

    Example: refold preview aircraft-log --topic flights --streams N14228,N711MA

    Args:
        projection: Whose models.
        options: Topic, state and codec.
        streams: How many streams, drawn from all over; or their ids with commas between, or @FILE, with an id a line.
        limit: How many models that differ are shown; --json shows all.
        json: Print one JSON object: streams, events, models, differences.
    """
    wanted: int | list[str] = int(streams) if streams.isdigit() else stream_ids(streams)
    if wanted == 0:
        raise ConfigError("--streams needs a number of streams, or their ids: `--streams 20`, `--streams a,b`.")
    wired = options.wire(projection)
    with interrupted_by_signals(exit_code=130):
        found = previewed(wired.projection, wired.events, wired.store, wanted, allow_incomplete=wired.allow_incomplete)
    if json:
        print(shown(document("preview", _document(found))))  # noqa: T201
        return
    if found.differences:
        printer().print(_table(found.differences[:limit]))
    if len(found.differences) > limit:
        print(f"… and {len(found.differences) - limit:,} more")  # noqa: T201
    print(_summary(found))  # noqa: T201


def _summary(found: Preview) -> str:
    new = sum(_is_new(one) for one in found.differences)
    gone = sum(_is_gone(one) for one in found.differences)
    parts = (
        f"{len(found.differences):,} of {found.models:,} models of {len(found.streams):,} streams differ"
        f" ({new:,} new, {gone:,} gone)"
    )
    return f"{parts}, by {found.events:,} events. Nothing was changed."


def _is_new(one: Difference) -> bool:
    return not one.changes[0].path and one.changes[0].before is ABSENT


def _is_gone(one: Difference) -> bool:
    return not one.changes[0].path and one.changes[0].after is ABSENT


def _table(differences: list[Difference]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("stored → folded now", overflow="fold")
    for one in differences:
        table.add_row(one.model_id, "\n".join(said(one.changes)))
    return table


def _document(found: Preview) -> dict[str, Any]:
    return {
        "streams": found.streams,
        "events": found.events,
        "models": found.models,
        "differences": [
            {"id": one.model_id, "partition": one.partition, "changes": as_json(one.changes)}
            for one in found.differences
        ],
    }
