"""`refold status`: how projections stand, with no worker needed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from cyclopts import Parameter
from cyclopts.types import PositiveFloat
from rich.console import Group, RenderableType
from rich.text import Text

from streams.cli import watching
from streams.cli.beside import record_json
from streams.cli.output import document, duration, local_time, printer, shown
from streams.cli.partitions import partitions_table
from streams.cli.parts import Located
from streams.cli.progress import said, shown_as_bar
from streams.cli.statuses import All
from streams.cli.whole import unfolded
from streams.cli.wiring import Flag, GroupOptions
from streams.cluster import Cluster
from streams.control.observed import progress_of
from streams.control.place import filling_group
from streams.control.status import GroupView, StateView, view_group, view_state
from streams.data.build import RebuildRecord
from streams.data.source import KafkaEventStore
from streams.errors import ConfigError
from streams.types import Member, RebuildProgress

__all__ = ["generation_lines", "group_json", "group_of", "lag_line", "rebuild_json", "rebuild_line", "status"]


T = TypeVar("T")


def status(
    projection: Annotated[
        str | None, Parameter(help="Which one; by default all that the registry knows, in a line each.")
    ] = None,
    /,
    options: GroupOptions = GroupOptions(),  # noqa: B008 - frozen
    *,
    watch: Flag = False,
    every_seconds: PositiveFloat = 1.0,
    for_seconds: PositiveFloat | None = None,
    json: Flag = False,
) -> None:
    """Print how far a projection is folded: position, end, lag, models and owner of each partition.

    Nobody needs to be folding, and its code need not be here. It is told from the state on this machine, and from the
    group's committed offsets.

    Example: refold status aircraft-log --topic flights

    Example: refold status --watch

    Args:
        projection: Which one.
        options: Where it is.
        watch: Look again and again, until Ctrl-C: drawn in place on a terminal, printed elsewhere.
        every_seconds: How often to look.
        for_seconds: End by itself after so long.
        json: Print one JSON object for each look.
    """
    if projection is None:
        _show(All(options), json=json, watch=watch, every_s=every_seconds, for_s=for_seconds)
    else:
        _show(_One(projection, options), json=json, watch=watch, every_s=every_seconds, for_s=for_seconds)


class _View(Protocol[T]):
    def look(self) -> T: ...
    def json(self, seen: T, /) -> dict[str, Any]: ...
    def drawn(self, seen: T, /) -> RenderableType: ...


def _show(view: _View[T], *, json: bool, watch: bool, every_s: float, for_s: float | None) -> None:
    def tell(seen: T) -> None:
        if json:
            print(shown(view.json(seen)))  # noqa: T201
        else:
            printer().print(view.drawn(seen), crop=False)

    if watch:
        watching.watch(view.look, view.drawn, tell, every_s=every_s, for_s=for_s, lines=json)
    else:
        tell(view.look())


@dataclass(frozen=True, slots=True)
class _Seen:
    found: Located
    state: StateView | None
    group: GroupView
    progress: RebuildProgress | None


def _added_lines(seen: _Seen) -> list[str]:
    """Say which partitions nobody folds, since the topic was given them later."""
    record, group = seen.found.record, seen.group
    if record is None or record.live.topic != group.topic or len(group.partitions) <= record.live.partitions:
        return []
    added = ", ".join(str(one.partition) for one in group.partitions[record.live.partitions :])
    return [
        f"{group.topic} was given partitions {added} since {record.active} began: their events are not folded. "
        f"`refold rebuild {seen.found.called}` takes them in"
    ]


class _One:
    """One projection's active generation, partition by partition."""

    def __init__(self, projection: str, options: GroupOptions) -> None:
        self._projection = projection
        self._options = options

    def look(self) -> _Seen:
        found = self._options.locate(self._projection)
        state = view_state(found.store, found.code)
        group = group_of(found, state)
        progress = progress_of(found.group, KafkaEventStore(group.topic, kafka=found.kafka), found.store)
        return _Seen(found, state, group, progress)

    def json(self, seen: _Seen) -> dict[str, Any]:
        facts = {"projection": seen.found.name, **group_json(seen.group), "rebuild": rebuild_json(seen.state)}
        facts |= {"progress": None if seen.progress is None else _progress_json(seen.progress)}
        facts |= {"registry": None if seen.found.record is None else record_json(seen.found.record)}
        return document("status", facts)

    def drawn(self, seen: _Seen) -> RenderableType:
        state, progress = seen.state, seen.progress
        lines = [lag_line(seen.group), *_added_lines(seen), *generation_lines(seen.found)]
        bars: list[RenderableType] = []
        if state is not None and state.rebuild is not None and state.rebuild.outcome == "running":
            lines.append(rebuild_line(state))
        if progress is not None and progress.is_running:
            bars.append(shown_as_bar(progress))
        elif progress is not None and progress.error is not None:
            lines.append(f"rebuild stopped at {said(progress)}\n{progress.error}")
        return Group(partitions_table(seen.group), *map(Text, lines), *bars)


