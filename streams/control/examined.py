"""One pass over one projection: its code, topic, groups, and what this machine has of it. It only looks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from projections.contract import CqrsProjection
from projections.fingerprint import fingerprint
from streams.cluster import Cluster
from streams.config import FoldSettings
from streams.control.findings import Finding, allowed, failure, ok, tried, warning
from streams.control.place import filling_group, place_of
from streams.control.record import Generation, Record
from streams.control.restored import repository_of
from streams.control.status import view_state
from streams.data.files import FILES
from streams.data.job import mark_of
from streams.data.letter import topic_of
from streams.data.restoring import WORTH
from streams.data.snapshots import Snapshots
from streams.data.stamp import Stamp
from streams.data.stores import Kind
from streams.errors import CqrsError, at
from streams.types import TopicInfo

__all__ = ["Known", "check_projection"]

_AHEAD_S = 5.0
"""Clocks that differ by less are said to agree."""
_LATE = 3
"""After so many times the usual time, a snapshot should have been sent."""
_TOPIC_NEEDS = ("READ", "DESCRIBE", "DESCRIBE_CONFIGS")
_GROUP_NEEDS = ("READ", "DESCRIBE", "DELETE")
_OWN_NEEDS = ("READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS", "DELETE")
_LETTER_NEEDS = ("READ", "WRITE", "DESCRIBE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A projection, as far as it is known."""

    called: str
    """What the user calls it."""
    projection: CqrsProjection[Any] | None = None
    """Its code, where it can be had here."""
    why_not: str = ""
    """Why it cannot."""
    topic: str | None = None
    """As configured."""
    record: Record | None = None
    settings: FoldSettings = field(default_factory=FoldSettings)


def check_projection(cluster: Cluster, known: Known, state_dir: Path, kind: Kind = FILES) -> Iterator[Finding]:
    """Look at one projection: its code, topic, groups, and what this machine has of it."""
    name = known.called
    yield from _code(known)
    topic = known.topic or (None if known.record is None else known.record.live.event_topic)
    if topic is None:
        yield warning(f"{name}: topic", "none is named", "Name it: topic in refold.toml, or --topic.")
        return
    yield from tried(f"{name}: topic", lambda: _topic(cluster, known, topic))
    yield from tried(f"{name}: dead letters", lambda: _letters(cluster, known))
    if known.record is None:
        yield warning(
            f"{name}: registry", "it has no generation yet", f"`refold run {name}` or a worker makes the first one."
        )
        return
    yield from _record(name, known.record)
    for one in known.record.generations:
        if one.state:
            yield from tried(f"{one.id}: group", partial(_group, cluster, name, one))
        if one.source is not None and one.topic_id:
            yield from tried(f"{one.id}: repartitioning", partial(_filling, cluster, name, one))
        yield from _store(name, one, state_dir, kind)
        yield from tried(f"{one.id}: repository", partial(_repository, cluster, known, one))


def _repository(cluster: Cluster, known: Known, one: Generation) -> Iterator[Finding]:
    assert known.record is not None
    repository = repository_of(known.settings, known.record.projection, one)
    if repository is None or one.phase == "retiring":
        return
    what, every_s = f"{one.id}: repository", known.settings.snapshot_seconds
    newest = {number: next(iter(repository.kept(number)), None) for number in range(one.partitions)}
    there = {number: kept for number, kept in newest.items() if kept is not None}
    told = f"{repository.url} has snapshots of {len(there)} of {one.partitions} partitions"
    committed = cluster.committed(one.group, cluster.topic(one.topic))
    now = datetime.now(UTC)
    late = [
        number
        for number, at_ in committed.items()
        if at_.position - (there[number].position if number in there else 0) > WORTH
        and (number not in there or (now - there[number].at).total_seconds() > _LATE * every_s)
    ]
    if late and one.is_folded:
        yield warning(
            what,
            f"{told}; of partition {', '.join(map(str, sorted(late)))} there is none that is as new as it should be",
            "Its owner's log says why (`snapshot.not_sent`): it may be just begun, or not be allowed to write there.",
        )
    else:
        yield ok(what, told)


def _code(known: Known) -> Iterator[Finding]:
    what = f"{known.called}: code"
    if known.projection is None:
        yield warning(what, known.why_not or "it is not on this machine", "Run this where the code is, to compare it.")
        return
    record, code = known.record, (known.projection.version, fingerprint(known.projection))
    if record is None or code == (record.live.version, record.live.fingerprint):
        yield ok(what, f"version {code[0]}" + ("" if record is None else f", as {record.active} was folded by"))
    else:
        yield warning(
            what,
            f"version {code[0]} is other code than {record.active} was folded by",
            f"`refold rebuild {known.called}`, or `refold run {known.called} --adopt` where the fold is the same.",
        )


