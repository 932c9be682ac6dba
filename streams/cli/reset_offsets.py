"""`refold reset-offsets`: set a consumer group's offsets, in the words of Kafka's own tool."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streams.cli.output import document, printer, shown
from streams.cli.plan import agreed, can_ask
from streams.cli.subjects import Subjects
from streams.cli.wiring import Flag, PlaceOptions
from streams.control.lag import Subject
from streams.control.resetting import NewOffset, Target, as_csv, judged, planned, read_csv, set_offsets
from streams.errors import ConfigError, GroupNotFound

__all__ = ["reset_offsets"]


def reset_offsets(
    projection: Annotated[str | None, Parameter(help="A projection, whose active generation's group is meant.")] = None,
    /,
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    *,
    group: list[str] | None = None,
    topic: list[str] | None = None,
    all_topics: Flag = False,
    to_earliest: Flag = False,
    to_latest: Flag = False,
    to_current: Flag = False,
    to_offset: int | None = None,
    to_datetime: str | None = None,
    by_duration: str | None = None,
    shift_by: int | None = None,
    from_file: Path | None = None,
    dry_run: Flag = False,
    execute: Flag = False,
    export: Flag = False,
    json: Flag = False,
) -> None:
    """Set the offsets of a consumer group that nobody is in, in the words of kafka-consumer-groups.sh.

    For a projection, the log's start has partitions folded again, and the position of the models changes nothing. Any
    other offset is refused: the models are of one position, and nothing can set them to another one but a rebuild.

    No offset is clamped: one that there is not is refused, and then nothing is changed. Where a partition fails, the
    exit code says so.

    Example: refold reset-offsets aircraft-log --to-earliest --dry-run

    Example: refold reset-offsets --group billing --topic invoices:0,1 --to-datetime 2026-03-01T10:00:00.000 --execute

    Args:
        projection: Whose.
        options: Where Kafka and the registry are.
        group: Any consumer group; several by saying it again.
        topic: Which topics, or TOPIC:PARTITION,PARTITION; several by saying it again.
        all_topics: All that the group has offsets of; so it is for a projection.
        to_earliest: To the first offset that there is.
        to_latest: To the end.
        to_current: To where it is; where it is nowhere, to the end.
        to_offset: To this offset.
        to_datetime: To the first record of this time or later: YYYY-MM-DDThh:mm:ss.sss, in UTC without a zone.
        by_duration: The same, so long ago: PnDTnHnMnS.
        shift_by: By so many records, forward or (negative) back.
        from_file: As lines of this file say: topic,partition,offset, or group,topic,partition,offset.
        dry_run: Only show what would be set.
        execute: Do it, without asking.
        export: Only print it as lines that --from-file takes.
        json: Print one JSON object.
    """
    named = sum([to_earliest, to_latest, to_current]) + sum(
        one is not None for one in (to_offset, to_datetime, by_duration, shift_by, from_file)
    )
    if named != 1:
        raise ConfigError(f"Say where to, once: {_WHERE_TO}. These are {named}.")
    if sum([dry_run, execute, export]) > 1:
        raise ConfigError("--dry-run, --execute and --export exclude each other.")
    if (projection is None) == (group is None):
        raise ConfigError("Say whose offsets: a projection, or --group NAME.")
    target = Target(
        earliest=to_earliest,
        latest=to_latest,
        current=to_current,
        offset=to_offset,
        time_ms=_time_ms(to_datetime, by_duration),
        shift=shift_by,
    )
    scope = _scope(topic or [])
    if group is not None and from_file is None and not scope and not all_topics:
        raise ConfigError("Say which offsets: --topic NAME[:PARTITION,…], or --all-topics.")
    subjects = Subjects(options)
    records = subjects.registry.all()
    if projection is not None:
        subject = _active(subjects, projection)
        groups, scope = [subject.group], scope or dict.fromkeys(subject.topics or {})
    else:
        groups = list(dict.fromkeys(group or []))
    listed = None if from_file is None else read_csv(_read(from_file), groups, str(from_file))
    offsets: list[NewOffset] = []
    for name in groups:
        if listed is not None:
            target = Target(listed=listed[name])
            if not listed[name]:
                continue
        new = planned(subjects.cluster, name, scope, target)
        record = next((one for one in records.values() if any(g.group == name for g in one.generations)), None)
        offsets += judged(subjects.cluster, record, new)
    if export and not json:
        sys.stdout.write(as_csv(offsets))
        return
    console = Console(stderr=True, highlight=False, markup=False)
    if not (dry_run or execute or export):
        if not can_ask(console):
            _show(offsets, executed=False, json=json)
            console.print("refold: nothing was changed. Say --execute to do it, or --dry-run to see only.")
            raise SystemExit(2)
        console.print(_table(offsets), crop=False)
        if not agreed(console, "Set them?"):
            console.print("Nothing was changed.")
            raise SystemExit(2)
        execute = True
    if execute:
        set_offsets(subjects.cluster, offsets)
    _show(offsets, executed=execute, json=json)


_WHERE_TO = (
    "--to-earliest, --to-latest, --to-current, --to-offset N, --to-datetime TIME, --by-duration DURATION, --shift-by N "
    "or --from-file FILE"
)


def _active(subjects: Subjects, projection: str) -> Subject:
    found = subjects.find(projection, None)
    active = [one for one in found if one.phase in (None, "active")]
    if not active:
        raise GroupNotFound(f"{projection!r} has no group yet.")
    return active[0]


def _scope(topics: list[str]) -> dict[str, list[int] | None]:
    """Read TOPIC or TOPIC:PARTITION,… as Kafka's tool does; a topic that is named whole is meant whole."""
    scope: dict[str, list[int] | None] = {}
    for text in topics:
        name, colon, numbers = text.partition(":")
        if not name or (colon and not re.fullmatch(r"\d+(,\d+)*", numbers)):
            raise ConfigError(f"--topic {text!r} cannot be read: write TOPIC, or TOPIC:PARTITION,PARTITION.")
        before = scope.get(name, [])
        both = None if before is None or not colon else sorted({*before, *map(int, numbers.split(","))})
        scope[name] = both
    return scope


