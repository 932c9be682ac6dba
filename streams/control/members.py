"""The figures of a whole group while it rebuilds: our agent's, and what others have committed."""

from __future__ import annotations

import time
from collections.abc import Mapping

from streams.data.agent import AgentStatus, Job
from streams.data.partition import PartitionStatus, Phase
from streams.data.stamp import Stamp
from streams.errors import BrokerError, RebuildError, at
from streams.log import get_logger
from streams.types import Lag

__all__ = ["Members"]

log = get_logger(__name__)

_LOOK_S = 0.5


class Members:
    """Our agent's partitions, and those that other members of its group hold.

    Args:
        job: What is rebuilt.
        pinned: Where each partition begins and ends.
        figures: Where each is at first.
    """

    def __init__(self, job: Job, pinned: Mapping[int, Lag], figures: Mapping[int, PartitionStatus]) -> None:
        self._job = job
        self._pinned = pinned
        self._looked = -_LOOK_S
        self._known = dict(figures)

    def figures(self, status: AgentStatus) -> dict[int, PartitionStatus]:
        """Give every partition's figures; those of other members are asked of Kafka, now and then.

        Raises:
            RebuildError: Another member folds into another state directory, or another build.
        """
        for partition, one in status.partitions.items():
            if partition in self._known and one.position >= 0:
                self._known[partition] = one
        missing = self._known.keys() - status.partitions.keys()
        if missing and time.monotonic() - self._looked >= _LOOK_S:
            self._ask(missing)
            self._looked = time.monotonic()
        return dict(self._known)

    def waiting_for(self, status: AgentStatus) -> str:
        """Say what keeps the group from going on; "" where nothing does."""
        if status.away_s:
            return f"a broker to answer (none has for {status.away_s:.0f} s)"
        stalled = [
            f"{at(self._job.topic.name, partition)}: {one.why}"
            for partition, one in sorted(status.partitions.items())
            if one.phase is Phase.STALLED
        ]
        if stalled:
            return "; ".join(stalled)
        here = [
            partition
            for partition, one in status.partitions.items()
            if not one.is_halted and partition in self._pinned and one.committed < self._pinned[partition].target
        ]
        elsewhere = sorted(
            partition
            for partition, one in self._known.items()
            if partition not in status.partitions
            and not one.is_halted
            and one.committed < self._pinned[partition].target
        )
        if here or not elsewhere:
            return ""
        return (
            f"partitions {', '.join(map(str, elsewhere))}, which the group has not given to this process: another "
            "member holds them, or one that was killed is dropped after its session timeout "
            f"({self._job.settings.session_timeout_s:g} s)"
        )

    def _ask(self, missing: set[int]) -> None:
        job, manifest = self._job, self._job.build.manifest
        try:
            committed = job.events.cluster.committed(job.group, job.topic)
        except BrokerError as error:
            log.debug("rebuild.members_unknown", why=str(error))
            return
        for partition in missing & committed.keys():
            stamp = Stamp.parse(committed[partition].metadata)
            if stamp is None:
                continue
            if (stamp.directory, stamp.build) != (manifest.directory, manifest.build):
                raise RebuildError(
                    f"{at(job.topic.name, partition)} is folded by another member of group {job.group!r}, into build "
                    f"{stamp.build} of another state directory than {job.build.root}, so this rebuild cannot complete. "
                    "Stop that process, or give it the same directory; then run the projection, which goes on "
                    "from what "
                    "is committed.",
                    projection=job.projection.name,
                    topic=job.topic.name,
                    partition=partition,
                )
            if stamp.claimed:
                continue  # nobody has opened it yet
            position = committed[partition].position
            self._known[partition] = PartitionStatus(
                position=position,
                committed=position,
                events=stamp.events,
                declined=stamp.declined,
                dead_letters=stamp.dead_letters,
                skipped=stamp.skipped,
                phase=Phase.READY if stamp.halted is None else Phase.HALTED,
                why=stamp.halted or "",
            )
