"""`refold status` and `refold describe`: how a projection stands, with no worker needed."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from streams.cli.beside import record_json
from streams.cli.output import duration, local_time, printer, shown, size
from streams.cli.partitions import partitions_table
from streams.cli.parts import Located
from streams.cli.progress import said
from streams.cli.wiring import Flag, GroupOptions, ProjectionName
from streams.cluster import Cluster
from streams.control.observed import progress_of
from streams.control.status import GroupView, StateView, view_group, view_state
from streams.data.build import RebuildRecord
from streams.data.source import KafkaEventStore
from streams.errors import BrokerError, ConfigError
from streams.types import Member, RebuildProgress

__all__ = ["describe", "rebuild_line", "status"]


def status(
    projection: ProjectionName,
    /,
    options: GroupOptions = GroupOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Print how far a projection is folded: position, end, lag, models and owner of each partition.

    Nobody needs to be folding. It is told from the state on this machine, and from the group's committed offsets.

    Example: refold status aircraft-log --topic flights

    Args:
        projection: Which one.
        options: Where it is.
        json: Print one JSON object.
    """
    found = options.locate(projection)
    state = view_state(found.store, found.projection)
    group = _group(found, state)
    progress = progress_of(found.group, KafkaEventStore(group.topic, kafka=found.kafka), found.store)
    if json:
        document = {"projection": found.projection.name, **_group_json(group), "rebuild": _rebuild_json(state)}
        document |= {"progress": None if progress is None else _progress_json(progress)}
        print(shown(document | {"registry": None if found.record is None else record_json(found.record)}))  # noqa: T201
        return
    console = printer()
    console.print(partitions_table(group), crop=False)
    console.print(_lag_line(group), soft_wrap=True)
    for line in _generation_lines(found):
        console.print(line, soft_wrap=True)
    if state is not None and state.rebuild is not None and state.rebuild.outcome == "running":
        console.print(rebuild_line(state), soft_wrap=True)
    if progress is not None and progress.is_running:
        console.print(f"rebuild {said(progress)}", soft_wrap=True)
    elif progress is not None and progress.error is not None:
        console.print(f"rebuild stopped at {said(progress)}\n{progress.error}", soft_wrap=True)


def describe(
    projection: ProjectionName,
    /,
    options: GroupOptions = GroupOptions(),  # noqa: B008 - frozen
    *,
    json: Flag = False,
) -> None:
    """Print what a projection's state is of: code, codec, topic, build, directory, size, and the last rebuild.

    Example: refold describe aircraft-log --topic flights

    Args:
        projection: Which one.
        options: Where it is.
        json: Print one JSON object.
    """
    found = options.locate(projection, offline=True)
    state = view_state(found.store, found.projection)
    group: GroupView | BrokerError
    try:
        group = _group(found, state)
    except BrokerError as error:
        group = error  # what is on this machine can be told all the same
    if json:
        print(shown(_described(found, state, group)))  # noqa: T201
        return
    console = printer()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(found, state, group):
        facts.add_row(name, Text(value))
    console.print(facts)
    if isinstance(group, GroupView):
        console.print()
        console.print(partitions_table(group), crop=False)


def _group(found: Located, state: StateView | None) -> GroupView:
    topic = found.topic or (None if state is None else state.build.manifest.topic)
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
    )


def _generation_lines(found: Located) -> list[str]:
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


def _lag_line(group: GroupView) -> str:
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
    return (
        f"{record.events:,} events in {duration(record.seconds)} ({record.events_per_second:,.0f} events/s){models}, "
        f"{record.deleted:,} deleted, {record.declined:,} declined"
    )


def _share(record: RebuildRecord, state: StateView) -> str:
    total = sum(target - record.starts.get(partition, 0) for partition, target in record.targets.items())
    done = sum(
        min(record.targets[number], one.position or 0) - record.starts.get(number, 0)
        for number, one in state.partitions.items()
        if number in record.targets
    )
    return f"{int(1000 * done / total) / 10 if total else 100.0:.1f} %"


def _facts(found: Located, state: StateView | None, group: GroupView | BrokerError) -> list[tuple[str, str]]:
    name = found.projection.name
    facts = [("projection", f"{name}, version {found.projection.version}")]
    if state is None:
        facts.append(("state", f"none in {found.store.directory.absolute()}"))
    else:
        manifest = state.build.manifest
        facts += [
            ("code", _code(found, state)),
            ("codec", state.build.current.codec),
            ("topic", f"{manifest.topic}, {manifest.partitions} partitions, id {manifest.topic_id}"),
            ("state", f"{state.directory.absolute()}, build {manifest.build}, begun {local_time(manifest.made)}"),
            ("size", f"{size(state.size_bytes)} on disk, {state.models:,} models"),
            ("rebuild", rebuild_line(state)),
            *(("registry", line) for line in _generation_lines(found)),
        ]
        if manifest.incomplete:
            facts.append(("history", "incomplete, which was allowed: the topic had lost events when the build began"))
        if state.folding:
            facts.append(("folding", "; ".join(map(str, state.folding))))
    if isinstance(group, GroupView):
        facts.append(("group", _lag_line(group)))
    else:
        facts.append(("group", f"{found.group}, unknown: {group}"))
    return facts


def _code(found: Located, state: StateView) -> str:
    if not state.code_changed:
        return "unchanged since the state was folded"
    return (
        f"changed since the state was folded: `refold rebuild {found.called}`, or `refold run {found.called} --adopt` "
        "where the change does not alter the fold"
    )


def _described(found: Located, state: StateView | None, group: GroupView | BrokerError) -> dict[str, Any]:
    document: dict[str, Any] = {
        "projection": found.projection.name,
        "version": found.projection.version,
        "directory": str(found.store.directory.absolute()),
        "state": None,
        "rebuild": _rebuild_json(state),
    }
    if state is not None:
        manifest = state.build.manifest
        document["state"] = {
            "build": manifest.build,
            "made": manifest.made,
            "code_changed": state.code_changed,
            "fingerprint": state.build.current.fingerprint,
            "codec": state.build.current.codec,
            "topic": manifest.topic,
            "topic_id": manifest.topic_id,
            "partitions": manifest.partitions,
            "incomplete": manifest.incomplete,
            "size_bytes": state.size_bytes,
            "models": state.models,
            "folding": [msgspec.to_builtins(holder) for holder in state.folding],
        }
    return document | (_group_json(group) if isinstance(group, GroupView) else {"error": str(group)})


def _group_json(group: GroupView) -> dict[str, Any]:
    return {
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
                if field.name not in ("owner", "record_ms")
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


def _rebuild_json(state: StateView | None) -> dict[str, Any] | None:
    if state is None or state.rebuild is None:
        return None
    document: dict[str, Any] = msgspec.to_builtins(state.rebuild)
    document.pop("format")
    return document | {"outcome": "died" if state.has_died else state.rebuild.outcome}
