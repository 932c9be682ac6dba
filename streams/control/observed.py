"""A rebuild's progress, told from outside: by what its group has committed, from any machine that reaches Kafka."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from streams.data.build import RebuildRecord
from streams.data.generation import StateStore
from streams.data.source import KafkaEventStore
from streams.data.stamp import Pinned, Stamp
from streams.errors import at
from streams.types import Lag, RebuildProgress

__all__ = ["progress_of"]

_SILENT_S = 10.0
_CLAIM_S = 10.0


def progress_of(group: str, events: KafkaEventStore, store: StateStore | None = None) -> RebuildProgress | None:
    """Tell how far a group's rebuild is: the one that runs, that ended, or whose process is gone.

    Positions, pinned ends, counts and times are in the group's committed offsets and their stamps. So it is told as of
    the last commits, and by the committers' clocks; rate and time left are averages over what the process did that is
    at it. A rebuild of streams that others fold meanwhile has no offsets of its own, and is not told of.

    Args:
        group: The consumer group.
        events: The topic.
        store: The state on this machine, which knows exactly whether the rebuild's process lives, and how it ended.

    Returns:
        The figures; None where the group's offsets are of no rebuild, or a run has gone on since. `is_running` is
        whether somebody is at it; where nobody is and it has not come to its end, `error` says so and since when.
        `models` is given once it has ended.

    Raises:
        TopicNotFound, BrokerUnavailable, BrokerError: From Kafka.
    """
    cluster = events.cluster
    topic = cluster.topic(events.topic)
    stamps = {}
    for partition, committed in cluster.committed(group, topic).items():
        stamp = Stamp.parse(committed.metadata)
        if stamp is None or stamp.pinned is None:
            return None
        stamps[partition] = (committed.position, stamp, stamp.pinned)
    if not stamps or len({(stamp.directory, stamp.build) for _, stamp, _ in stamps.values()}) > 1:
        return None
    progress = _figures(stamps)
    if not progress.remaining_offsets:
        return replace(
            progress,
            total_events=progress.events_processed,
            models=sum(stamp.models for _, stamp, _ in stamps.values()),
            estimated_completion=None,
        )
    heard_ms = max(stamp.time_ms for _, stamp, _ in stamps.values())
    silent_s = max(0.0, time.time() - heard_ms / 1000)
    record, holds = _local(store, next(iter(stamps.values()))[1])
    lives = bool(cluster.members(group)) if holds is None else holds
    if not lives and holds is None and silent_s < _CLAIM_S and all(stamp.claimed for _, stamp, _ in stamps.values()):
        return replace(progress, is_running=True, waiting_for="its process to join the group")
    if lives:
        return replace(progress, is_running=True, waiting_for=_waits(topic.name, stamps, silent_s))
    return replace(progress, estimated_completion=None, error=_why(record, heard_ms))


def _figures(stamps: Mapping[int, tuple[int, Stamp, Pinned]]) -> RebuildProgress:
    began_ms = max(pinned.since_ms for _, _, pinned in stamps.values())
    heard_ms = max(stamp.time_ms for _, stamp, _ in stamps.values())
    seconds = max(0.0, (heard_ms - began_ms) / 1000)
    partitions = {
        number: Lag(start=pinned.start, position=min(position, pinned.target), target=pinned.target)
        for number, (position, _, pinned) in sorted(stamps.items())
    }
    events = sum(stamp.events - pinned.events for _, stamp, pinned in stamps.values())
    declined = sum(stamp.declined - pinned.declined for _, stamp, pinned in stamps.values())
    # Those that were left out before are told in no offset; where it has begun at the beginning, there were none.
    left_out = sum(stamp.dead_letters + stamp.skipped for _, stamp, pinned in stamps.values() if not pinned.events)
    progress = RebuildProgress(
        started_at=datetime.fromtimestamp(began_ms / 1000, UTC),
        partitions=partitions,
        events_processed=events,
        events_declined=declined,
        dead_letters=sum(stamp.dead_letters for _, stamp, _ in stamps.values()),
        events_skipped=sum(stamp.skipped for _, stamp, _ in stamps.values()),
        models_updated=events - declined - left_out,
        elapsed_seconds=seconds,
    )
    if not seconds:
        return progress
    folded = sum(stamp.events - pinned.since_events for _, stamp, pinned in stamps.values())
    passed = sum(position - pinned.since_position for position, _, pinned in stamps.values())
    left_s = progress.remaining_offsets * seconds / passed if passed > 0 else None
    return replace(
        progress,
        events_per_second=folded / seconds,
        estimated_completion=None
        if left_s is None
        else datetime.fromtimestamp(heard_ms / 1000, UTC) + timedelta(seconds=left_s),
    )


def _local(store: StateStore | None, stamp: Stamp) -> tuple[RebuildRecord | None, bool | None]:
    """Give the rebuild's record, and whether a process is at it; None where this machine does not have its state."""
    build = None if store is None else store.current()
    if store is None or build is None:
        return None, None
    if (build.manifest.directory, build.manifest.build) != (stamp.directory, stamp.build):
        return None, None
    return build.rebuild(), store.rebuilder() is not None


def _waits(topic: str, stamps: Mapping[int, tuple[int, Stamp, Pinned]], silent_s: float) -> str:
    halted = [
        f"{at(topic, number)}: {stamp.halted}" for number, (_, stamp, _) in sorted(stamps.items()) if stamp.halted
    ]
    if halted:
        return f"the other partitions; it has halted at {'; '.join(halted)}"
    return f"a checkpoint; the last one was {silent_s:.0f} s ago" if silent_s > _SILENT_S else ""


def _why(record: RebuildRecord | None, heard_ms: int) -> str:
    if record is not None and record.error is not None:
        return record.error
    since = datetime.fromtimestamp(heard_ms / 1000, UTC).astimezone().isoformat(sep=" ", timespec="seconds")
    return f"It ended without a word, after its last checkpoint at {since}; `--from checkpoint` goes on with it."
