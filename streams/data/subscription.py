"""A consumer group's subscription to the event topic."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.calls import broker_error
from streams.data.polling import Polling, Slice, bounded
from streams.data.source import KafkaEventStore
from streams.log import get_logger
from streams.types import Committed
from streams.unended import offsets_pending

__all__ = ["Listener", "Subscription", "leave_for"]

log = get_logger(__name__)

_LAST_WORD_S = 3.0
_JOIN_S = 0.02
_ASK_S = 0.5
_STATISTICS_MS = 100
"""How often librdkafka tells its state, which is looked at when the group is to be left."""
_REFRESH_MS = 10_000
"""How often it is asked whether the topic has more partitions; librdkafka's default is five minutes."""
_LEAVABLE = ("steady", "wait-join", "wait-sync")
"""What librdkafka calls the states in which it does not wait for an answer of ours."""
_HEARTBEAT_MS = 300
"""A member learns by its heartbeat's answer that the group is being rebalanced, and a hand-over takes two such rounds:
at Kafka's 3 s, six seconds in which one agent does the work of two."""
_LIFT_S = 0.2
"""For so long, once for each time that it has joined, a member waits for what lets it join again sooner."""


class Listener(Protocol):
    """Told of partitions that come and go. Called from within `Subscription.poll` and `close`, at no other time.

    A rebalance waits for it, so it must not wait for anything long.
    """

    def assigned(self, partitions: Sequence[int]) -> None:
        """Take these partitions on, in addition to those held; nothing is read of one before `Subscription.read`."""
        ...

    def revoked(self, partitions: Sequence[int]) -> None:
        """Finish with these partitions: whoever gets them next is waiting. They are still ours to commit."""
        ...

    def lost(self, partitions: Sequence[int]) -> None:
        """Forget these partitions: somebody else may have them already. Nothing may be written any more."""
        ...


