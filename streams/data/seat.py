"""A seat in a generation's consumer group: a lane, the membership that it folds by, and the mirror of its positions."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from streams.data.job import AgentStatus, Job, Work
from streams.data.lane import Lane, Reading
from streams.data.polling import Slice
from streams.data.subscription import Subscription
from streams.data.throttle import Throttle
from streams.log import get_logger
from streams.types import Member

__all__ = ["IDLE_S", "SOON_S", "Seat"]

log = get_logger(__name__)

IDLE_S = 0.1
SOON_S = 0.01
_MIRROR_S = 0.2
_MEASURE_S = 2.0


class Seat:
    """One member of a generation's consumer group, with the lane of what the group gives it.

    Not thread-safe, but for `stop` and `status`.

    Args:
        job: What is folded into what.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.interrupts: list[str] = []
        """When something is put in here, by any thread, folding stops after the event it is at."""
        self.lane = Lane(job, self.interrupts)
        self.status = AgentStatus()
        """The figures as of the last batch."""
        self._throttle = Throttle(job.settings)
        self._mirrored_s = 0.0
        self._rebalances = 0
        self._batches = 0
        self._apply_s = 0.0
        self._rocksdb_bytes = 0
        self._measured_s = 0.0
        self._has_left = False
        self._stays = False

    def stop(self, *, stays: bool = False) -> None:
        """Ask for the end: the event being folded is finished, everything is committed, the group is left.

        Args:
            stays: It is not left where it would know this member again; see `Job.instance`.
        """
        if not self.interrupts:  # else somebody has said so before
            self._stays = stays
        self.interrupts.append("stop")

    def join(self, reading: Reading | None = None) -> None:
        """Join the group; partitions come and go inside `poll` from then on.

        Args:
            reading: What reads them; None for the membership's own consumer.
        """
        job = self.job
        self._subscription = Subscription(
            job.events,
            job.group,
            self,
            client_id=Member.client_id_of(
                job.build.manifest.directory, 0 if job.instance else os.getpid(), job.address
            ),
            session_timeout_s=job.settings.session_timeout_s,
            instance=job.instance,
        )
        self._reading: Reading = self._subscription if reading is None else reading
        self.lane.begin(self._reading)
        log.debug("agent.started", projection=job.projection.name, group=job.group, topic=job.topic.name)

    @property
    def is_over(self) -> bool:
        """Whether it was asked to end, or has nothing more to fold."""
        return bool(self.interrupts) or self.lane.is_done()

    def poll(self, timeout_s: float | None = None, room: int | None = None) -> list[Slice]:
        """Give what there is to be folded, where the membership's own consumer reads; see `Subscription.poll`.

        Args:
            timeout_s: How long to wait for it; by default for a moment, and less where something else is due.
            room: The largest number of records to give.
        """
        if timeout_s is None:
            timeout_s = SOON_S if self.lane.is_waiting else IDLE_S
        return self._subscription.poll(timeout_s, room)

    @property
    def room(self) -> int | None:
        """How many events the next batch may hold; None for any number."""
        rooms = [self.lane.commits.room, self._throttle.room if self._is_slowed else None]
        return min((room for room in rooms if room is not None), default=None)

    @property
    def _is_slowed(self) -> bool:
        return self._throttle.is_on and self.lane.is_replaying

    def take(self, slices: Sequence[Slice]) -> None:
        """Fold what was read; see `Lane.take`."""
        began = time.monotonic()
        self.spend(slices)
        self.lane.take(slices)
        if slices:
            self._batches += 1
            self._apply_s += time.monotonic() - began

    def spend(self, slices: Sequence[Slice]) -> None:
        """Note what is about to be folded, where a rebuild may only be so fast."""
        if self._is_slowed:
            records = [record for piece in slices for record in piece.records]
            self._throttle.took(len(records), sum(map(len, records)))

    @property
    def rest_s(self) -> float:
        """How long to rest before the next batch, so that a rebuild is not too fast."""
        return 0.0 if self.interrupts else self._throttle.rest_s

    def rest(self, *, idle: bool) -> None:
        """Do what is due between two batches: checkpoints, answers, the mirror, the figures.

        Args:
            idle: Nothing is waiting to be folded.
        """
        self.lane.commits.if_due(idle=idle)
        self.lane.answer()
        self._mirror(now=self.lane.commits.take_caught_up())
        self._publish()

    def leave(self, *, clean: bool) -> None:
        """Leave the group and close the stores.

        Args:
            clean: Commit what is whole before; otherwise nothing more is written.
        """
        self._has_left = True
        try:
            if clean:
                self.lane.commits.all()
                self._mirror(wait=True)
            self._publish()
        finally:
            self.lane.close()
            self._subscription.close(stays=self._stays)
            log.debug("agent.stopped", projection=self.job.projection.name, group=self.job.group)

    def _mirror(self, *, wait: bool = False, now: bool = False) -> None:
        """Tell the group the stores' positions: at once, or now and then."""
        if wait or now or time.monotonic() - self._mirrored_s >= _MIRROR_S:
            committed = self.lane.take_unmirrored(self._subscription.take_refused())
            if committed:
                self._mirrored_s = time.monotonic()
                self._subscription.commit(committed, wait=wait)

    def _publish(self) -> None:
        commits = self.lane.commits
        work = Work(
            commits=commits.taken,
            commit_s=commits.taken_s,
            batches=self._batches,
            apply_s=self._apply_s,
            refused=self._subscription.refusals,
            rebalances=self._rebalances,
            snapshots=self.lane.shipping.shipped.snapshots,
            snapshot_bytes=self.lane.shipping.shipped.bytes,
            snapshots_failed=self.lane.shipping.shipped.failed,
            restored=self.lane.restored,
        )
        if time.monotonic() - self._measured_s >= _MEASURE_S:
            self._measured_s, self._rocksdb_bytes = time.monotonic(), self.lane.rocksdb_bytes()
        self.status = self.lane.status(self._subscription.away_s, work, self._rocksdb_bytes)

    # Partitions: told by the subscription from within `poll`, while a rebalance waits

    def assigned(self, partitions: Sequence[int]) -> None:
        """Note partitions that the group gave us; they are opened outside this callback."""
        self._rebalances += 1
        if not self._has_left:
            self.lane.hold(partitions)

    def revoked(self, partitions: Sequence[int]) -> None:
        """Commit these partitions to their stores and to the group, and close them: the next owner waits."""
        self._rebalances += 1
        self.lane.finish(partitions)
        self._mirror(now=True)
        self._release(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Close these partitions without writing: another member may be folding them already."""
        self._release(partitions)

    def _release(self, partitions: Sequence[int]) -> None:
        self.lane.release(partitions)
        if self._reading is not self._subscription:  # which stops by itself
            for partition in partitions:
                self._reading.stop_reading(partition)
