"""Setting a consumer group's offsets, as Kafka's own tool does, but with no clamping and no silence (KIP-122).

What it means for a projection is said, and what its models cannot honour is refused: they are of one position, and a
fold goes on from there or begins again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from streams.cluster import Cluster
from streams.control.record import Record
from streams.data.history import check_complete
from streams.data.stamp import Stamp
from streams.errors import BrokerError, ConfigError, PartialFailure, RebuildRunning, at
from streams.types import Committed, TopicInfo

__all__ = ["NewOffset", "Target", "as_csv", "judged", "planned", "read_csv", "set_offsets"]

Where = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to; exactly one of these."""

    earliest: bool = False
    latest: bool = False
    current: bool = False
    offset: int | None = None
    time_ms: int | None = None
    """The first record of this time or a later one, in milliseconds since 1970; the end where there is none."""
    shift: int | None = None
    listed: Mapping[Where, int] | None = None
    """Each partition's own, as read from a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOffset:
    """One partition's offset, as it is and as it is to be."""

    group: str
    topic: str
    partition: int
    now: int | None
    """The committed offset; None where there is none."""
    to: int
    start: int
    """The first offset that the topic has."""
    end: int
    """Its high watermark."""
    means: str = ""
    """What that means for the projection's models; "" for a group that is none of refold's."""
    is_kept: bool = False
    """The offset is what it is to be already, with our stamp, and is not written again."""

    @property
    def where(self) -> Where:
        """Topic and partition."""
        return self.topic, self.partition


def planned(cluster: Cluster, group: str, scope: Mapping[str, Sequence[int] | None], target: Target) -> list[NewOffset]:
    """Say which offsets a group would be given.

    Args:
        cluster: Where it is.
        group: The group. One that does not exist is made by its first offset.
        scope: Topics, each with some of its partitions or None for all; empty: all that the group has offsets of.
        target: Where to.

    Raises:
        TopicNotFound: A topic does not exist.
        ConfigError: There is nothing to set, or an offset is outside of its partition.
        BrokerError: From Kafka.
    """
    counts = cluster.topics()
    scope = scope or {topic: sorted(parts) for topic, parts in cluster.committed_of(group, counts).items()}
    if target.listed is not None:
        scope = {topic: sorted(n for name, n in target.listed if name == topic) for topic, _ in target.listed}
    if not scope:
        raise ConfigError(
            f"Group {group!r} has committed nothing, so there are no offsets to set. Name topics: --topic NAME."
        )
    found: list[NewOffset] = []
    wrong: list[str] = []
    for topic, parts in sorted(scope.items()):
        info = cluster.topic(topic)
        absent = [number for number in parts or () if number >= info.partitions]
        if absent:
            wrong += [f"{at(topic, number)}: there are {info.partitions} partitions" for number in absent]
            continue
        committed = cluster.committed(group, info)
        starts = {number: marks.low for number, marks in cluster.watermarks(info).items()}
        ends = cluster.ends(info)
        timed = {} if target.time_ms is None else cluster.positions_at(info, target.time_ms, stable=False)
        for number in range(info.partitions) if parts is None else parts:
            now = committed[number].position if number in committed else None
            try:
                to = _to(target, (topic, number), now, starts[number], ends[number], timed)
            except ConfigError as error:
                wrong.append(str(error))
                continue
            found.append(
                NewOffset(
                    group=group,
                    topic=topic,
                    partition=number,
                    now=now,
                    to=to,
                    start=starts[number],
                    end=ends[number],
                )
            )
    if wrong:
        raise ConfigError(
            "\n  ".join([f"These offsets of group {group!r} cannot be set, and nothing was changed:", *wrong])
        )
    return found


def _to(target: Target, where: Where, now: int | None, start: int, end: int, timed: Mapping[int, int]) -> int:
    if target.earliest:
        return start
    if target.latest:
        return end
    if target.current:
        return end if now is None else now
    if target.time_ms is not None:
        return timed[where[1]]
    if target.shift is not None:
        if now is None:
            raise ConfigError(f"{at(*where)}: the group has no offset there that could be shifted")
        wanted = now + target.shift
    elif target.listed is not None:
        wanted = target.listed[where]
    else:
        assert target.offset is not None, "one of them is given"
        wanted = target.offset
    if not start <= wanted <= end:
        raise ConfigError(f"{at(*where, wanted)} is none that there is: it has {start:,} to {end:,}")
    return wanted


