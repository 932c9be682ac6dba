"""What a rebuild is about to do, and in which world: told before it begins, and looked at again before it does."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from streams.control.record import Record
from streams.control.site import Site
from streams.control.space import free_bytes
from streams.control.status import StateView, view_state
from streams.control.strategies import FromBeginning, RebuildStrategy, SpecificStreams
from streams.errors import NotReady, StorageError, at

__all__ = ["World", "differences", "rate_of", "world_of"]

Manner = Literal["beside", "in-place", "streams", "onward"]
"""beside: new models are made beside those that are live. in-place: they take their place. streams: some models are
folded again, and no other is touched. onward: folding goes on from where models are, or from a snapshot of then.
"""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """One projection and its surroundings, as a rebuild of it finds them."""

    projection: str
    called: str
    """What the user calls it."""
    manner: Manner
    active: str | None
    """The active generation; None where there is none yet."""
    epoch: int = 0
    group: str
    """The active generation's, or the one that the first is to have."""
    members: tuple[str, ...] = ()
    """Who folds in it."""
    topic: str
    topic_id: str
    starts: dict[int, int]
    """By partition, the first offset that there is."""
    ends: dict[int, int]
    """By partition, the last stable offset."""
    committed: dict[int, int]
    """By partition, the position of the models there are."""
    is_compacted: bool
    version: int
    fingerprint: str
    codec: str
    directory: str
    """Where models are kept on this machine."""
    build: int | None = None
    """The number of the build that there is on this machine; None where there is none, or it cannot be read."""
    unreadable: str = ""
    """Why it cannot be read."""
    models: int | None = None
    """Those there are now; None where nobody knows here."""
    models_bytes: int | None = None
    """What they take, on this machine."""
    free_bytes: int | None = None
    events_per_second: float | None = None
    """As the last rebuild was measured; None where none was."""
    typical_events_per_second: float | None = None
    """As its author says (`rebuild_doc`); None where he does not."""

    @property
    def begins_at(self) -> dict[int, int]:
        """By partition, where it is read from; where that is not known before, where the models are."""
        return self.starts if self.manner in ("beside", "in-place") else self.committed

    @property
    def events(self) -> int:
        """Offsets that are read: so many events at most."""
        return sum(max(0, end - self.begins_at.get(number, 0)) for number, end in self.ends.items())

    @property
    def deleted(self) -> int:
        """Offsets at the front of partitions that are no more."""
        return sum(self.starts.values())

    @property
    def seconds(self) -> float | None:
        """How long it takes, at the rate of the last one or as its author says; None where neither is known."""
        rate = self.events_per_second or self.typical_events_per_second
        return self.events / rate if rate else None

    @property
    def needed_bytes(self) -> int | None:
        """What it takes on this machine beside what there is, by the size of the models there are; None: not known."""
        return self.models_bytes if self.manner in ("beside", "in-place") else 0


def world_of(site: Site, called: str, strategy: RebuildStrategy, *, beside: bool) -> World:
    """Look at what a rebuild would find. Nothing is changed.

    Raises:
        TopicNotFound, BrokerError: From Kafka.
        StorageError: The state on this machine cannot be read.
    """
    record = _record(site)
    place = site.active(record)
    cluster = site.events.cluster
    topic = cluster.topic(site.events.topic)
    marks = cluster.watermarks(topic)
    version, fingerprint, codec = site.code
    state, unreadable = None, ""
    try:
        state = view_state(place.store)
    except StorageError as error:
        unreadable = str(error)  # a rebuild is the way out of that
    return World(
        projection=site.name,
        called=called,
        manner=_manner(strategy, beside=beside),
        active=None if record is None else record.active,
        epoch=0 if record is None else record.live.epoch,
        group=place.group,
        members=tuple(sorted(map(str, cluster.members(place.group)))),
        topic=topic.name,
        topic_id=topic.id,
        starts={number: mark.low for number, mark in sorted(marks.items())},
        ends={number: mark.high for number, mark in sorted(marks.items())},
        committed={number: one.position for number, one in sorted(cluster.committed(place.group, topic).items())},
        is_compacted="compact" in cluster.topic_config(topic.name).get("cleanup.policy", ""),
        version=version,
        fingerprint=fingerprint,
        codec=codec,
        directory=str(site.state_dir.absolute()),
        build=None if state is None else state.build.manifest.build,
        unreadable=unreadable,
        models=None if state is None else state.models,
        models_bytes=None if state is None else state.size_bytes,
        free_bytes=free_bytes(site.state_dir),
        events_per_second=rate_of(record, state),
        typical_events_per_second=_typical(site),
    )


