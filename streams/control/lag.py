"""How far any consumer group is behind, as an administrator asks: records, seconds, retention's margin, and a rate.

Whose group it is does not matter. The figures are those of Kafka's own tool: a position is a committed offset, and an
end is the high watermark.
"""

from __future__ import annotations

import difflib
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from streams.cluster import Cluster
from streams.data.peek import written_ms
from streams.data.stamp import Stamp
from streams.errors import BrokerError, GroupNotFound
from streams.types import Committed, GroupDescription, Member, TopicInfo

__all__ = ["GroupLag", "PartitionLag", "Rates", "Subject", "group_lag"]

_WINDOW_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A group that is to be looked at."""

    group: str
    topics: Mapping[str, int] | None = None
    """Topics, each with its number of partitions, all of which the group reads; None: those that it has committed
    offsets of, or has given to a member."""
    projection: str | None = None
    generation: str | None = None
    phase: str | None = None
    """What the registry says that the generation is at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """One partition, as a group reads it."""

    topic: str
    partition: int
    start: int
    """The first offset that the topic still has."""
    end: int
    """The high watermark: the next offset that will be written."""
    stable_end: int
    """The last stable offset: where those have to stop who read committed transactions only."""
    position: int | None
    """The committed offset, which is the next one to read; None where there is none."""
    metadata: str = ""
    """What was committed with it."""
    written_ms: int | None = None
    """Kafka's timestamp of the first record that was not read, in milliseconds since 1970; None where there is none, or
    it is not known."""
    retention_ms: int | None = None
    """The topic's retention.ms; None where nothing is deleted by age."""
    member: Member | None = None
    """Whom the group has given it to."""

    @property
    def lag_records(self) -> int | None:
        """Offsets between position and end; None without a position."""
        return None if self.position is None else max(0, self.end - self.position)

    @property
    def unread_records(self) -> int:
        """Those that there still are in front of the position; without one, all that there are."""
        return self.end - max(self.start, self.position or 0)

    @property
    def lost_records(self) -> int:
        """Offsets that were deleted before they were read."""
        return 0 if self.position is None else max(0, self.start - self.position)

    @property
    def held_back_records(self) -> int:
        """Offsets that an open transaction keeps from those who read committed ones only."""
        return self.end - self.stable_end

    def behind_s(self, now_s: float | None = None) -> float | None:
        """Give how long the first record that was not read has been waiting; 0.0 where all was read, None: unknown."""
        if not self.unread_records:
            return 0.0
        if self.written_ms is None:
            return None
        return max(0.0, (time.time() if now_s is None else now_s) - self.written_ms / 1000)

    def retention_left_s(self, now_s: float | None = None) -> float | None:
        """Give how long the first record that was not read is kept for certain; negative where it may be deleted now.

        None where all was read, nothing is deleted by age, or it is not known.
        """
        if self.retention_ms is None or self.written_ms is None:
            return None
        now_s = time.time() if now_s is None else now_s
        return (self.written_ms + self.retention_ms) / 1000 - now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLag:
    """A whole group at one instant."""

    subject: Subject
    description: GroupDescription
    partitions: tuple[PartitionLag, ...]
    """By topic and number."""
    at_s: float
    """When, in seconds since 1970."""

    @property
    def lag_records(self) -> int:
        """Offsets that the group has not read; where it has no position, all that there are."""
        return sum(one.end - one.start if one.lag_records is None else one.lag_records for one in self.partitions)

    def behind_s(self) -> float | None:
        """Give how long the oldest record that was not read has been waiting; None where a partition's is not known."""
        behind = [one.behind_s(self.at_s) for one in self.partitions]
        known = [seconds for seconds in behind if seconds is not None]
        return max(known, default=0.0) if len(known) == len(behind) else None

    @property
    def generation(self) -> str | None:
        """The generation of refold that the group is of; None for a group that is none of ours."""
        if self.subject.generation is not None:
            return self.subject.generation
        stamps = (Stamp.parse(one.metadata) for one in self.partitions)
        return next((stamp.generation for stamp in stamps if stamp is not None), None)