def judged(cluster: Cluster, record: Record | None, offsets: Sequence[NewOffset]) -> list[NewOffset]:
    """Say what each offset means for a projection's models.

    Args:
        cluster: Where the group is.
        record: What the registry says of the projection; None where the group is of none that it knows.
        offsets: Those that are to be set, all of one group.

    Raises:
        ConfigError: The models cannot honour one.
        RebuildRunning: A rebuild of the generation runs.
        HistoryIncomplete: A partition is to be folded again, and its first events are gone.
        BrokerError: From Kafka.
    """
    group = offsets[0].group
    stamps: dict[Where, Stamp] = {}
    for topic in {one.topic for one in offsets}:
        info = cluster.topic(topic)
        for number, committed in cluster.committed(group, info).items():
            stamp = Stamp.parse(committed.metadata)
            if stamp is not None:
                stamps[topic, number] = stamp
    one = None if record is None else next((one for one in record.generations if one.group == group), None)
    if one is None and not stamps:
        return list(offsets)
    id_ = one.id if one is not None else next(iter(stamps.values())).generation
    if record is not None and record.running is not None and record.running.generation == id_:
        raise RebuildRunning(
            f"{id_} is being rebuilt, and its offsets say how far. Let that end, or cancel it (`refold cancel "
            f"{record.projection}`). Nothing was changed.",
            projection=record.projection,
        )
    name = record.projection if record is not None else id_.rpartition(".v")[0]
    wrong: list[str] = []
    found: list[NewOffset] = []
    for new in offsets:
        if one is not None and new.topic != one.topic:
            wrong.append(f"{at(*new.where)}: {id_} is folded from topic {one.topic!r}")
        elif new.where in stamps and new.to == new.now:
            found.append(replace(new, means="as it is", is_kept=True))
        elif new.to == new.start:
            found.append(replace(new, means="folded again from the beginning, in place"))
        else:
            is_of = "unknown" if new.where not in stamps else f"{new.now:,}"
            wrong.append(f"{at(*new.where, new.to)}: the models there are of position {is_of}")
    if wrong:
        example = ",".join(f"{new.partition}={new.to}" for new in offsets[:4])
        raise ConfigError(
            "\n  ".join(
                [
                    f"Group {group!r} is of {id_}, whose models no offset can set to another position; nothing was "
                    "changed:",
                    *wrong,
                    f"`refold rebuild {name} --from offset:{example}` goes back to there, from the newest snapshot "
                    "before it. --to-earliest has partitions folded again from their beginning.",
                ]
            )
        )
    _check_history(cluster, name, [new for new in found if not new.is_kept])
    return found


def _check_history(cluster: Cluster, name: str, again: Sequence[NewOffset]) -> None:
    for topic in {new.topic for new in again}:
        info = cluster.topic(topic)
        marks = cluster.watermarks(info)
        wanted = {new.partition: marks[new.partition] for new in again if new.topic == topic}
        check_complete(cluster, info, wanted, projection=name, doing="Folding them again", allow_incomplete=False)


def set_offsets(cluster: Cluster, offsets: Iterable[NewOffset]) -> None:
    """Set offsets of groups that nobody is in, and look whether they were.

    Raises:
        GroupActive: Somebody is in one; the message says who. Nothing of that group was changed.
        AccessDenied: It is not allowed, and nothing was changed.
        PartialFailure: Some were set and others not; both are named.
        BrokerError: From Kafka.
    """
    by_topic: dict[tuple[str, str], list[NewOffset]] = {}
    for one in offsets:
        if not one.is_kept:
            by_topic.setdefault((one.group, one.topic), []).append(one)
    for group in dict.fromkeys(group for group, _ in by_topic):
        cluster.check_empty(group)
    failed: list[str] = []
    done = 0
    first: BrokerError | None = None
    for (group, topic), ones in by_topic.items():
        why: BrokerError | None = None
        try:
            cluster.commit(group, topic, {one.partition: Committed(position=one.to) for one in ones})
        except BrokerError as error:
            why = error
            first = first or error
        # What a broker says of all of them is not what has become of each.
        now = cluster.committed(group, TopicInfo(name=topic, id="", partitions=max(one.partition for one in ones) + 1))
        for one in ones:
            if one.partition in now and now[one.partition].position == one.to and not now[one.partition].metadata:
                done += 1
            else:
                failed.append(f"{group} {at(topic, one.partition, one.to)}: {why or 'it was set to something else'}")
    if failed and not done and first is not None:
        raise first
    if failed:
        raise PartialFailure("\n  ".join([f"{done} offsets were set, and {len(failed)} were not:", *failed]))


def as_csv(offsets: Sequence[NewOffset]) -> str:
    """Write offsets as Kafka's tool reads them: topic,partition,offset, after the group where there are several."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    several = len({one.group for one in offsets}) > 1
    for one in offsets:
        writer.writerow([*([one.group] if several else []), one.topic, one.partition, one.to])
    return text.getvalue()


def read_csv(text: str, groups: Sequence[str], source: str) -> dict[str, dict[Where, int]]:
    """Read what `as_csv` and Kafka's tool write; by group, each partition's offset.

    Args:
        text: The lines.
        groups: Those that are to be set. Rows without a group are the only one's.
        source: Where the lines are from, for messages.

    Raises:
        ConfigError: A line cannot be read, is there twice, or is of another group; all such lines are named.
    """
    found: dict[str, dict[Where, int]] = {group: {} for group in groups}
    wrong: list[str] = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if not row:
            continue
        group = row[0] if len(row) == 4 else groups[0]
        try:
            if len(row) not in (3, 4) or (len(row) == 3 and len(groups) > 1):
                raise ValueError(f"{len(row)} columns")
            topic, partition, offset = row[-3], int(row[-2]), int(row[-1])
            if partition < 0 or offset < 0:
                raise ValueError("a negative number")
            if group not in found:
                raise ValueError(f"group {group!r} was not named")
            if (topic, partition) in found[group]:
                raise ValueError(f"{at(topic, partition)} a second time")
        except ValueError as error:
            wrong.append(f"line {number}: {','.join(row)}: {error}")
            continue
        found[group][topic, partition] = offset
    if wrong or not any(found.values()):
        shape = "group,topic,partition,offset" if len(groups) > 1 else "topic,partition,offset"
        lines = wrong or ["it has no line"]
        raise ConfigError("\n  ".join([f"{source} cannot be read as lines of {shape}:", *lines]))
    return found