def _time_ms(at: str | None, ago: str | None) -> int | None:
    if at is not None:
        try:
            time_ = datetime.fromisoformat(at)
        except ValueError as error:
            raise ConfigError(f"--to-datetime {at!r} cannot be read: write YYYY-MM-DDThh:mm:ss.sss.") from error
        return int((time_ if time_.tzinfo else time_.replace(tzinfo=UTC)).timestamp() * 1000)
    if ago is not None:
        try:
            if not ago.startswith("P"):
                raise ValueError(ago)
            span = TypeAdapter(timedelta).validate_python(ago)
        except (ValueError, ValidationError) as error:
            raise ConfigError(f"--by-duration {ago!r} cannot be read: write PnDTnHnMnS, as P1DT12H.") from error
        return int((time.time() - span.total_seconds()) * 1000)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--from-file: {path} cannot be read: {error}.") from error


def _show(offsets: list[NewOffset], *, executed: bool, json: bool) -> None:
    if json:
        rows = [
            {
                "group": one.group,
                "topic": one.topic,
                "partition": one.partition,
                "before": one.now,
                "offset": one.to,
                "start": one.start,
                "end": one.end,
                "means": one.means or None,
            }
            for one in offsets
        ]
        print(shown(document("reset-offsets", {"executed": executed, "offsets": rows})))  # noqa: T201
        return
    printer().print(_table(offsets), crop=False)
    if executed and any(one.means and not one.is_kept for one in offsets):
        print("The next `refold run` or worker folds these partitions again; until then, readers see what there is.")  # noqa: T201


def _table(offsets: list[NewOffset]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("group", "topic"):
        table.add_column(name, overflow="fold")
    for name in ("partition", "offset", "new offset"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("range", no_wrap=True)
    is_ours = any(one.means for one in offsets)
    if is_ours:
        table.add_column("models", overflow="fold")
    for one in offsets:
        table.add_row(
            Text(one.group),
            Text(one.topic),
            str(one.partition),
            "-" if one.now is None else f"{one.now:,}",
            f"{one.to:,}",
            f"{one.start:,} to {one.end:,}",
            *([Text(one.means)] if is_ours else []),
        )
    return table
