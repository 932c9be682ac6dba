"""The agent: one process's loop over one build. Live folding and replay are the same code.

topic → decode → fold → store → commit, for each partition that the group gives this member.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from streams.data.collector import rare_collections
from streams.data.job import AgentStatus, Job
from streams.data.lane import Lane
from streams.data.subscription import Subscription
from streams.log import get_logger
from streams.types import Member

__all__ = ["Agent", "AgentStatus", "Job"]

log = get_logger(__name__)

_IDLE_S = 0.1
_SOON_S = 0.01
_MIRROR_S = 0.2


class Agent:
    """One member of a generation's consumer group.

    `run` blocks; `stop` and `status` may be used from any thread.

    Args:
        job: What is folded into what.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._interrupts: list[str] = []
        self._lane = Lane(job, self._interrupts)
        self._mirrored_s = 0.0
        self._status = AgentStatus()

    @property
    def job(self) -> Job:
        """What is folded into what."""
        return self._job

    @property
    def status(self) -> AgentStatus:
        """The figures as of the last batch."""
        return self._status

    def stop(self) -> None:
        """Ask `run` to end: the event being folded is finished, everything is committed, the group is left."""
        self._interrupts.append("stop")

    def run(self) -> None:
        """Fold until stopped or done.

        1. Join the group; partitions come and go inside `poll`.
        2. Open what came, poll a batch, fold it, take a checkpoint when one is due. A partition that is in trouble
           waits or halts by itself, and the others go on.
        3. At the end: commit what is whole, leave the group, close the stores. After an error nothing more is written.

        A crash anywhere leaves each store as of its last commit; the next start goes on there.

        Raises:
            EventError, ProjectionError, CqrsError: Where a partition has halted: the first one's error, once the
                others are done or `stop` was called; at once where all have halted.
            ModelSplit: Events of one model are on several partitions.
            BuildChanged, TopicChanged, TopicNotFound: What is folded is no longer what it was. Nothing of the new was
                committed.
            StorageError: The disk.
            BrokerUnavailable, BrokerError, GroupActive: See `Subscription.poll` and `ownership.check_members`.
        """
        with rare_collections():
            self._run()
        if self._lane.errors:
            raise self._lane.errors[0]

    def _run(self) -> None:
        job, lane = self._job, self._lane
        # Step 1
        self._subscription = Subscription(
            job.events,
            job.group,
            self,
            client_id=Member.client_id_of(job.build.manifest.directory, os.getpid()),
            session_timeout_s=job.settings.session_timeout_s,
        )
        lane.begin(self._subscription)
        log.debug("agent.started", projection=job.projection.name, group=job.group, topic=job.topic.name)
        clean = False
        try:
            # Step 2
            while not self._interrupts and not lane.is_done():
                slices = self._subscription.poll(_SOON_S if lane.is_waiting else _IDLE_S, lane.room)
                lane.advance()
                lane.take(slices)
                lane.checkpoint_if_due(idle=not any(piece.records for piece in slices))
                lane.answer()
                self._mirror()
                self._publish()
            clean = True
        finally:
            # Step 3
            self._close(clean)

    def _close(self, clean: bool) -> None:
        try:
            if clean:
                self._lane.checkpoint()
                self._mirror(wait=True)
            self._publish()
        finally:
            self._lane.close()
            self._subscription.close()
            log.debug("agent.stopped", projection=self._job.projection.name, group=self._job.group)

    def _mirror(self, *, wait: bool = False, now: bool = False) -> None:
        """Tell the group the stores' positions: at once, or now and then."""
        if wait or now or time.monotonic() - self._mirrored_s >= _MIRROR_S:
            committed = self._lane.take_unmirrored(self._subscription.take_refused())
            if committed:
                self._mirrored_s = time.monotonic()
                self._subscription.commit(committed, wait=wait)

    def _publish(self) -> None:
        self._status = self._lane.status(self._subscription.away_s)

    # Partitions: told by the subscription from within `poll`, while a rebalance waits

    def assigned(self, partitions: Sequence[int]) -> None:
        """Note partitions that the group gave us; they are opened outside this callback."""
        self._lane.hold(partitions)

    def revoked(self, partitions: Sequence[int]) -> None:
        """Commit these partitions to their stores and to the group, and close them: the next owner waits."""
        self._lane.finish(partitions)
        self._mirror(now=True)
        self._lane.release(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Close these partitions without writing: another member may be folding them already."""
        self._lane.release(partitions)
