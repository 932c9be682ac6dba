"""The agent: one process's loop from the topic to the store. Live folding and rebuild are this same loop."""

from __future__ import annotations

import time
from collections.abc import Iterator

from streams.data.collector import rare_collections
from streams.data.job import AgentStatus, Job
from streams.data.seat import Seat

__all__ = ["Agent", "AgentStatus", "Job"]

_WAKE_S = 0.05


class Agent:
    """One member of a generation's consumer group.

    `run` blocks; `stop` and `status` may be used from any thread.

    Args:
        job: What is folded into what.
    """

    def __init__(self, job: Job) -> None:
        self._seat = Seat(job)

    @property
    def job(self) -> Job:
        """What is folded into what."""
        return self._seat.job

    @property
    def status(self) -> AgentStatus:
        """The figures as of the last batch."""
        return self._seat.status

    def stop(self, *, stays: bool = False) -> None:
        """Ask `run` to end: the event being folded is finished, everything is committed, the group is left.

        Args:
            stays: See `Seat.stop`.
        """
        self._seat.stop(stays=stays)

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
        for _ in self.turns():
            pass

    def turns(self) -> Iterator[None]:
        """Do the same, turn by turn: between two of them another thread may go on with it.

        Raises:
            See `run`.
        """
        with rare_collections():
            yield from self._turns()
        if self._seat.lane.errors:
            raise self._seat.lane.errors[0]

    def _turns(self) -> Iterator[None]:
        seat, lane = self._seat, self._seat.lane
        # Step 1
        seat.join()
        clean = False
        try:
            # Step 2
            while not seat.is_over:
                lane.advance()  # first: what was fetched before a partition is read anew is not to be folded
                slices = seat.poll(room=seat.room)
                seat.take(slices)
                seat.rest(idle=not any(piece.records for piece in slices))
                yield
                self._rest()
            clean = True
        finally:
            # Step 3
            seat.leave(clean=clean)

    def _rest(self) -> None:
        """Rest for as long as a rebuild is to be slowed down; be there at once for who wants it to stop."""
        until = time.monotonic() + self._seat.rest_s
        while not self._seat.interrupts and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _WAKE_S))
