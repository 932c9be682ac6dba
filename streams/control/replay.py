"""The replay of a generation that several machines fold, as its group's committed offsets tell it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from streams.cluster import Cluster
from streams.control.caught_up import halted_partitions, is_close
from streams.control.progress import ProgressTracker
from streams.control.record import Generation
from streams.data.partition import PartitionStatus, Phase
from streams.data.stamp import Stamp
from streams.errors import BrokerError, OffsetsPending
from streams.types import Committed, Lag, Member, RebuildProgress, TopicInfo, Watermarks

__all__ = ["Replay", "figures_of"]

_ASK_S = 0.2


class Replay:
    """Looks at a generation until it has caught up; see `CaughtUp`. Any machine may, and needs no state for it.

    Args:
        cluster: Kafka.
        generation: It, with its pinned ends.
    """

    def __init__(self, cluster: Cluster, generation: Generation) -> None:
        self._cluster = cluster
        self._generation = generation
        self._topic = TopicInfo(name=generation.topic, id=generation.topic_id, partitions=generation.partitions)
        self._asked_s = -_ASK_S
        self._marks: Mapping[int, Watermarks] = {}
        self._members: list[Member] = []
        self._figures: dict[int, PartitionStatus] = {}
        committed = cluster.committed(generation.group, self._topic)
        stamps = {number: Stamp.parse(one.metadata) for number, one in committed.items()}
        starts = {
            number: stamp.pinned.start
            for number, stamp in stamps.items()
            if stamp is not None and stamp.pinned is not None
        }
        self._take(committed)
        # What is folded again elsewhere was told before, by whoever led then: progress does not go back.
        reached = {
            number: stamp.reached(committed[number].position)
            for number, stamp in stamps.items()
            if stamp is not None and is_of(stamp, generation)
        }
        pinned = {
            number: Lag(
                start=starts.get(number, 0),
                position=max(starts.get(number, 0), self._shown(number, reached.get(number, (0, 0))[0], target)),
                target=target,
            )
            for number, target in generation.targets.items()
        }
        self._tracker = ProgressTracker(pinned, resumed=sum(events for _, events in reached.values()))

    def _shown(self, number: int, reached: int, target: int) -> int:
        """Give where a partition is shown to be that was told to have come so far: at its end once it is there."""
        return min(reached, target if self._figures[number].committed >= target else target - 1)

    @property
    def progress(self) -> RebuildProgress:
        """The figures as of the last look."""
        return self._tracker.snapshot

    def look(self) -> None:
        """Ask Kafka how far it is, at most five times a second. While no broker answers, nothing is known anew.

        Raises:
            OffsetsPending: A transaction that has not ended may move it.
        """
        if time.monotonic() - self._asked_s < _ASK_S:
            return
        self._asked_s = time.monotonic()
        try:
            self._take(self._cluster.committed(self._generation.group, self._topic))
            self._members = self._cluster.members(self._generation.group)
            self._marks = self._cluster.watermarks(self._topic)
        except OffsetsPending:
            self._marks = {}
            raise
        except BrokerError as error:
            self._marks = {}
            self._tracker.observe(self._figures, f"a broker to answer: {error}")
            return
        self._tracker.observe(self._figures, self._waiting_for())

    def is_caught_up(self) -> bool:
        """Say whether it had caught up when it was looked at last."""
        if not self._marks:
            return False
        targets = self._tracker.snapshot.partitions
        if any(self._figures[number].committed < lag.target for number, lag in targets.items()):
            return False
        return is_close(self._figures, self._marks)

    def halted(self) -> str:
        """Say what has halted partitions, once the others are at their pinned ends; "" before."""
        return halted_partitions(self._topic.name, self._figures, self._tracker.snapshot.partitions)

    def _take(self, committed: Mapping[int, Committed]) -> None:
        found = figures_of(committed, self._generation)
        for number in self._generation.targets:
            if number in found:
                self._figures[number] = found[number]
            else:
                self._figures.setdefault(number, PartitionStatus(position=0, committed=0, phase=Phase.OPENING))

    def _waiting_for(self) -> str:
        held = {number for member in self._members for number in member.partitions}
        missing = [
            number
            for number, lag in self._tracker.snapshot.partitions.items()
            if number not in held and self._figures[number].committed < lag.target
        ]
        if not missing:
            return ""
        return f"a worker with its code to fold partitions {', '.join(map(str, missing))}"


def is_of(stamp: Stamp, generation: Generation) -> bool:
    """Say whether a stamp is of a generation's present epoch."""
    return (stamp.directory, stamp.build) == (generation.state, generation.epoch)


def figures_of(committed: Mapping[int, Committed], generation: Generation) -> dict[int, PartitionStatus]:
    """Give how far each partition of a generation is, by what its group was told of its present epoch."""
    figures = {}
    for number, one in committed.items():
        stamp = Stamp.parse(one.metadata)
        if stamp is None or not is_of(stamp, generation):
            continue
        figures[number] = PartitionStatus(
            position=one.position,
            committed=one.position,
            events=stamp.events,
            declined=stamp.declined,
            models=stamp.models,
            dead_letters=stamp.dead_letters,
            skipped=stamp.skipped,
            record_ms=stamp.record_ms,
            phase=Phase.OPENING if stamp.claimed else Phase.READY if stamp.halted is None else Phase.HALTED,
            why=stamp.halted or "",
        )
    return figures
