"""`refold lag`: how far any consumer group is behind."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, PositiveFloat
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from streams.cli import watching
from streams.cli.output import document, duration, local_time, printer, shown
from streams.cli.plot import History
from streams.cli.subjects import Subjects
from streams.cli.wiring import Flag, PlaceOptions
from streams.control.lag import GroupLag, PartitionLag, Rates, group_lag
from streams.errors import ConfigError, GroupNotFound, at
from streams.types import Member

__all__ = ["lag"]

Look = Sequence[tuple[GroupLag, Rates]]


def lag(
    projection: Annotated[
        str | None, Parameter(help="A projection; by default, without --group, all that the registry knows.")
    ] = None,
    /,
    options: PlaceOptions = PlaceOptions(),  # noqa: B008 - frozen
    *,
    group: str | None = None,
    topic: list[str] | None = None,
    watch: Flag = False,
    plot: Flag = False,
    every_seconds: PositiveFloat = 1.0,
    for_seconds: PositiveFloat | None = None,
    sample_seconds: NonNegativeFloat = 1.0,
    json: Flag = False,
) -> None:
    """Print how far consumer groups are behind: records, seconds, retention's margin, members, rate, time left.

    Position, end and lag of each partition are those that Kafka's own tool gives. "behind" is for how long the first
    record that was not read has been waiting, "kept" for how long retention keeps it for certain. The rate is that
    between two looks. No worker and no code of the projection are needed.

    Example: refold lag aircraft-log --watch

    Example: refold lag --group billing --plot

    Args:
        projection: Whose groups.
        options: Where Kafka and the registry are.
        group: Any consumer group, also one that is not refold's.
        topic: With --group: this topic, all of its partitions; several by saying it again. By default those that the
            group reads.
        watch: Look again and again, until Ctrl-C: drawn in place on a terminal, lines elsewhere.
        plot: The same, with the lag over time drawn; without a terminal, once at the end of --for-seconds.
        every_seconds: How often to look.
        for_seconds: End by itself after so long.
        sample_seconds: Without --watch: for how long to measure the rate, where there is a lag; 0: not at all.
        json: Print one JSON object for each look.
    """
    console = printer()
    if plot and json:
        raise ConfigError("--plot draws, and --json prints figures: choose one, --plot or --watch --json.")
    if plot and not console.is_terminal and for_seconds is None:
        raise ConfigError("--plot draws on a terminal, and this is none: say --for-seconds, to draw at the end.")
    view = _Groups(Subjects(options), projection, group, topic or ())
    if plot:
        last: list[Look] = []
        watching.watch(view.look, view.plotted, last.append, every_s=every_seconds, for_s=for_seconds)
        if last:
            console.print(view.plotted(last[-1]), crop=False)
    elif watch:
        tell = _tell_json if json else _tell
        watching.watch(view.look, view.drawn, tell, every_s=every_seconds, for_s=for_seconds, lines=json)
    else:
        seen = view.look()
        if sample_seconds and any(one.lag_records for one, _ in seen):
            time.sleep(sample_seconds)
            seen = view.look()
        if json:
            _tell_json(seen)
        elif not seen:
            print("No groups: the registry knows no projection. `--group NAME` looks at any other one.")  # noqa: T201
        else:
            console.print(view.drawn(seen), crop=False)


class _Groups:
    """Groups, looked at again and again."""

    def __init__(self, subjects: Subjects, projection: str | None, group: str | None, topics: Sequence[str]) -> None:
        self._subjects = subjects
        self._named = projection, group, topics
        self._rates: dict[str, Rates] = {}
        self._history = History()

    def look(self) -> Look:
        seen = []
        for subject in self._subjects.find(*self._named):
            try:
                found = group_lag(self._subjects.cluster, subject)
            except GroupNotFound:
                if self._named[:2] == (None, None):
                    continue  # one of several, which is being made or removed just now
                raise
            rates = self._rates.setdefault(subject.group, Rates())
            rates.note(found)
            self._history.note(subject.group, found.at_s, found.lag_records)
            seen.append((found, rates))
        return seen

    def drawn(self, seen: Look) -> RenderableType:
        parts: list[RenderableType] = []
        for one, rate in seen:
            parts += [Text(""), Text(_summary(one, rate)), _table(one), *map(Text, _notes(one))]
        return Group(*parts[1:])

    def plotted(self, seen: Look) -> RenderableType:
        console = printer()
        lines = [Text(_summary(one, rate)) for one, rate in seen]
        return Group(Text.from_ansi(self._history.drawn(console.width, console.height - len(lines) - 2)), *lines)


def _tell(seen: Look) -> None:
    for one, rate in seen:
        print(f"{local_time(int(one.at_s * 1000))}  {_summary(one, rate)}")  # noqa: T201


def _tell_json(seen: Look) -> None:
    print(shown(_json(seen)))  # noqa: T201


def _summary(one: GroupLag, rate: Rates) -> str:
    """Say how a whole group is, in one line."""
    of = "" if one.subject.generation is None else f" ({one.subject.generation}, {one.subject.phase})"
    read, members = rate.read(), len(one.description.members)
    parts = [f"{one.subject.group}{of}: {one.description.state}", f"lag {one.lag_records:,} records"]
    if one.lag_records:
        behind = one.behind_s()
        parts.append(f"{duration(behind)} behind" if behind is not None else "behind for an unknown time")
        if read is not None:
            eta = rate.eta_s(one)
            parts.append(f"{read:,.0f} records/s, ETA {duration(eta) if eta is not None else 'never, at this rate'}")
    parts.append(f"{members} member{'' if members == 1 else 's'}")
    return ", ".join(parts)


def _table(one: GroupLag) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("topic", overflow="fold")
    for name in ("partition", "position", "end", "lag", "behind", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("member", overflow="fold")
    for part in one.partitions:
        left_s = part.retention_left_s(one.at_s)
        behind_s = part.behind_s(one.at_s)
        table.add_row(
            Text(part.topic),
            str(part.partition),
            *("-" if figure is None else f"{figure:,}" for figure in (part.position, part.end, part.lag_records)),
            duration(behind_s),
            "-" if left_s is None else duration(left_s) if left_s > 0 else "overdue",
            Text(_named(part.member)),
        )
    return table


def _notes(one: GroupLag) -> Iterable[str]:
    """Say what the figures alone would hide."""
    for part in one.partitions:
        where = at(part.topic, part.partition)
        if part.lost_records:
            yield f"{where}: {part.lost_records:,} of these were deleted unread; it begins at {part.start:,}"
        if part.held_back_records:
            yield (
                f"{where}: a transaction is open at {part.stable_end:,}; those who read committed ones only (as refold "
                f"does) cannot read the last {part.held_back_records:,} yet"
            )


def _named(member: Member | None) -> str:
    if member is None:
        return "nobody"
    host = member.host.lstrip("/")
    who = member.client_id if member.pid is None else f"refold, process {member.pid}"
    static = "" if member.instance_id is None else f" as {member.instance_id}"
    return f"{who}{static} on {host}"


def _json(seen: Look) -> dict[str, Any]:
    return document("lag", {"at": datetime.now(UTC).isoformat(), "groups": [_group(one, rate) for one, rate in seen]})


def _group(one: GroupLag, rate: Rates) -> dict[str, Any]:
    return {
        "group": one.subject.group,
        "projection": one.subject.projection,
        "generation": one.generation,
        "phase": one.subject.phase,
        "state": one.description.state,
        "assignor": one.description.assignor,
        "lag_records": one.lag_records,
        "behind_seconds": one.behind_s(),
        "records_read_per_second": rate.read(),
        "records_written_per_second": rate.written(),
        "eta_seconds": rate.eta_s(one),
        "members": [_member(member) for member in one.description.members],
        "partitions": [_partition(part, one.at_s) for part in one.partitions],
    }


def _partition(part: PartitionLag, now_s: float) -> dict[str, Any]:
    return {
        "topic": part.topic,
        "partition": part.partition,
        "start": part.start,
        "position": part.position,
        "end": part.end,
        "stable_end": part.stable_end,
        "lag_records": part.lag_records,
        "lost_records": part.lost_records,
        "behind_seconds": part.behind_s(now_s),
        "retention_left_seconds": part.retention_left_s(now_s),
        "retention_margin_records": None if part.position is None else part.position - part.start,
        "member": None if part.member is None else part.member.client_id,
    }


def _member(member: Member) -> dict[str, Any]:
    return {
        "client_id": member.client_id,
        "instance_id": member.instance_id,
        "host": member.host.lstrip("/"),
        "partitions": [{"topic": topic, "partition": partition} for topic, partition in member.assigned],
    }