def _topic(cluster: Cluster, known: Known, topic: str) -> Iterator[Finding]:
    what = f"{known.called}: topic"
    info = cluster.topic(topic)
    config, marks = cluster.topic_config(topic), cluster.watermarks(info)
    live = None if known.record is None else known.record.live
    of = None if live is None else live.topic_id if live.source is None else live.source.topic_id
    if live is not None and live.event_topic == topic and of != info.id:
        yield failure(
            what,
            f"{topic} was deleted and made again since {live.id} was folded (id {of}, now {info.id})",
            f"`refold rebuild {known.called}` folds the new one.",
        )
    elif live is not None and live.topic == topic and live.partitions < info.partitions:
        yield failure(
            what,
            f"{topic} has {info.partitions} partitions, and {live.id} folds {live.partitions}",
            f"`refold rebuild {known.called}` takes the new ones in; until then their events are not folded.",
        )
    records = sum(one.high - one.low for one in marks.values())
    yield ok(what, f"{topic}, {info.partitions} partitions, up to {records:,} events")
    gone = {number: one.low for number, one in marks.items() if one.low}
    if gone:
        yield warning(
            f"{known.called}: history",
            f"{sum(gone.values()):,} offsets are gone, of partition {', '.join(map(str, sorted(gone)))}",
            "A rebuild from the beginning is refused, or incomplete with --allow-incomplete. Keep snapshots.",
        )
    elif "compact" in config.get("cleanup.policy", ""):
        yield warning(
            f"{known.called}: history",
            f"{topic} is compacted, which keeps only the last event of each stream",
            "A rebuild is refused unless --allow-incomplete says otherwise. Use cleanup.policy=delete for events.",
        )
    elif int(config.get("retention.ms") or -1) >= 0 or int(config.get("retention.bytes") or -1) >= 0:
        days = int(config.get("retention.ms") or -1) / 86_400_000
        kept = f"{days:g} days" if days >= 0 else f"{int(config['retention.bytes']):,} bytes a partition"
        yield warning(
            f"{known.called}: history",
            f"it is complete, and {topic} keeps events for {kept}",
            f"A projection is rebuilt from them: `kafka-configs.sh --alter --topic {topic} --add-config "
            "retention.ms=-1,retention.bytes=-1`, or keep snapshots.",
        )
    else:
        yield ok(f"{known.called}: history", "it is complete, and kept for ever")
    yield from allowed(f"{known.called}: topic", cluster.topic_operations(topic), _TOPIC_NEEDS, f"topic {topic!r}")


def _letters(cluster: Cluster, known: Known) -> Iterator[Finding]:
    """Look at the topic of dead letters, where there is one: whoever keeps the first makes it."""
    projection = known.called if known.projection is None else known.projection.name
    topic, what = topic_of(projection), f"{known.called}: dead letters"
    if topic in cluster.topics():
        yield ok(what, f"topic {topic!r} is there")
        yield from allowed(what, cluster.topic_operations(topic), _LETTER_NEEDS, f"topic {topic!r}")


def _record(name: str, record: Record) -> Iterator[Finding]:
    live, what = record.live, f"{name}: registry"
    if live.halted:
        yield failure(what, f"{live.id} is halted: {live.halted}", f"`refold describe {name}` says more.")
    if record.waiting is not None and record.waiting.fingerprint != live.fingerprint:
        yield warning(
            what,
            f"code of version {record.waiting.version} waits, of {record.waiting.by}",
            f"`refold rebuild {name}`, or `refold run {name} --adopt`.",
        )
    running = record.running
    if running is None:
        yield ok(what, f"{record.active} is active, of {len(record.generations)} generations")
    else:
        green = record.find(running.generation)
        phase = "paused" if running.is_paused else "gone" if green is None else green.phase
        waits = phase in ("paused", "waiting")
        yield (
            warning(
                what,
                f"{running.generation} is {phase}: {running.why or 'it waits for a person'}",
                f"`refold verify {name}`, `refold switch {name}`; or `refold resume {name}`, `refold cancel {name}`.",
            )
            if waits
            else ok(what, f"{running.generation} is made beside {record.active}: {phase}")
        )


