"""`refold dead-letters`: list, show, retry and drop events that could not be folded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, PositiveInt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streams.cli.output import document, local_time, printer, shown, size
from streams.cli.parts import Located
from streams.cli.plan import agreed_or_end
from streams.cli.wiring import Flag, GroupOptions, ProjectionName
from streams.control.dead_letters import DeadLetters, Standing, heads
from streams.errors import ConfigError, DeadLettersLeft, GenerationNotFound, ModelNotFound

__all__ = ["dead_letters"]

_COORDINATES = re.compile(r"(?:(.+)\[(\d+)\]|(\d+))@(\d+)")
_VALUE_CHARS = 100_000


def dead_letters(
    projection: ProjectionName,
    action: Literal["list", "show", "retry", "drop"] = "list",
    /,
    *events: str,
    options: GroupOptions = GroupOptions(),  # noqa: B008 - frozen
    model: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    every: Annotated[bool, Parameter(name="--all", negative=())] = False,
    generation: str | None = None,
    limit: PositiveInt = 50,
    wait_seconds: NonNegativeFloat = 30.0,
    yes: Flag = False,
    json: Flag = False,
) -> None:
    """List, show, retry or drop events that could not be folded, and those that wait behind them.

    With `--on-error dead-letter`, an event that cannot be folded is kept in the topic refold.PROJECTION.dead-letters,
    and later events of its model wait behind it. A retry folds them in their order, up to the first that fails again;
    other models are untouched. What is dropped is never folded, and what only waited behind it is. Both are carried out
    by whoever folds the projection: `refold run`, or a worker.

    Example: refold dead-letters aircraft-log retry --all

    Args:
        projection: Whose.
        action: list those that wait; show one as it was written; retry some; or drop some.
        events: Which: by the event's coordinates, as list gives them, with or without the topic.
        options: Where it is.
        model: Those of a model, by its id or its stream; may be given more than once.
        every: list: also what was skipped, folded or dropped, and each one that waits behind others. retry, drop: all
            that wait.
        generation: Of which generation; by default the active one.
        limit: list: how many at most.
        wait_seconds: How long to wait for those who fold.
        yes: drop: do not ask.
        json: Print one JSON object for each letter, or for what has become of them.
    """
    found = options.locate(projection)
    letters = _letters_of(found, generation)
    if action == "show" and len(events) != 1:
        raise ConfigError("show needs the coordinates of one event, as `refold dead-letters P list` gives them.")
    if action in ("retry", "drop") and bool(events or model) == every:
        raise ConfigError(f"{action} needs the coordinates of events, --model, or --all.")
    if action == "list":
        _list(letters, found, events, model, every=every, limit=limit, json=json)
    elif action == "show":
        (one,) = _chosen(letters.all(values=True), events, ())
        _show(one, json=json)
    else:
        waiting = letters.waiting()
        chosen = waiting if every else _chosen(waiting, events, model)
        _ask(letters, found, action, chosen, wait_s=wait_seconds, yes=yes, json=json)


def _letters_of(found: Located, generation: str | None) -> DeadLetters:
    group, name = found.group, found.place.generation
    if generation is not None and generation != name:
        one = None if found.record is None else found.record.find(generation)
        if one is None:
            raise GenerationNotFound(
                f"{found.name!r} has no generation {generation!r}: `refold status {found.called}`."
            )
        group, name = one.group, one.id
    return DeadLetters(found.kafka, found.name, name, group)


def _chosen(letters: Sequence[Standing], events: Sequence[str], models: Sequence[str]) -> list[Standing]:
    """Give those that are meant.

    Raises:
        ConfigError: Coordinates cannot be read.
        ModelNotFound: There is no such letter.
    """
    wanted = [_coordinates(event) for event in events]
    missing = [
        event
        for event, (topic, partition, offset) in zip(events, wanted, strict=True)
        if not any(_is(one, topic, partition, offset) for one in letters)
    ]
    known = {name for one in letters for name in (one.letter.model, one.letter.stream)}
    missing += [name for name in models if name not in known]
    if missing:
        raise ModelNotFound(
            f"No dead letter waits of {', '.join(missing)}: `refold dead-letters P list` names those that do."
        )
    return [
        one
        for one in letters
        if any(_is(one, *which) for which in wanted) or one.letter.model in models or one.letter.stream in models
    ]


def _is(one: Standing, topic: str | None, partition: int, offset: int) -> bool:
    letter = one.letter
    return (letter.partition, letter.offset) == (partition, offset) and topic in (None, letter.topic)


def _coordinates(event: str) -> tuple[str | None, int, int]:
    found = _COORDINATES.fullmatch(event)
    if found is None:
        raise ConfigError(f"{event!r} names no event: write topic[partition]@offset, or partition@offset.")
    return found[1], int(found[2] or found[3]), int(found[4])


def _list(
    letters: DeadLetters,
    found: Located,
    events: Sequence[str],
    models: Sequence[str],
    *,
    every: bool,
    limit: int,
    json: bool,
) -> None:
    there = letters.all() if every else letters.waiting()
    if events or models:
        there = _chosen(there, events, models)
    if json:
        for one in there[:limit]:
            print(shown(document("dead-letter", _as_json(one))))  # noqa: T201
        return
    rows = [(one, 0) for one in there] if every else heads(there)
    if not rows:
        print(f"No dead letters wait in {letters.topic}.")  # noqa: T201
        return
    printer().print(_table(rows[:limit], every=every), crop=False)
    more = f"; {len(rows) - limit:,} more with --limit" if len(rows) > limit else ""
    waiting = sum(one.state == "waiting" for one in there)
    of = len({one.letter.model or one.letter.stream for one in there if one.state == "waiting"})
    print(  # noqa: T201
        f"{waiting:,} wait, of {of:,} model{'' if of == 1 else 's'}, "
        f"of {', '.join(sorted({one.letter.topic for one in there}))}{more}. "
        f"`refold dead-letters {found.called} show EVENT` shows one, retry folds them again, drop gives them up."
    )


def _table(rows: Sequence[tuple[Standing, int]], *, every: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("event", "time", *(["state"] if every else []), "kind", "type", "model"):
        table.add_column(name, no_wrap=True)
    if not every:
        table.add_column("behind it", justify="right", no_wrap=True)
    table.add_column("error", overflow="fold")
    topics = {one.letter.topic for one, _ in rows}
    for one, behind in rows:
        letter = one.letter
        where = f"{letter.partition}@{letter.offset}" if len(topics) == 1 else letter.where
        cells = [where, local_time(letter.timestamp)]
        cells += [one.state] if every else []
        cells += [one.kind, letter.event_type or "-", letter.model or letter.stream or "-"]
        cells += [] if every else [f"{behind:,}"]
        table.add_row(*map(Text, cells), Text(one.error))
    return table


def _show(one: Standing, *, json: bool) -> None:
    letter = one.letter
    value, key = _text(letter.value), _text(letter.key)
    headers = [[name, _text(header)] for name, header in letter.headers]
    if json:
        print(shown(document("dead-letter", _as_json(one) | {"key": key, "value": value, "headers": headers})))  # noqa: T201
        return
    facts = {
        "event": f"{letter.where}, {local_time(letter.timestamp)}",
        "state": f"{one.state}, {one.kind}, tried {one.tried} time{'' if one.tried == 1 else 's'}",
        "error": one.error,
        "generation": letter.generation,
        "model": letter.model,
        "stream": letter.stream,
        "event id": letter.event_id,
        "type": letter.event_type,
        "kept": local_time(one.written_ms),
        "key": key,
        "headers": ", ".join(f"{name}={header}" for name, header in headers) or None,
    }
    width = max(map(len, facts))
    for name, fact in facts.items():
        if fact is not None:
            print(f"{name:<{width}}  {fact}")  # noqa: T201
    print(f"{'value':<{width}}  {size(one.size)}")  # noqa: T201
    print(_pretty(letter.value)[:_VALUE_CHARS])  # noqa: T201


def _ask(
    letters: DeadLetters,
    found: Located,
    action: Literal["retry", "drop"],
    chosen: Sequence[Standing],
    *,
    wait_s: float,
    yes: bool,
    json: bool,
) -> None:
    if not chosen:
        print(f"No dead letters wait in {letters.topic}.")  # noqa: T201
        return
    if action == "drop" and not yes:
        console = Console(stderr=True, highlight=False, markup=False)
        console.print(
            f"This gives {len(chosen):,} event{'' if len(chosen) == 1 else 's'} of {found.name!r} up: they are never "
            "folded in this generation. They stay in the topic.",
            soft_wrap=True,
        )
        agreed_or_end(console)
    answer = letters.ask(action, chosen, wait_s=wait_s)
    waiting = len(letters.waiting())
    if json:
        facts = {
            "verb": action,
            "asked": len(chosen),
            "folded": answer.folded,
            "failed": answer.failed,
            "dropped": answer.dropped,
            "waiting": waiting,
            "silent": list(answer.silent),
        }
        print(shown(document("dead-letters-answer", facts)))  # noqa: T201
    else:
        dropped = f"{answer.dropped:,} dropped, " if action == "drop" else ""
        print(f"{dropped}{answer.folded:,} folded, {answer.failed:,} failed again; {waiting:,} wait.")  # noqa: T201
    if answer.silent:
        raise DeadLettersLeft(
            f"Nobody has answered for partitions {', '.join(map(str, answer.silent))} in {wait_s:g} s. The request "
            f"stays in {letters.topic}: whoever folds them carries it out (`refold status {found.called}`).",
            projection=found.name,
        )
    if answer.failed:
        raise DeadLettersLeft(
            f"{answer.failed:,} failed again, and what waits behind them waits on: `refold dead-letters {found.called} "
            "list` says why.",
            projection=found.name,
        )


def _as_json(one: Standing) -> dict[str, Any]:
    letter = one.letter
    return {
        "event": letter.where,
        "state": one.state,
        "kind": one.kind,
        "error": one.error,
        "projection": letter.projection,
        "generation": letter.generation,
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "time": datetime.fromtimestamp(letter.timestamp / 1000, UTC).isoformat(timespec="milliseconds"),
        "written_at": datetime.fromtimestamp(one.written_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "tried": one.tried,
        "stream": letter.stream,
        "model": letter.model,
        "event_id": letter.event_id,
        "event_type": letter.event_type,
        "size_bytes": one.size,
    }


def _text(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return repr(value)


def _pretty(value: bytes | None) -> str:
    if value is None:
        return "null"
    try:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return _text(value) or ""
