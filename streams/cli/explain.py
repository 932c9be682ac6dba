"""`refold explain`: what made a model what it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.table import Table

from streams.cli.output import document, local_time, printer, shown
from streams.cli.signals import interrupted_by_signals
from streams.cli.wiring import Flag, FoldOptions, ProjectionName
from streams.control.explain import History, Step
from streams.control.explain import explain as history_of
from streams.diff import ABSENT, Change
from streams.errors import ConfigError, ModelNotFound

__all__ = ["as_json", "explain", "said"]

_SHOWN = 60


def explain(
    projection: ProjectionName,
    model_id: str,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    at: str | None = None,
    json: Flag = False,
) -> None:
    """Print the history of a model: each event that touched it, and what it changed, by the code as it is now.

    It is folded from the topic, and nothing is changed. Nobody needs to be folding.

    Example: refold explain aircraft-log N14228 --topic flights

    Args:
        projection: Whose model.
        model_id: The model's id.
        options: Topic, state and codec.
        at: The model as it was then: after the event at this offset of its partition, or at this time by the events'
            own (2026-03-01T10:00). Without a zone it is this machine's.
        json: Print one JSON object: id, events, model.
    """
    wired = options.wire(projection)
    events = wired.site().events_of(wired.place)
    with interrupted_by_signals(exit_code=130):
        history = history_of(wired.projection, events, wired.store, model_id, at=_when(at))
    if not history.steps and history.error is None:
        when = "" if at is None else f" up to {at}"
        raise ModelNotFound(
            f"No event of {events.topic}{when} is of a model {model_id!r} of {wired.projection.name!r}.",
            projection=wired.projection.name,
            topic=events.topic,
        )
    if json:
        print(shown(document("explain", _document(history))))  # noqa: T201
    else:
        console = printer()
        console.print(_table(history.steps))
        if at is not None:
            print(shown(None if history.model is ABSENT else history.model, pretty=True))  # noqa: T201
    if history.error is not None:
        raise history.error


def _when(text: str | None) -> int | datetime | None:
    if text is None:
        return None
    try:
        return int(text) if text.isdigit() else datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as error:
        raise ConfigError(f"--at {text!r} is neither an offset nor a time such as 2026-03-01T10:00.") from error


def _document(history: History) -> dict[str, Any]:
    return {
        "id": history.model_id,
        "events": [
            {
                "partition": step.partition,
                "offset": step.offset,
                "id": step.event_id,
                "type": step.type,
                "time": step.time,
                "is_folded": step.is_folded,
                "changes": as_json(step.changes),
            }
            for step in history.steps
        ],
        "model": None if history.model is ABSENT else history.model,
    }


def as_json(changes: list[Change]) -> list[dict[str, Any]]:
    """Give changes as JSON has them: what was not there before, or is not after, has no such key."""
    return [msgspec.to_builtins(change) for change in changes]


def _table(steps: list[Step]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("at", no_wrap=True)
    table.add_column("time", no_wrap=True)
    table.add_column("event", overflow="fold")
    table.add_column("changed", overflow="fold")
    for step in steps:
        waits = "" if step.is_folded else " (not folded yet)"
        table.add_row(
            f"{step.partition}@{step.offset}",
            local_time(step.time),
            step.type + waits,
            "\n".join(said(step.changes)) or "nothing",
        )
    return table


def said(changes: list[Change]) -> list[str]:
    """Write each change in one line."""
    return [_said(change) for change in changes]


def _said(change: Change) -> str:
    if change.before is ABSENT:
        return f"{change.path} = {_short(change.after)}".strip()
    if change.after is ABSENT:
        return f"{change.path or 'the model'} is gone; it was {_short(change.before)}"
    return f"{change.path} {_short(change.before)} → {_short(change.after)}".strip()


def _short(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