def group_of(found: Located, state: StateView | None) -> GroupView:
    """Look at the active generation's group.

    Raises:
        ConfigError: Nobody says which topic it folds.
        BrokerError: From Kafka.
    """
    live = None if found.record is None else found.record.live
    topic = found.topic or (None if state is None else state.build.manifest.topic)
    if live is not None and (topic is None or live.source is not None):
        topic = live.topic
    if topic is None:
        raise ConfigError(
            f"{found.projection.name!r} has no state in {found.store.directory.absolute()} that would say which topic "
            "it is of. Give --topic, REFOLD_TOPIC, or topic in refold.toml."
        )
    cluster = Cluster(found.kafka)
    return view_group(
        cluster,
        cluster.topic(topic),
        found.group,
        build=None if state is None else state.build,
        state=None if state is None else state.partitions,
        live=None if state is None else state.folding,
        filling=None if live is None else filling_group(live),
    )


def generation_lines(found: Located) -> list[str]:
    """Say what generations there are, where there is more than one, and what waits for a person."""
    record = found.record
    if record is None:
        return []
    lines = []
    if len(record.generations) > 1:
        parts = []
        for one in record.generations:
            until = "" if one.kept_until is None else f" until {local_time(one.kept_until)}"
            parts.append(f"{one.id} {one.phase}{until}")
        lines.append(f"generations: {', '.join(parts)}")
    running = record.running
    if running is not None:
        green = record.find(running.generation)
        at_ = "paused" if running.is_paused else "gone" if green is None else green.phase
        why = f": {running.why}" if running.why else ""
        lines.append(f"{running.generation} is made beside {record.active}, {at_}{why}")
        if green is not None and green.phase == "waiting":
            lines.append(
                f"`refold verify {found.called}` shows what differs, `refold switch {found.called}` approves it"
            )
    waiting = record.waiting
    if waiting is not None and (waiting.version, waiting.fingerprint) != (record.live.version, record.live.fingerprint):
        lines.append(
            f"code of version {waiting.version} waits since {local_time(waiting.since)}: {record.active} is of other "
            f"code; `refold rebuild {found.called}`, or `refold run {found.called} --adopt`"
        )
    return lines


def lag_line(group: GroupView) -> str:
    """Say how far a group is behind, and what keeps it from folding."""
    parts = [f"lag {group.lag:,} records"]
    seconds = group.lag_seconds()
    if group.lag and seconds is not None:
        parts.append(f"the last one folded is {duration(seconds)} old")
    parts.append(f"{len(group.members)} member{'' if len(group.members) == 1 else 's'} in group {group.group}")
    if group.gone:
        parts.append(
            f"the group waits for {', '.join(str(one.pid) for one in group.gone)}, which ended without leaving"
        )
    lines = [", ".join(parts)]
    filling = group.filling
    if filling is not None:
        members = f"{len(filling.members)} member{'' if len(filling.members) == 1 else 's'}"
        left = f"{filling.lag:,} of these have yet to be" if filling.lag else "all are"
        lines.append(
            f"{left} written from {filling.topic} to {group.topic}, keyed by model, by {members} of the group named so"
        )
        lines += [f"{filling.topic}[{one.partition}] {one.phase}: {one.why}" for one in filling.partitions if one.why]
    left = unfolded(group.dead_letters, group.skipped)
    if left:
        lines.append(f"events that are not in their models: {left}")
    lines += [f"{group.topic}[{one.partition}] {one.phase}: {one.why}" for one in group.partitions if one.why]
    return "\n".join(lines)


