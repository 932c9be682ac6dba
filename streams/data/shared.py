"""One read of a topic that several generations fold: decoded once, with a group, positions and failures of each."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

from streams.data.codec import describe
from streams.data.collector import rare_collections
from streams.data.feeding import Feeding, feed_all
from streams.data.job import AgentStatus, Hold, Job
from streams.data.polling import Polling, Slice
from streams.data.seat import IDLE_S, SOON_S, Seat
from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["SharedRead"]

log = get_logger(__name__)

_LAST_WORD_S = 3.0


class SharedRead:
    """Folds several jobs of one topic from one read, on one thread.

    Each job is a member of its own group, with its own stores, checkpoints and end; it is a `Runner` for whoever runs
    it (`join`). What fails in one ends that one. The read begins once as many have joined as are expected, so that
    none of it is read twice; one that joins later is read for from where it is, and the others pass over what they
    have folded.

    Args:
        expected: How many are to join before the read begins.
    """

    def __init__(self, expected: int) -> None:
        self._guard = threading.Lock()
        self._expected = expected
        self._waiting: list[SharedRunner] = []
        self._thread: threading.Thread | None = None

    def join(self, job: Job) -> SharedRunner:
        """Give what runs a job in here; it is a `MakeRunner`."""
        return SharedRunner(self, job)

    def expect_less(self) -> None:
        """Note that one of those who were expected will not come."""
        with self._guard:
            self._expected -= 1
            self._begin_if_complete()

    def _started(self, runner: SharedRunner) -> None:
        with self._guard:
            self._waiting.append(runner)
            self._expected -= 1
            self._begin_if_complete()

    def _withdrawn(self, runner: SharedRunner) -> None:
        """Note that one is to end that may not have begun."""
        with self._guard:
            if runner in self._waiting:
                self._waiting.remove(runner)
                runner.end(None)

    def _begin_if_complete(self) -> None:
        if self._expected <= 0 and self._waiting and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._run, name="refold-shared-read")
            self._thread.start()

    def _take_new(self, *, is_last: bool) -> list[SharedRunner]:
        """Give those that have joined; where there are none and nobody is left, the thread ends."""
        with self._guard:
            new, self._waiting = self._waiting, []
            if not new and is_last:
                self._thread = None
            return new

    def _run(self) -> None:
        with rare_collections():
            active: list[SharedRunner] = []
            router: _Router | None = None
            try:
                while True:
                    new = self._take_new(is_last=not active)
                    if not new and not active:
                        return
                    if router is None:
                        router = _Router(new[0].job)
                    active += [one for one in new if one.begins(router)]
                    self._turn(router, active)
                    active = [one for one in active if not one.has_ended]
            except BaseException as error:  # noqa: BLE001  (raised again by each one's `result`)
                for one in active:
                    one.end(error)
                with self._guard:
                    self._thread = None
                    self._begin_if_complete()  # those that have joined just now
            finally:
                if router is not None:
                    router.close()

    def _turn(self, router: _Router, active: Sequence[SharedRunner]) -> None:
        """Poll once, and have all fold what came."""
        for one in active:
            one.attempt(lambda seat: seat.poll(0))  # partitions come and go in here
            one.attempt(lambda seat: seat.lane.advance())
        alive = [one for one in active if not one.has_ended]
        rooms = [room for one in alive if (room := one.seat.room) is not None]
        is_waiting = any(one.seat.lane.is_waiting for one in alive)
        slices = router.poll(SOON_S if is_waiting else IDLE_S, min(rooms, default=None))
        for one in alive:
            one.seat.spend(slices)
            one.seat.lane.begin_batch()
        for piece in slices:
            self._fold(piece, [one for one in alive if not one.has_ended])
        idle = not any(piece.records for piece in slices)
        for one in alive:
            one.attempt(lambda seat: seat.rest(idle=idle))
            one.end_if_over()
        time.sleep(max((one.seat.rest_s for one in alive), default=0.0))

    @staticmethod
    def _fold(piece: Slice, alive: Sequence[SharedRunner]) -> None:
        feedings: list[tuple[SharedRunner, Feeding]] = []
        for one in alive:
            if one.seat.interrupts or not one.reading.takes(piece.partition):
                continue
            feeding = one.seat.lane.feeding(piece)
            if feeding is not None:
                feedings.append((one, feeding))
        # Those that fold the same records, read in the same way, share the decoding.
        alike = sorted(feedings, key=lambda pair: (pair[0].codec, id(pair[1].records)))
        for _, group in groupby(alike, key=lambda pair: (pair[0].codec, id(pair[1].records))):
            together = list(group)
            if together[0][1].records:
                feed_all(together[0][0].seat.lane.codec, [feeding for _, feeding in together])
        for one, feeding in feedings:
            one.attempt(partial(_fed, feeding))


def _fed(feeding: Feeding, seat: Seat) -> None:
    seat.lane.fed(feeding)


class SharedRunner:
    """One job of a shared read; see `Runner`."""

    def __init__(self, shared: SharedRead, job: Job) -> None:
        self._shared = shared
        self.job = job
        self.codec = describe(job.events.codec), repr(job.projection.event_types())
        self.seat = Seat(job)
        self.reading: _Reading
        self._is_seated = False
        self._error: BaseException | None = None
        self._ended = threading.Event()

    # Runner

    @property
    def status(self) -> AgentStatus:
        """See Runner."""
        return self.seat.status

    def start(self) -> None:
        """See Runner."""
        self._shared._started(self)

    def stop(self, *, stays: bool = False) -> None:
        """See Runner."""
        self.seat.stop(stays=stays)
        self._shared._withdrawn(self)

    def renice(self, nice: int) -> None:
        """See Runner."""

    def hold(self, wish: Hold | None) -> None:
        """See Runner."""

    def wait(self, timeout_s: float) -> bool:
        """See Runner."""
        return self._ended.wait(timeout_s)

    def result(self) -> AgentStatus:
        """See Runner."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        return self.status

    # The shared read's thread

    @property
    def has_ended(self) -> bool:
        """Whether it is through, be it by an error or not."""
        return self._ended.is_set()

    def begins(self, router: _Router) -> bool:
        """Join the group; say whether that could be done."""
        if self.seat.interrupts:
            self._ended.set()
            return False
        self.reading = router.reading()
        try:
            self.seat.join(self.reading)
        except CqrsError as error:
            self._error = error
            self._ended.set()
            return False
        self._is_seated = True
        return True

    def attempt(self, call: Callable[[Seat], object]) -> None:
        """Do something; what goes wrong ends this one, and nothing more of it is written."""
        if self.has_ended:
            return
        try:
            call(self.seat)
        except CqrsError as error:
            self.end(error)

    def end_if_over(self) -> None:
        """End it where it was asked to, or has nothing more to fold."""
        if self.has_ended:
            return
        try:
            is_over = self.seat.is_over
        except CqrsError as error:
            self.end(error)
            return
        if is_over:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """Leave the group; commit before, unless an error has ended it."""
        try:
            if self._is_seated:
                self.seat.leave(clean=error is None)
        except CqrsError as failure:
            error = error or failure
        self._error = error or next(iter(self.seat.lane.errors), None)
        self._ended.set()