class Subscription:
    """One member of a consumer group, which reads one topic, or leaves the reading to another consumer.

    Not thread-safe: one thread polls, commits and closes.

    Args:
        store: The log.
        group: The consumer group.
        listener: Told of the partitions.
        client_id: By which the group knows this member.
        session_timeout_s: Silence after which the group gives this member's partitions away.
        instance: By which it knows it again when it comes back within that time (`group.instance.id`, KIP-345): then
            it has its partitions again, and nobody else is disturbed. "": it is a new member each time.
    """

    def __init__(
        self,
        store: KafkaEventStore,
        group: str,
        listener: Listener,
        *,
        client_id: str,
        session_timeout_s: float,
        instance: str = "",
    ) -> None:
        self._topic = store.topic
        self._kafka = store.kafka
        self._group = group
        self._instance = instance
        self._listener = listener
        self._refused: set[int] = set()
        self.refusals = 0
        """Commits that the group has refused so far."""
        self._statistics = ""
        self._has_joined = False
        self._polling = Polling(
            store,
            {
                "session.timeout.ms": int(session_timeout_s * 1000),
                "heartbeat.interval.ms": min(_HEARTBEAT_MS, int(session_timeout_s * 1000 / 3)),
                "client.id": client_id,
                "group.id": group,
                **({"group.instance.id": instance} if instance else {}),
                "on_commit": self._on_commit,
                "statistics.interval.ms": _STATISTICS_MS,
                "topic.metadata.refresh.interval.ms": _REFRESH_MS,
                "stats_cb": self._on_statistics,
            },
        )
        self._consumer = self._polling.consumer
        self._consumer.subscribe(
            [store.topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def poll(self, timeout_s: float, room: int | None = None) -> list[Slice]:
        """Give what is there of the partitions that are read, and tell the listener of those that come and go.

        Args:
            timeout_s: How long to wait for the first record.
            room: The largest number of records to give.

        Raises:
            BrokerUnavailable, TopicNotFound: See `Polling.poll`.
            CqrsError: Whatever the listener raised.
        """
        slices = self._polling.poll(timeout_s, room)
        if self._has_joined:
            self._has_joined = False
            self._let_join_again()
        return slices

    def _let_join_again(self) -> None:
        """Have librdkafka join again as soon as the group asks for it.

        It joins no sooner than a second after it has joined, and a hand-over takes two rounds. The answer to any
        request for metadata lifts that until it has joined the next time (rd_kafka_parse_Metadata: rkcg_join_intvl).
        """
        with contextlib.suppress(KafkaException):  # then it takes the second
            self._consumer.list_topics(self._topic, timeout=_LIFT_S)

    @property
    def away_s(self) -> float:
        """For how many seconds no broker has answered; 0.0 where one has."""
        return self._polling.away_s

    def commit(self, positions: dict[int, Committed], *, wait: bool = False) -> None:
        """Mirror positions to the group. Only after the store has them: the mirror is never ahead.

        A refusal is logged and not raised, since the store is the truth; see `take_refused`.

        Args:
            positions: By partition, each with its stamp.
            wait: Whether to wait for the broker's answer, for at most some seconds.
        """
        offsets = [
            TopicPartition(self._topic, partition, committed.position, committed.metadata)
            for partition, committed in positions.items()
        ]
        if not offsets:
            return
        try:
            if not wait:
                self._consumer.commit(offsets=offsets, asynchronous=True)
            elif not bounded(lambda: self._consumer.commit(offsets=offsets, asynchronous=False), _LAST_WORD_S):
                log.warning("commit.unanswered", group=self._group, within_s=_LAST_WORD_S)
        except KafkaException as error:
            self._note_refusal(error.args[0], offsets)

    def committed(self, partitions: Iterable[int]) -> dict[int, Committed]:
        """Give the group's offsets of partitions, once no transaction is open that may change them.

        Raises:
            OffsetsPending: That takes too long; ask again.
            BrokerUnavailable, BrokerError: From Kafka.
        """
        wanted = [TopicPartition(self._topic, one) for one in partitions]
        try:
            found = self._consumer.committed(wanted, timeout=_ASK_S)
        except KafkaException as failure:
            error: KafkaError = failure.args[0]
            is_late = error.code() == KafkaError._TIMED_OUT
            why = offsets_pending(self._kafka, self._group, wanted) if is_late else None
            raise why or broker_error(error, f"read the offsets of group {self._group!r}", self._kafka) from failure
        for where in found:
            if where.error is not None:
                raise broker_error(where.error, f"read the offsets of group {self._group!r}", self._kafka)
        return {
            where.partition: Committed(position=where.offset, metadata=where.metadata or "")
            for where in found
            if where.offset >= 0
        }

    @property
    def membership(self) -> Any:
        """What a transaction is to say of this member, for the group to take its offsets (KIP-447); None where it is
        none just now: a group that is told of nobody may take them from anybody.
        """
        metadata = self._consumer.consumer_group_metadata()
        return metadata if self._consumer.memberid() else None  # in this order: it may be put out in between

    def take_refused(self) -> set[int]:
        """Give the partitions whose commit the group refused since last asked; a rebalance refuses them for a while."""
        refused, self._refused = self._refused, set()
        return refused

    def read(self, partition: int, position: int) -> None:
        """Read a partition from a position on; see `Polling.read`."""
        self._polling.read(partition, position)

    def stop_reading(self, partition: int) -> None:
        """Read a partition no further; it stays ours."""
        self._polling.stop_reading(partition)

    def close(self, *, stays: bool = False) -> None:
        """Leave the group. A broker that does not answer is not waited for: it drops this member by itself.

        Not by closing alone: librdkafka, closed while the group is being rebalanced, does not tell it, and the group
        waits for this member's session. Unsubscribed, it leaves at once, also while it waits for the others to join.

        Args:
            stays: Do not leave, where the group would know this member again: it is about to come back.
        """
        if not (self._instance and stays):
            deadline = time.monotonic() + _LAST_WORD_S
            self._statistics = ""
            while not self._may_leave() and time.monotonic() < deadline:
                self._consumer.poll(_JOIN_S)
            if self._instance or self._may_leave():
                self._leave(deadline)
        if not self._polling.close(_LAST_WORD_S):
            log.warning("group.leave_unanswered", group=self._group, within_s=_LAST_WORD_S)

    def _leave(self, deadline: float) -> None:
        try:
            self._consumer.unsubscribe()
            while self._consumer.memberid() and time.monotonic() < deadline:  # which it forgets as it leaves
                self._consumer.poll(_JOIN_S)
        except KafkaException as error:  # somebody else has joined as this member, so there is nothing to leave
            log.debug("group.not_left", group=self._group, why=error.args[0].str())

    # Called by librdkafka from within poll. What is raised here would be lost on the way through C, so it is
    # kept and raised by poll itself.

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # Nothing is assigned to the client before it is to be read. Without this call it would be at once.
        consumer.incremental_assign([])
        self._has_joined = True
        try:
            self._listener.assigned([where.partition for where in partitions])
        except BaseException as error:  # noqa: BLE001
            self._polling.failure = error

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._drop(partitions, self._listener.revoked)

    def _on_lost(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._drop(partitions, self._listener.lost)

    def _drop(self, partitions: list[TopicPartition], tell: Any) -> None:
        try:
            tell([where.partition for where in partitions])
        except BaseException as error:  # noqa: BLE001
            self._polling.failure = error
        self._polling.forget(partitions)

    def _on_statistics(self, statistics: str) -> None:
        self._statistics = statistics

    def _may_leave(self) -> bool:
        """Say whether the group knows this member, and nothing of a rebalance waits to be done here."""
        if not self._statistics or not self._consumer.memberid():
            return False
        return orjson.loads(self._statistics).get("cgrp", {}).get("join_state") in _LEAVABLE

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        failed = error or next((where.error for where in offsets if where.error is not None), None)
        if failed is not None:
            self._note_refusal(failed, offsets)

    def _note_refusal(self, error: KafkaError, offsets: list[TopicPartition]) -> None:
        partitions = [where.partition for where in offsets]
        self._refused.update(partitions)
        self.refusals += 1
        log.warning("commit.refused", group=self._group, partitions=partitions, error=error.name(), why=error.str())


class _NewComer:
    """Waits for its first partitions, and does nothing with them."""

    def __init__(self) -> None:
        self.is_in = False

    def assigned(self, partitions: Sequence[int]) -> None:  # noqa: ARG002
        """See Listener."""
        self.is_in = True

    def revoked(self, partitions: Sequence[int]) -> None:
        """See Listener."""

    def lost(self, partitions: Sequence[int]) -> None:
        """See Listener."""


def leave_for(store: KafkaEventStore, group: str, instance: str, session_timeout_s: float) -> None:
    """Leave a group for a static member that is gone for good, so that its partitions need not wait for its session.

    Kafka has no call for it that librdkafka has. So the group is joined as that member, and then left.

    Args:
        store: The log.
        group: The group.
        instance: The member's `group.instance.id`.
        session_timeout_s: As it had.
    """
    comer = _NewComer()
    subscription = Subscription(
        store, group, comer, client_id=f"leaves-for-{instance}", session_timeout_s=session_timeout_s, instance=instance
    )
    deadline = time.monotonic() + _LAST_WORD_S
    try:
        while not comer.is_in and time.monotonic() < deadline:
            subscription.poll(_JOIN_S)
    finally:
        subscription.close()