@dataclass(slots=True)
class Rates:
    """How fast a group reads, and its topics grow, over the last half minute of looks."""

    _seen: deque[tuple[float, dict[tuple[str, int], tuple[int, int]]]] = field(default_factory=deque)

    def note(self, look: GroupLag) -> None:
        """Take in another look."""
        figures = {
            (one.topic, one.partition): (one.start if one.position is None else one.position, one.end)
            for one in look.partitions
        }
        self._seen.append((look.at_s, figures))
        while len(self._seen) > 2 and self._seen[-1][0] - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()

    def read(self) -> float | None:
        """Give records read a second; None before there are two looks."""
        return self._rate(0)

    def written(self) -> float | None:
        """Give records written a second; likewise."""
        return self._rate(1)

    def eta_s(self, look: GroupLag) -> float | None:
        """Give the seconds until nothing is left, at these rates; 0.0 where nothing is, None where it never comes."""
        if not look.lag_records:
            return 0.0
        read, written = self.read(), self.written()
        if read is None or written is None or read <= written:
            return None
        return look.lag_records / (read - written)

    def _rate(self, which: int) -> float | None:
        if len(self._seen) < 2:
            return None
        (then_s, then), (now_s, now) = self._seen[0], self._seen[-1]
        moved = sum(figures[which] - then[where][which] for where, figures in now.items() if where in then)
        return max(0.0, moved / (now_s - then_s)) if now_s > then_s else None


def group_lag(cluster: Cluster, subject: Subject) -> GroupLag:
    """Look at a group; the first record of each partition that was not read is read for its timestamp.

    Args:
        cluster: Where it is.
        subject: Which.

    Raises:
        GroupNotFound: It does not exist, or has read nothing; near names are told.
        BrokerError: From Kafka.
    """
    description = cluster.describe(subject.group)
    assigned = {where: member for member in description.members for where in member.assigned}
    counts = cluster.topics() if subject.topics is None else dict(subject.topics)
    committed = cluster.committed_of(subject.group, {name: n for name, n in counts.items() if n})
    wanted = _wanted(subject, counts, committed, assigned)
    if not wanted:
        raise _no_group(cluster, description)
    views = []
    for topic in sorted({topic for topic, _ in wanted}):
        info = TopicInfo(name=topic, id="", partitions=counts[topic])
        marks, ends, retention_ms = cluster.watermarks(info), cluster.ends(info), _retention_ms(cluster, topic)
        for number in sorted(partition for name, partition in wanted if name == topic):
            one = committed.get(topic, {}).get(number)
            views.append(
                PartitionLag(
                    topic=topic,
                    partition=number,
                    start=marks[number].low,
                    end=max(ends[number], marks[number].high),
                    stable_end=marks[number].high,
                    position=None if one is None else one.position,
                    metadata="" if one is None else one.metadata,
                    retention_ms=retention_ms,
                    member=assigned.get((topic, number)),
                )
            )
    look = GroupLag(subject=subject, description=description, partitions=tuple(views), at_s=time.time())
    return _with_times(cluster, look)


def _wanted(
    subject: Subject,
    counts: Mapping[str, int],
    committed: Mapping[str, Mapping[int, Committed]],
    assigned: Mapping[tuple[str, int], Member],
) -> set[tuple[str, int]]:
    if subject.topics is not None:
        return {(topic, number) for topic, count in counts.items() for number in range(count)}
    read = {(topic, number) for topic, parts in committed.items() for number in parts}
    return read | {where for where in assigned if where[0] in counts}


def _no_group(cluster: Cluster, description: GroupDescription) -> GroupNotFound:
    group, where = description.group, cluster.settings.bootstrap_servers
    if description.state != "Dead":
        return GroupNotFound(
            f"Group {group!r} at {where} has committed nothing, and no member of it reads anything, of the topics that "
            "refold may see. One that it may not see (Describe on the topic) is named with --topic."
        )
    near = difflib.get_close_matches(group, cluster.groups(), 3, 0.5)
    hint = f" Near names: {', '.join(near)}." if near else ""
    return GroupNotFound(f"There is no consumer group {group!r} at {where}.{hint} `refold list` names refold's.")


def _retention_ms(cluster: Cluster, topic: str) -> int | None:
    """Give for how long records are kept; None where it is for ever, or must not be asked."""
    try:
        config = cluster.topic_config(topic)
    except BrokerError:
        return None  # only the margin is not known then
    kept = int(config.get("retention.ms") or -1)
    return kept if kept >= 0 and "delete" in config.get("cleanup.policy", "delete") else None


def _with_times(cluster: Cluster, look: GroupLag) -> GroupLag:
    wanted = {
        (one.topic, one.partition): max(one.position or 0, one.start) for one in look.partitions if one.unread_records
    }
    found = written_ms(cluster.settings, wanted)
    views = tuple(replace(one, written_ms=found.get((one.topic, one.partition))) for one in look.partitions)
    return replace(look, partitions=views, at_s=time.time())