class _Router:
    """Reads each partition from the lowest position that any of its readers needs.

    A reader that asks for a position that was passed has the partition read again from there; the others are given
    what they have folded already, and pass over it.
    """

    def __init__(self, job: Job) -> None:
        self._polling = Polling(job.events, {"group.id": f"refold-shared-{secrets.token_hex(6)}"})
        self._readings: dict[int, set[_Reading]] = {}
        self.turn = 0
        """How often it was polled."""
        self._next: dict[int, int] = {}
        """By partition, the offset after the last one that was given out."""

    def reading(self) -> _Reading:
        """Give another reader."""
        return _Reading(self)

    def poll(self, timeout_s: float, room: int | None) -> list[Slice]:
        """Give what there is; see `Polling.poll`."""
        self.turn += 1
        slices = self._polling.poll(timeout_s, room)
        for piece in slices:
            if piece.refused is not None:
                self._next.pop(piece.partition, None)  # nothing more comes before it is read anew
            elif piece.records:
                self._next[piece.partition] = piece.records[-1].offset() + 1
            elif piece.end is not None:
                self._next[piece.partition] = piece.end
        return slices

    def read(self, reading: _Reading, partition: int, position: int) -> None:
        """Have a partition read for one of the readers, from a position or before."""
        self._readings.setdefault(partition, set()).add(reading)
        if partition not in self._next or position < self._next[partition]:
            self._polling.read(partition, position)
            self._next[partition] = position

    def stop_reading(self, reading: _Reading, partition: int) -> None:
        """Have it read for one of them no more."""
        readers = self._readings.get(partition, set())
        readers.discard(reading)
        if not readers and partition in self._next:
            self._polling.stop_reading(partition)
            del self._next[partition]

    def close(self) -> None:
        """Let go of the connection."""
        self._polling.close(_LAST_WORD_S)


class _Reading:
    """One lane's side of the router."""

    def __init__(self, router: _Router) -> None:
        self._router = router
        self._since: dict[int, int] = {}

    def read(self, partition: int, position: int) -> None:
        self._since[partition] = self._router.turn
        self._router.read(self, partition, position)

    def stop_reading(self, partition: int) -> None:
        self._since.pop(partition, None)
        self._router.stop_reading(self, partition)

    def takes(self, partition: int) -> bool:
        """Whether what was polled last is of what it reads: not where it has asked for something else since."""
        return self._since.get(partition, self._router.turn) < self._router.turn
