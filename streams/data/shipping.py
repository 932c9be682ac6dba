"""Sending snapshots of the partitions that a process folds to the snapshot repository, on a thread of its own."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from streams.data.job import Job
from streams.data.partition import HeldPartition, Phase
from streams.data.repository import Kept, Repository
from streams.data.restoring import WORTH
from streams.data.scratch import Scratch
from streams.data.store import StoreState
from streams.errors import CqrsError, StorageError, at
from streams.log import get_logger

__all__ = ["Shipped", "Shipping"]

log = get_logger(__name__)

_LONG = 24
"""After so many times the usual time, a snapshot is sent of what has moved at all: topics forget."""
_FIRST_BACKOFF_S = 5.0
_MB = 1e6


class _Closed(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Shipped:
    """What was sent since the process began."""

    snapshots: int = 0
    bytes: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Known:
    """What is known of a partition's snapshots."""

    newest: Kept | None = None
    """None: none is there."""
    is_known: bool = False
    is_outdated: bool = False
    """All that there are have models that were replaced since."""
    again_s: float = 0.0
    """Not before then is it tried again, by the monotonic clock."""
    failures: int = 0


class Shipping:
    """Sends snapshots, one at a time. `look` and `close` are for the thread that folds.

    What is sent is a copy by hard links, so that the fold stands still only while that is made. It is of a position
    that was committed, and so it does not matter whether the partition is still held when it has been sent.

    Args:
        job: What is folded into what.

    Raises:
        ConfigError: The repository of the settings cannot be.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        # A database needs none: its positions are with the models.
        self._repository = Repository.of(job.settings, job.build.counts_as) if job.build.is_in_files else None
        self._known: dict[int, _Known] = {}
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_busy = False
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None
        self.shipped = Shipped()
        """What was sent."""

    def look(self, partitions: Iterable[HeldPartition]) -> None:
        """Have a snapshot sent that is due, unless one is being sent; note in each partition what there is of it."""
        if self._repository is None:
            return
        held = {one.number: one for one in partitions if one.store is not None and one.phase is not Phase.STALLED}
        for number in self._known.keys() - held.keys():
            del self._known[number]  # when it comes back, others may have sent some
        for number, one in held.items():
            known = self._known.setdefault(number, _Known())
            one.snapshot = known.newest
            if self._is_busy or time.monotonic() < known.again_s or one.store is None:
                continue
            if known.is_outdated:
                known.is_outdated = False
                self._give(number, partial(self._forget, number))
            elif not known.is_known:
                self._give(number, partial(self._list, number))
            elif self._is_due(known.newest, one.store.state):
                self._ship(one)

    def renew(self, partition: int) -> None:
        """Note that models were replaced: the snapshots that there are have those from before, and are to go."""
        self._known.setdefault(partition, _Known()).is_outdated = True

    def close(self) -> None:
        """Send nothing more. What is being sent is left off; the next one goes on with it."""
        self._is_closed.set()
        self._work.put(None)

    def _is_due(self, newest: Kept | None, state: StoreState) -> bool:
        if newest is None:
            return state.position - state.start >= WORTH
        moved, age_s = state.position - newest.position, (datetime.now(UTC) - newest.at).total_seconds()
        every_s = self._job.settings.snapshot_seconds
        return (moved >= WORTH and age_s >= every_s) or (moved > 0 and age_s >= every_s * _LONG)

    def _ship(self, held: HeldPartition) -> None:
        assert held.store is not None
        state = held.store.state
        scratch: Scratch | None = None
        try:
            scratch = Scratch(self._job.build, f"shipping-{held.number}")
            held.store.snapshot(scratch.path)
        except StorageError as error:  # of the copy, and not of what is folded
            if scratch is not None:
                scratch.close()
            self._failed(held.number, error)
            return
        self._give(held.number, partial(self._send, scratch, state))

    def _give(self, number: int, what: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="refold-snapshots", daemon=True)
            self._thread.start()

        def run() -> None:
            try:
                what()
            except _Closed:
                pass
            except CqrsError as error:
                self._failed(number, error)
            except Exception as error:  # a fault of ours, or a disk's: the next one is to be sent all the same
                log.exception("snapshot.fault", partition=number)
                self._failed(number, error)
            finally:
                self._is_busy = False

        self._is_busy = True
        self._work.put(run)

    # On the thread

    def _run(self) -> None:
        while (what := self._work.get()) is not None:
            what()

    def _list(self, number: int) -> None:
        assert self._repository is not None
        newest = next(iter(self._repository.kept(number)), None)
        known = self._known.get(number)
        if known is not None:
            known.newest, known.is_known, known.failures = newest, True, 0

    def _forget(self, number: int) -> None:
        assert self._repository is not None
        known = self._known.get(number)
        try:
            self._repository.forget(number)
        except CqrsError:
            if known is not None:
                known.is_outdated = True
            raise
        if known is not None:
            known.newest, known.is_known = None, True

    def _send(self, scratch: Scratch, state: StoreState) -> None:
        assert self._repository is not None
        began = time.monotonic()
        where = at(self._job.topic.name, state.partition, state.position)
        try:
            snapshot, sent = self._repository.put(scratch.path, state, socket.gethostname(), self._check)
        finally:
            scratch.close()
        known = self._known.get(state.partition)
        if known is not None:
            known.newest, known.failures = Kept(state.position, datetime.now(UTC)), 0
        was = self.shipped
        self.shipped = Shipped(was.snapshots + 1, was.bytes + sent, was.failed)
        self._give_up_records(state.partition)
        log.info(
            "snapshot.sent",
            where=where,
            models=state.models,
            megabytes=round(snapshot.size_bytes / _MB, 1),
            sent_megabytes=round(sent / _MB, 1),
            seconds=round(time.monotonic() - began, 2),
        )

    def _give_up_records(self, number: int) -> None:
        """Delete what the snapshots have of a topic that is the generation's own: whoever needs it fetches one.

        All snapshots that are to be kept are there by then, and the oldest one can be folded on.
        """
        job, repository = self._job, self._repository
        assert repository is not None
        if job.repartition is None:
            return
        kept = repository.kept(number)
        if len(kept) < job.settings.snapshots_kept:
            return
        where = at(job.topic.name, number, kept[-1].position)
        try:
            job.events.cluster.delete_records(job.topic, {number: kept[-1].position})
        except CqrsError as error:  # they are deleted with the next snapshot
            log.warning("repartition.not_trimmed", where=where, why=str(error))
        else:
            log.debug("repartition.trimmed", where=where)

    def _failed(self, number: int, error: Exception) -> None:
        was = self.shipped
        self.shipped = Shipped(was.snapshots, was.bytes, was.failed + 1)
        known = self._known.get(number)
        wait_s = _FIRST_BACKOFF_S
        if known is not None:
            known.failures += 1
            wait_s = min(self._job.settings.snapshot_seconds, _FIRST_BACKOFF_S * 2 ** (known.failures - 1))
            known.again_s = time.monotonic() + wait_s
        log.warning(
            "snapshot.not_sent", where=at(self._job.topic.name, number), again_in_s=round(wait_s, 1), why=str(error)
        )

    def _check(self) -> None:
        if self._is_closed.is_set():
            raise _Closed
