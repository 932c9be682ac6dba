"""How a projection's record changes as it is folded and rebuilt: each function gives the record after one step.

They are pure, and each is safe to be taken twice: a step that was taken already changes nothing. So any process may go
on where another one was killed (`Registry.update`). What people ask for is in `wishes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from streams.control.changing import at_phase, green_of, moved, unfolded, with_generation, with_past
from streams.control.record import Generation, Gone, Record, Summary, Waiting
from streams.data.checkpoint import generation_id
from streams.types import RebuildProgress, TopicInfo

__all__ = [
    "caught_up",
    "compared",
    "founded",
    "noted",
    "pinned",
    "repartitioned",
    "retired",
    "switched",
    "synced",
    "tended",
    "waits",
]

_GONE_KEPT = 20


def founded(record: Record | None, projection: str, group: str, directory: str, facts: Mapping[str, Any]) -> Record:
    """Note the first generation of a projection, by what its build says (`facts_of`)."""
    if record is not None:
        return record
    name = generation_id(projection, facts["version"])
    now = datetime.now(UTC)
    first = Generation(
        id=name,
        number=1,
        group=group,
        directory=directory,
        phase="active",
        why="the first one",
        made_at=now,
        changed_at=now,
        **facts,
    )
    return Record(projection=projection, group=group, generations=(first,), active=name, wanted=name, newest=1)


def synced(record: Record, id: str, facts: Mapping[str, Any]) -> Record:  # noqa: A002
    """Note what a generation's build says: the store is the truth, also where it was rebuilt in place or adopted."""
    found = record.find(id)
    if found is None:
        return record
    synced_ = replace(found, **facts)
    if found.state and (found.state, found.epoch) != (synced_.state, synced_.epoch):
        # Which of its partitions were begun anew is not known: other machines are to begin all of them.
        synced_ = replace(synced_, resets=dict.fromkeys(range(synced_.partitions), synced_.epoch))
    waiting = record.waiting
    is_settled = waiting is not None and waiting.fingerprint == synced_.fingerprint and id == record.active
    return replace(with_generation(record, synced_), waiting=None if is_settled else waiting)


def tended(record: Record, fleet: str) -> Record:
    """Note that the workers of a group see to the projection."""
    return record if record.fleet == fleet else replace(record, fleet=fleet)


def waits(record: Record, version: int, fingerprint: str, by: str) -> Record:
    """Note that code was refused which is not the active generation's."""
    known = record.waiting
    if known is not None and (known.version, known.fingerprint) == (version, fingerprint):
        return record
    return replace(record, waiting=Waiting(version=version, fingerprint=fingerprint, since=datetime.now(UTC), by=by))


def pinned(record: Record, rebuild_id: str, facts: Mapping[str, Any], targets: Mapping[int, int]) -> Record:
    """Note that the new generation has been made, and where its replay ends."""
    green = green_of(record, rebuild_id)
    if green is None or green.phase not in ("new", "repartitioning"):
        return record
    return moved(record, replace(green, targets=dict(targets), **facts), "replaying")


def repartitioned(record: Record, rebuild_id: str, topic: TopicInfo, targets: Mapping[int, int]) -> Record:
    """Note that the new generation's own topic has been made, and where its filling ends.

    Args:
        record: The record.
        rebuild_id: The rebuild's.
        topic: The generation's own.
        targets: By partition of the event topic, the end as pinned.
    """
    green = green_of(record, rebuild_id)
    if green is None or green.phase != "new" or green.source is None:
        return record
    source = replace(green.source, targets=dict(targets))
    made = replace(green, topic=topic.name, topic_id=topic.id, partitions=topic.partitions, source=source)
    return moved(record, made, "repartitioning")


def caught_up(record: Record, rebuild_id: str, progress: RebuildProgress) -> Record:
    """Note that the new generation has folded all that it was to, and keeps up.

    Args:
        record: The record.
        rebuild_id: The rebuild's.
        progress: Its figures.
    """
    green = green_of(record, rebuild_id)
    if green is None or green.phase != "replaying":
        return record
    return unfolded(moved(record, green, "verifying"), progress)


def compared(record: Record, rebuild_id: str, report: Summary | None, refused: str = "") -> Record:
    """Note what the comparison found.

    Args:
        record: The record.
        rebuild_id: The rebuild's.
        report: In numbers; None where nothing was compared.
        refused: Why a person is to look at it before the switch; "" where nobody need.
    """
    green = green_of(record, rebuild_id)
    if green is None or green.phase not in ("verifying", "waiting"):
        return record
    record = moved(record, green, "waiting" if refused else "ready")
    assert record.rebuild is not None
    return replace(record, rebuild=replace(record.rebuild, report=report, why=refused))


def noted(record: Record, rebuild_id: str, why: str) -> Record:
    """Note what the rebuild waits for, or what has stopped it."""
    found = record.running
    if found is None or found.id != rebuild_id or found.why == why:
        return record
    return replace(record, rebuild=replace(found, why=why))


def switched(record: Record, rebuild_id: str) -> Record:
    """Make the new generation the active one, and keep the other for a while."""
    green = green_of(record, rebuild_id)
    if green is None or green.phase != "ready":
        return record
    rebuild, now = record.rebuild, datetime.now(UTC)
    assert rebuild is not None
    blue = at_phase(record.live, "kept", f"replaced by {green.id}")
    blue = replace(blue, kept_until=now + timedelta(seconds=rebuild.keep_s))
    record = with_generation(with_generation(record, blue), at_phase(green, "active"))
    ended = replace(rebuild, outcome="completed", ended_at=now, why="")
    return replace(with_past(record, blue), active=green.id, wanted=green.id, rebuild=ended)


def retired(record: Record, id: str) -> Record:  # noqa: A002
    """Note that nothing of a generation is left."""
    found = record.find(id)
    if found is None or found.phase != "retiring":
        return record
    gone = Gone(
        id=id,
        version=found.version,
        directory=found.directory,
        group=found.group,
        why=found.why,
        at=datetime.now(UTC),
    )
    rest = tuple(one for one in record.generations if one.id != id)
    return replace(record, generations=rest, gone=(*record.gone, gone)[-_GONE_KEPT:])
