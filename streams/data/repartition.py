"""Repartitioning: events are written once more, each with its model's id as the key, so that one partition feeds it.

    event topic ──▶ Repartitioner ──(transactions)──▶ the generation's own topic ──▶ the fold, as ever

A record and the position behind its event become visible in one transaction, so each event is there once, whatever
dies when (KIP-98, KIP-447). The group's offsets are the truth of how far it is: nothing is kept elsewhere.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence

from confluent_kafka import TopicPartition

from projections.contract import Event
from streams.data.codec import Record, Undecodable, decoded
from streams.data.collector import rare_collections
from streams.data.history import TopicWatch
from streams.data.job import AgentStatus, Hold, Repartition, Work
from streams.data.partition import Phase
from streams.data.polling import Slice
from streams.data.routed import headers_with_origin
from streams.data.scan import scan
from streams.data.source import KafkaEventStore
from streams.data.source_partition import FIRST_RETRY_S, SourcePartition
from streams.data.subscription import Subscription
from streams.data.throttle import Throttle
from streams.data.transactions import Transactions, Undone
from streams.data.typed import typed
from streams.errors import BrokerError, BrokerUnavailable, CqrsError, TopicChanged, TopicNotFound
from streams.log import get_logger
from streams.types import Member, TopicInfo

__all__ = ["Repartitioner"]

log = get_logger(__name__)

_IDLE_S = 0.1
_SOON_S = 0.01
_COMMIT_S = 0.25
_ANSWER_S = 3.0
_WAKE_S = 0.05
_HOLD_S = 30.0
"""For so long it may be held: whoever compares needs a third of it, or begins again."""
_UNDONE = 20
"""So many transactions in a row that come to nothing are no accident."""


class Repartitioner:
    """One member of the group that writes a generation's events once more, keyed by model.

    An event that no model can be told of, since it cannot be decoded or `extract_model_id` raises, is not passed:
    later events of its model may follow it to any partition. Where the policy skips such events, it is written with
    the key that it has, and the fold counts it among those that it skips.

    `turns` blocks; everything else may be used from any thread.

    Args:
        job: What is written into what.
    """

    def __init__(self, job: Repartition) -> None:
        self.job = job
        self._codec = typed(job.events.codec, job.projection)
        self._interrupts: list[str] = []
        self._held: dict[int, SourcePartition] = {}
        self._cluster = job.events.cluster.within(_ANSWER_S)
        self._watch = TopicWatch(self._cluster, job.topic, job.projection.name)
        seat = job.instance or job.seat or f"{socket.gethostname()}-{os.getpid()}"
        self._transactions = Transactions(job.events.kafka, f"{job.group}/{seat}", job.into.name)
        self._throttle = Throttle(job.settings)
        self._began_s = 0.0
        self._undone = 0
        self._wish: Hold | None = None
        self._heard: str | None = None
        self._heard_s = 0.0
        self._events = 0
        self._commits = 0
        self._commit_s = 0.0
        self._rebalances = 0
        self._stays = False
        self._has_left = False
        self.status = AgentStatus()
        """The figures, by partition of the event topic, as of the last batch."""

    def run(self) -> None:
        """Do it until stopped.

        Raises:
            See `turns`.
        """
        for _ in self.turns():
            pass

    def stop(self, *, stays: bool = False) -> None:
        """Ask for the end: what was written is committed, and the group is left.

        Args:
            stays: It is not left where it would know this member again.
        """
        if not self._interrupts:
            self._stays = stays
        self._interrupts.append("stop")

    def hold(self, wish: Hold | None) -> None:
        """Write nothing more for a moment, or go on."""
        self._wish = wish

    def turns(self) -> Iterator[None]:
        """Do it until stopped, turn by turn; see `Agent.turns`.

        Raises:
            EventError, ProjectionError, CqrsError: Where a partition has halted: the first one's error, once `stop` was
                called; at once where all have halted, unless a worker does it.
            TopicChanged, TopicNotFound: The event topic is no longer what it was.
            BrokerUnavailable, BrokerError: From Kafka.
        """
        job = self.job
        self._subscription = Subscription(
            job.events,
            job.group,
            self,
            client_id=Member.client_id_of(job.mark, 0 if job.instance else os.getpid(), job.address),
            session_timeout_s=job.settings.session_timeout_s,
            instance=job.instance,
        )
        clean = False
        try:
            self._transactions.take_over()
            with rare_collections():
                while not self._interrupts and not self._has_nothing_to_do():
                    self._turn()
                    yield
                    self._rest()
            clean = True
        finally:
            halted = [one.error for one in self._held.values() if one.phase is Phase.HALTED and one.error is not None]
            self._leave(clean=clean)
        if halted:
            raise halted[0]

    def _turn(self) -> None:
        try:
            # Before anything is polled: what was fetched before a partition is read anew must not be taken.
            self._open()
            self._heed()
            for piece in (slices := self._subscription.poll(self._patience_s, self._room)):
                self._take(piece)
                if self._interrupts:
                    break
            idle = not any(piece.records for piece in slices)
            if idle or time.monotonic() - self._began_s >= _COMMIT_S:
                self._commit()
        except Undone as why:
            self._again(why)
        self._publish()

    @property
    def _patience_s(self) -> float:
        waits = self._transactions.is_open or any(
            one.phase in (Phase.OPENING, Phase.STALLED) or one.until is not None for one in self._held.values()
        )
        return _SOON_S if waits or not self._held else _IDLE_S

    @property
    def _room(self) -> int | None:
        return self._throttle.room if self._is_slowed else None

    @property
    def _is_slowed(self) -> bool:
        return self._throttle.is_on and any(
            one.position < self.job.ends.get(one.number, 0) for one in self._held.values()
        )

    def _rest(self) -> None:
        until = time.monotonic() + self._throttle.rest_s
        while not self._interrupts and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _WAKE_S))

    def _has_nothing_to_do(self) -> bool:
        """Say whether all has halted, and nobody is served what is folded beside: a worker goes on with that."""
        return (
            not self.job.address and bool(self._held) and all(one.phase is Phase.HALTED for one in self._held.values())
        )

    # Where to go on

    def _open(self) -> None:
        """Read partitions that came, or that have waited, from where the group is."""
        now = time.monotonic()
        due = [
            one for one in self._held.values() if one.phase in (Phase.OPENING, Phase.STALLED) and now >= one.retry_at
        ]
        if not due:
            return
        self._commit()  # or what some of them have written would be read again
        try:
            topic = self._cluster.topic(self.job.topic.name)  # which may have more partitions by now
            committed = self._subscription.committed(one.number for one in due)
            is_new = len(committed) == len(due) or self._has_begun(topic)
            lows = {one: marks.low for one, marks in self._cluster.watermarks(topic).items()}
        except (TopicNotFound, TopicChanged):
            raise
        except BrokerError as error:
            for one in due:
                one.stall(error)
            return
        for one in due:
            try:
                one.open(committed.get(one.number), lows.get(one.number, 0), is_new=is_new)
            except CqrsError as error:
                self._halt(one, error)
            else:
                self._subscription.read(one.number, one.position)

    def _has_begun(self, topic: TopicInfo) -> bool:
        """Say whether a partition that the group has no offset of was never read: it has some of others, or nothing was
        written yet."""
        every = range(topic.partitions)
        if self._subscription.committed(every):
            return True
        return self._is_nothing_written() or bool(
            self._subscription.committed(every)
        )  # another one may have just begun

    def _is_nothing_written(self) -> bool:
        """Say whether no transaction was committed yet. What is left of others takes offsets, and is read by nobody."""
        job, deadline = self.job, time.monotonic() + _ANSWER_S

        def check() -> None:
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{job.into.name} could not be looked at within {_ANSWER_S:g} s.")

        marks = self._cluster.watermarks(job.into)
        if any(one.low for one in marks.values()):
            return False
        own = KafkaEventStore(job.into.name, codec=job.events.codec, kafka=job.events.kafka)
        return next(scan(own, {number: (0, one.high) for number, one in marks.items()}, check), None) is None

    def _halt(self, one: SourcePartition, error: CqrsError) -> None:
        one.phase, one.error = Phase.HALTED, error
        self._subscription.stop_reading(one.number)
        log.error("repartition.halted", where=one.where, why=str(error))

    # Writing

    def _take(self, piece: Slice) -> None:
        one = self._held.get(piece.partition)
        if one is None or one.phase is not Phase.READY or one.until == one.position:
            return
        if piece.refused is not None:
            self._subscription.stop_reading(one.number)
            one.stall(BrokerUnavailable(f"{one.where}: {piece.refused}"))
            return
        records, end = piece.records, piece.end
        if one.until is not None:
            records = [record for record in records if record.offset() < one.until]
        if records:
            self._watch.has_read()
            if not self._transactions.is_open:
                self._began_s = time.monotonic()
            if self._is_slowed:
                self._throttle.took(len(records), sum(map(len, records)))
            if not self._write(one, records):
                return
        if one.until is not None and (len(records) < len(piece.records) or (end is not None and end >= one.until)):
            end = one.until  # what it has not reached are offsets without a record
        if end is not None:
            one.position = max(one.position, end)

    def _write(self, one: SourcePartition, records: Sequence[Record]) -> bool:
        """Write records once more, as far as nothing is in the way; say whether all were."""
        extract, write = self.job.projection.extract_model_id, self._transactions.write
        number = 0
        for outcomes in decoded(self._codec, records):
            for outcome in outcomes:
                record = records[number]
                number += 1
                key: bytes | None = None
                if type(outcome) is Event:
                    try:
                        model_id = extract(outcome)
                        key = None if model_id is None else model_id.encode()
                    except Exception as error:  # noqa: BLE001  (told as what it is)
                        if not self._passes(one, outcome, error):
                            return False
                        key = record.key() or b""
                elif type(outcome) is Undecodable:
                    if not self._passes(one, outcome, None):
                        return False
                    key = record.key() or b""
                if key is not None:
                    write(key, record.value(), headers_with_origin(record), record.timestamp()[1])
                else:
                    one.declined += 1
                one.position = record.offset() + 1
                one.events += 1
                self._events += 1
            if self._interrupts:
                return False
        one.record_ms = records[number - 1].timestamp()[1]
        return True

    def _passes(self, one: SourcePartition, outcome: Event | Undecodable, error: Exception | None) -> bool:
        """Say whether an event is passed of which no model can be told; where not, wait or halt in front of it."""
        action, raised = one.refused(outcome, error)
        if action == "skip":
            return True
        if one.phase is Phase.STALLED:
            self._subscription.stop_reading(one.number)
        else:
            self._halt(one, raised)
        return False

    def _commit(self) -> None:
        """Commit what was written, with the positions behind it.

        Raises:
            Undone: It came to nothing.
            TopicChanged, TopicNotFound: What was read may be another topic's.
        """
        told = {one.number: one.to_tell for one in self._held.values() if one.position >= 0}
        moved = {number: tell for number, tell in told.items() if tell != self._held[number].told}
        if not moved and not self._transactions.is_open:
            return
        began = time.monotonic()
        if not self._watch.is_same():
            raise Undone("nobody says whether the topic is the same")
        topic = self.job.topic.name
        offsets = [
            TopicPartition(topic, number, one.position, one.stamp().encode())
            for number, one in self._held.items()
            if number in moved
        ]
        membership = self._subscription.membership
        if membership is None:
            raise Undone("this member is none of its group's any more")
        self._transactions.commit(offsets, membership)
        self._undone = 0
        for number, tell in moved.items():
            one = self._held[number]
            one.told, one.committed = tell, one.position
        self._commits += 1
        self._commit_s += time.monotonic() - began
        self._began_s = time.monotonic()

    def _again(self, why: Undone) -> None:
        """Begin again where the group is: nothing of what was written since is there.

        Also from within a rebalance, where nothing may be said of what is read: what still comes is passed over, until
        it is read anew.

        Raises:
            BrokerError: That has happened too often.
        """
        self._transactions.abort()
        self._undone += 1
        log.warning("repartition.undone", group=self.job.group, in_a_row=self._undone, why=str(why))
        if self._undone >= _UNDONE:
            raise BrokerError(
                f"{self._undone} transactions in a row came to nothing, in which events of {self.job.topic.name} were "
                f"to be written to {self.job.into.name}; the last time: {why} What was committed is kept."
            ) from why
        for one in self._held.values():
            one.begin_again(FIRST_RETRY_S if self._undone > 1 else 0.0)

    # Being held

    def _heed(self) -> None:
        """Hold what is to be held, at where it is to be; let go of what was held for too long."""
        wish = self._wish
        which = None if wish is None else wish.id
        if which != self._heard:
            self._heard, self._heard_s = which, time.monotonic()
        if wish is not None and time.monotonic() - self._heard_s > _HOLD_S:
            wish = None
        for one in self._held.values():
            if one.phase is not Phase.READY:
                continue
            if wish is None:
                if one.until is not None:
                    self._go_up_to(one, None)
            elif one.position >= (barrier := one.position if wish.barrier is None else wish.barrier.get(one.number, 0)):
                if one.held != wish.id:
                    self._subscription.stop_reading(one.number)
                    one.held, one.until = wish.id, one.position
            elif one.until != barrier:
                self._go_up_to(one, barrier)

    def _go_up_to(self, one: SourcePartition, until: int | None) -> None:
        one.held, one.until = "", until
        self._subscription.read(one.number, one.position)

    # The end

    def _leave(self, *, clean: bool) -> None:
        self._has_left = True
        try:
            if clean:
                try:
                    self._commit()
                except Undone as why:
                    log.warning("repartition.undone", group=self.job.group, why=str(why))
            self._publish()
        finally:
            self._transactions.close()
            self._subscription.close(stays=self._stays)

    def _publish(self) -> None:
        self.status = AgentStatus(
            partitions={one.number: one.status() for one in self._held.values()},
            events=self._events,
            work=Work(commits=self._commits, commit_s=self._commit_s, rebalances=self._rebalances),
            away_s=self._subscription.away_s,
        )

    # Partitions: told by the subscription from within `poll`, while a rebalance waits

    def assigned(self, partitions: Sequence[int]) -> None:
        """See Listener."""
        self._rebalances += 1
        if not self._has_left:
            self._held |= {number: SourcePartition(self.job, number) for number in partitions}

    def revoked(self, partitions: Sequence[int]) -> None:
        """Commit what was written of these, for whoever gets them next."""
        self._rebalances += 1
        if not self._has_left:
            try:
                self._commit()
            except Undone as why:
                self._again(why)
        self._release(partitions)

    def lost(self, partitions: Sequence[int]) -> None:
        """Have nothing be there that was written since the last commit: another member may write it already."""
        if not self._has_left:
            self._again(Undone("partitions were lost"))
        self._release(partitions)

    def _release(self, partitions: Sequence[int]) -> None:
        for number in partitions:
            self._held.pop(number, None)