def differences(before: World, now: World) -> list[str]:
    """Say what has become another world between a plan and now; events that came since, and figures, are none."""
    found = []
    if now.topic_id != before.topic_id:
        found.append(f"topic {before.topic!r} was deleted and made again (id {before.topic_id}, now {now.topic_id})")
    if set(now.starts) != set(before.starts):
        found.append(f"topic {before.topic!r} had {len(before.starts)} partitions, and has {len(now.starts)}")
    for number in sorted(set(before.starts) & set(now.starts)):
        where = at(before.topic, number)
        if now.starts[number] != before.starts[number]:
            found.append(f"{where} began at {before.starts[number]:,}, and begins at {now.starts[number]:,}")
        if now.ends[number] < before.ends[number]:
            found.append(f"{where} ended at {before.ends[number]:,}, and ends at {now.ends[number]:,}")
    if (now.active, now.epoch) != (before.active, before.epoch):
        found.append(
            f"generation {before.active} (fold {before.epoch}) was active, and {now.active} (fold {now.epoch}) is"
        )
    if now.manner != before.manner:
        found.append(f"it was to be made {before.manner}, and would be {now.manner}")
    if bool(now.members) != bool(before.members):
        who = ", ".join(now.members or before.members)
        found.append(f"group {before.group!r} had {'' if before.members else 'no '}members, and now: {who}")
    if now.manner == "in-place" and now.committed != before.committed:
        found.append(f"group {before.group!r} was at {_positions(before)}, and is at {_positions(now)}")
    if (now.version, now.fingerprint) != (before.version, before.fingerprint):
        found.append("the projection's code has changed")
    if now.codec != before.codec:
        found.append(f"records were to be read by {before.codec}, and would be by {now.codec}")
    return found


def _typical(site: Site) -> float | None:
    seconds = site.projection.rebuild_doc.get("typical_seconds_per_million_events")
    return 1e6 / seconds if seconds else None


def _positions(world: World) -> str:
    return ", ".join(f"{number}@{position:,}" for number, position in world.committed.items()) or "no position"


def _manner(strategy: RebuildStrategy, *, beside: bool) -> Manner:
    if beside:
        return "beside"
    if isinstance(strategy, SpecificStreams):
        return "streams"
    if isinstance(strategy, FromBeginning):
        return "in-place"
    return "onward"


def _record(site: Site) -> Record | None:
    try:
        return site.record()
    except NotReady:
        return None


def rate_of(record: Record | None, state: StateView | None) -> float | None:
    """Give the events a second of the last rebuild that ended, by this machine's state or by the registry."""
    if state is not None and state.rebuild is not None and state.rebuild.events_per_second:
        return state.rebuild.events_per_second
    rebuild = None if record is None else record.rebuild
    if record is None or rebuild is None or rebuild.outcome != "completed":
        return None
    one = record.find(rebuild.generation)
    began: datetime | None = None
    for step in rebuild.steps:
        if step.what in ("repartitioning", "replaying"):
            began = began or step.at
        elif began is not None:
            seconds = (step.at - began).total_seconds()
            ends = {} if one is None else one.targets if one.source is None else one.source.targets
            events = sum(ends.values())
            return events / seconds if seconds > 0 and events else None
    return None