def rebuild_line(state: StateView) -> str:
    """Say how the rebuild went that made the state, or goes."""
    record = state.rebuild
    if record is None:
        return f"none; build {state.build.manifest.build} was begun by a run"
    if record.outcome != "running":
        return f"{record.outcome} {local_time(record.ended_at)}: {rebuild_figures(record)}" + (
            f". {record.error}" if record.error else ""
        )
    share = _share(record, state)
    if state.rebuilding is not None:
        return f"running since {local_time(record.started_at)}, {share}: {state.rebuilding}"
    return f"began {local_time(record.started_at)} and ended without a word, at {share}; `--from checkpoint` goes on"


def rebuild_figures(record: RebuildRecord) -> str:
    """Write a rebuild's figures."""
    models = "" if record.models is None else f", {record.models:,} models"
    left = unfolded(record.dead_letters, record.skipped)
    left = f", {left}" if left else ""
    return (
        f"{record.events:,} events in {duration(record.seconds)} ({record.events_per_second:,.0f} events/s){models}, "
        f"{record.deleted:,} deleted, {record.declined:,} declined{left}"
    )


def _share(record: RebuildRecord, state: StateView) -> str:
    total = sum(target - record.starts.get(partition, 0) for partition, target in record.targets.items())
    done = sum(
        min(record.targets[number], one.position or 0) - record.starts.get(number, 0)
        for number, one in state.partitions.items()
        if number in record.targets
    )
    return f"{int(1000 * done / total) / 10 if total else 100.0:.1f} %"


def group_json(group: GroupView) -> dict[str, Any]:
    """Give a group as one object."""
    filling = group.filling
    return {
        "filling": None
        if filling is None
        else {
            "topic": filling.topic,
            "group": filling.group,
            "lag_records": filling.lag,
            "members": [_member_json(one) for one in filling.members],
            "positions": {str(one.partition): one.position for one in filling.partitions},
        },
        "topic": group.topic,
        "group": group.group,
        "lag_records": group.lag,
        "lag_seconds": group.lag_seconds(),
        "models": sum(one.models for one in group.partitions),
        "members": [_member_json(one) for one in group.members],
        "gone": [one.pid for one in group.gone],
        "partitions": [
            {
                field.name: getattr(one, field.name)
                for field in dataclasses.fields(one)
                if field.name not in ("owner", "record_ms", "snapshot", "snapshot_ms")
            }
            | {"lag": one.lag, "owner": None if one.owner is None else _member_json(one.owner)}
            for one in group.partitions
        ],
    }


def _progress_json(progress: RebuildProgress) -> dict[str, Any]:
    return dataclasses.asdict(progress) | {"completion_percentage": progress.completion_percentage()}


def _member_json(member: Member) -> dict[str, Any]:
    return {
        "client_id": member.client_id,
        "host": member.host.lstrip("/"),
        "pid": member.pid,
        "partitions": list(member.partitions),
    }


def rebuild_json(state: StateView | None) -> dict[str, Any] | None:
    """Give the rebuild that made the state; None where none did."""
    if state is None or state.rebuild is None:
        return None
    document: dict[str, Any] = msgspec.to_builtins(state.rebuild)
    document.pop("format")
    return document | {"outcome": "died" if state.has_died else state.rebuild.outcome}
