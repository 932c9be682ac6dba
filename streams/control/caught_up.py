"""Whether a generation has folded all that it was to, and is as close to the topic's end as a live one."""

from __future__ import annotations

import time
from collections.abc import Mapping

from streams.control.members import Members
from streams.control.progress import ProgressTracker
from streams.data.agent import AgentStatus, Job
from streams.data.build import Build
from streams.data.partition import PartitionStatus
from streams.data.reader import ModelReader
from streams.errors import BrokerError, at
from streams.types import Lag, RebuildProgress, Watermarks

__all__ = ["CaughtUp", "halted_partitions", "is_close"]

_ASK_S = 0.2
CLOSE_RECORDS = 1000
CLOSE_S = 1.0


class CaughtUp:
    """Looks at a generation that is folded for good, until it is live.

    It has caught up when each partition has committed its pinned end, and is by then at most 1,000 records, or one
    second, behind the topic's end.

    Args:
        job: What is folded.
        build: Its build.
        targets: By partition, the end as pinned when its replay began.
    """

    def __init__(self, job: Job, build: Build, targets: Mapping[int, int]) -> None:
        self._job = job
        self._build = build
        with ModelReader(build, None) as reader:
            states = reader.states()
        record = build.rebuild()
        starts = {} if record is None else record.starts
        figures = {
            number: PartitionStatus.of(states.get(number) or build.fresh(number, starts.get(number, 0)))
            for number in targets
        }
        pinned = {
            number: Lag(start=starts.get(number, 0), position=figures[number].position, target=target)
            for number, target in targets.items()
        }
        self._members = Members(job, pinned, figures)
        self._tracker = ProgressTracker(pinned, resumed=sum(one.events for one in figures.values()))
        self._figures: Mapping[int, PartitionStatus] = figures
        self._asked_s = 0.0

    def observe(self, status: AgentStatus) -> RebuildProgress:
        """Take in newer figures of this process's agents, and give the progress of the replay.

        Raises:
            RebuildError: Somebody folds the group into another directory.
        """
        self._figures = self._members.figures(status)
        self._tracker.observe(self._figures, self._members.waiting_for(status), status.work.commits)
        return self._tracker.snapshot

    def is_caught_up(self) -> bool:
        """Say whether it has caught up; while no broker answers, it has not."""
        targets = self._tracker.snapshot.partitions
        if any(self._figures[number].committed < lag.target for number, lag in targets.items()):
            return False
        if time.monotonic() - self._asked_s < _ASK_S:
            return False
        self._asked_s = time.monotonic()
        try:
            marks = self._job.events.cluster.watermarks(self._job.topic)
        except BrokerError:
            return False
        return is_close(self._figures, marks)

    def halted(self) -> str:
        """Say which partitions are folded no further, and why, once the others are at their pinned ends; "" before."""
        return halted_partitions(self._job.topic.name, self._figures, self._tracker.snapshot.partitions)

    def ended(self, status: AgentStatus) -> RebuildProgress:
        """Close the books of the replay."""
        figures = self._members.figures(status)
        with ModelReader(self._build, None) as reader:
            return self._tracker.ended(figures, states=reader.states())


def is_close(figures: Mapping[int, PartitionStatus], marks: Mapping[int, Watermarks]) -> bool:
    """Say whether partitions are as close to the topic's end as those of a live generation are."""
    behind = {number: marks[number].high - one.position for number, one in figures.items()}
    if sum(behind.values()) <= CLOSE_RECORDS:
        return True
    now_ms = time.time_ns() // 1_000_000
    return all((now_ms - (figures[number].record_ms or 0)) / 1000 <= CLOSE_S for number, lag in behind.items() if lag)


def halted_partitions(topic: str, figures: Mapping[int, PartitionStatus], targets: Mapping[int, Lag]) -> str:
    """Say which partitions are folded no further, and why, once the others are at their pinned ends; "" before."""
    halted = {number: one for number, one in figures.items() if one.is_halted}
    if any(one.committed < targets[number].target for number, one in figures.items() if number not in halted):
        return ""
    return "; ".join(f"{at(topic, number)}: {one.why}" for number, one in sorted(halted.items()))