def _group(cluster: Cluster, name: str, one: Generation) -> Iterator[Finding]:
    what = f"{one.id}: group"
    topic = TopicInfo(name=one.topic, id=one.topic_id, partitions=one.partitions)
    described, marks = cluster.describe(one.group), cluster.watermarks(topic)
    committed = cluster.committed(one.group, topic)
    stamps = {number: Stamp.parse(found.metadata) for number, found in committed.items()}
    foreign = sorted(number for number, stamp in stamps.items() if stamp is None)
    if foreign:
        where = ", ".join(at(one.topic, number, committed[number].position) for number in foreign)
        yield failure(
            f"{one.id}: offsets",
            f"somebody's tool set {where}",
            f"`refold reset-offsets {name} --to-earliest` asks for them to be folded again; or set them back.",
        )
    ahead_s = max((stamp.time_ms / 1000 - time.time() for stamp in stamps.values() if stamp is not None), default=0.0)
    if ahead_s > _AHEAD_S:
        yield warning(
            f"{one.id}: clock",
            f"its last commit was {ahead_s:.0f} s in the future, by this machine's clock",
            "Synchronise the clocks (NTP): times left, ages and claims are told by them.",
        )
    halted = {number: stamp.halted for number, stamp in stamps.items() if stamp is not None and stamp.halted}
    for number, why in sorted(halted.items()):
        yield failure(
            f"{one.id}: {at(one.topic, number)}", f"halted: {why}", "Correct the event's reading or the code."
        )
    waiting = sum(stamp.dead_letters for stamp in stamps.values() if stamp is not None)
    if waiting:
        yield warning(
            f"{one.id}: dead letters",
            f"{waiting:,} events wait to be folded",
            f"`refold dead-letters {name} list` names them; `retry` folds them once the cause is mended.",
        )
    lag = sum(max(0, mark.high - (committed[n].position if n in committed else mark.low)) for n, mark in marks.items())
    told = f"{described.state}, {len(described.members)} members, lag {lag:,} records"
    if one.is_folded and not described.members:
        yield warning(what, told, f"Nobody folds it: `refold run {name}` or a worker does.")
    else:
        yield ok(what, told)
    yield from allowed(what, cluster.group_operations(one.group), _GROUP_NEEDS, f"group {one.group!r}")


def _filling(cluster: Cluster, name: str, one: Generation) -> Iterator[Finding]:
    """Look at what fills the topic of the generation's own."""
    what, filling = f"{one.id}: repartitioning", filling_group(one)
    assert filling is not None
    topic, group = filling
    committed, members = cluster.committed(group, topic), cluster.members(group)
    for number, found in sorted(committed.items()):
        stamp, where = Stamp.parse(found.metadata), at(topic.name, number, found.position)
        if stamp is None or stamp.directory != mark_of(one.topic_id):
            yield failure(
                what, f"somebody's tool set group {group!r} to {where}", f"`refold rebuild {name}` makes it anew."
            )
        elif stamp.halted:
            yield failure(what, f"halted: {stamp.halted}", "Correct the event's reading or the code.")
    marks = cluster.watermarks(topic)
    lag = sum(max(0, mark.high - (committed[n].position if n in committed else mark.low)) for n, mark in marks.items())
    told = f"{len(members)} members, lag {lag:,} records of {topic.name}"
    if one.is_folded and not members:
        yield warning(what, told, f"Nobody does it: `refold run {name}` or a worker does.")
    else:
        yield ok(what, told)
    yield from allowed(what, cluster.group_operations(group), _GROUP_NEEDS, f"group {group!r}")
    yield from allowed(what, cluster.topic_operations(one.topic), _OWN_NEEDS, f"topic {one.topic!r}")


def _store(name: str, one: Generation, state_dir: Path, kind: Kind) -> Iterator[Finding]:
    what, place = f"{one.id}: state", place_of(one, state_dir, kind)
    directory = place.store.directory
    try:
        state = view_state(place.store)
    except CqrsError as error:
        yield failure(
            what,
            str(error),
            f"`refold rebuild {name}`; a worker whose copy is damaged folds it again by itself.",
            error,
        )
        return
    if state is None:
        yield ok(what, f"none on this machine ({directory})")
        return
    if one.state and state.build.manifest.directory != one.state:
        yield warning(
            what,
            f"{directory} holds another state (id {state.build.manifest.directory}) than the registry's ({one.state})",
            "It is of another fold of the same name: name another --state-dir, or remove it.",
        )
    if state.has_died:
        yield failure(
            what, f"its rebuild ended without a word, in {directory}", f"`refold rebuild {name} --from checkpoint`."
        )
    else:
        yield ok(what, f"{state.models:,} models, {state.size_bytes:,} bytes in {directory}")
    snapshots = Snapshots(directory).all()
    if snapshots:
        age_h = (time.time() - snapshots[-1].taken_at.timestamp()) / 3600
        yield ok(f"{one.id}: snapshots", f"{len(snapshots)}, the newest {age_h:.1f} hours old")
