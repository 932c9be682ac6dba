"""Writing records together with the positions of what they were read from: all of it, or nothing (KIP-98, KIP-447)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from streams.calls import QUIET, broker_error
from streams.config import KafkaSettings
from streams.data.polling import bounded
from streams.delivery import PRODUCER_SETTINGS
from streams.denied import Need, is_denial
from streams.errors import BrokerUnavailable
from streams.log import get_logger

__all__ = ["Transactions", "Undone"]

log = get_logger(__name__)

_UNHEARD = logging.getLogger("refold.unheard")
_CALL_S = 5.0
_TRANSACTION_S = 10.0
"""After this the broker aborts a transaction whose writer is gone: so long nobody reads past it. One that is aborted
because its writer was slow is done again."""
_HANGS_S = 10.0
"""Longer than any answer takes that comes at all."""
_ROOM_S = 0.05


class Undone(Exception):
    """Nothing of the transaction was written, as far as anybody knows: what was read is to be read again, from the
    positions that the group has."""


class Transactions:
    """One writer's transactions, one after the other.

    Not thread-safe: one thread writes, commits and closes.

    Args:
        kafka: Where Kafka is.
        name: The writer's transactional.id: whoever begins by the same name ends what this one has begun.
        topic: What is written to.
    """

    def __init__(self, kafka: KafkaSettings, name: str, topic: str) -> None:
        self._kafka = kafka
        self._name = name
        self._topic = topic
        self._producer: Producer | None = None
        self.is_open = False
        """Whether something was written that is not committed."""

    def take_over(self) -> None:
        """End what was begun by this name before, by a process that is gone: nobody reads past it until then.

        Raises:
            BrokerUnavailable, BrokerError: From Kafka.
        """
        with contextlib.suppress(Undone):  # it is done before the first record, too
            self._ready()

    def write(self, key: bytes, value: bytes | None, headers: list[tuple[str, bytes | None]], time_ms: int) -> None:
        """Write a record, in a transaction that is begun for it where none is.

        Raises:
            Undone: The transaction is lost.
            BrokerUnavailable, BrokerError: From Kafka.
        """
        if not self.is_open:
            self._begin()
        assert self._producer is not None
        while True:
            try:
                self._producer.produce(self._topic, value, key, headers=headers, timestamp=time_ms)
                break
            except BufferError:
                self._producer.poll(_ROOM_S)
            except KafkaException as failure:
                self._lost(failure, f"write to topic {self._topic!r}")

    def commit(self, positions: Sequence[TopicPartition], group: Any) -> None:
        """Have what was written be there for readers, and the positions be the group's.

        1. Send the positions: the group refuses them where this member is none of its own any more.
        2. Commit. Whoever dies in between leaves nothing: the broker aborts it.

        Args:
            positions: By partition of what was read, where to go on.
            group: The metadata of the consumer's membership.

        Raises:
            Undone: The transaction is lost.
            BrokerUnavailable, BrokerError: From Kafka.
        """
        if not self.is_open:
            self._begin()
        producer = self._producer
        assert producer is not None
        # Step 1
        self._call(lambda: self._send(producer, positions, group), "commit positions")
        # Step 2
        self._call(lambda: producer.commit_transaction(_CALL_S), f"commit to topic {self._topic!r}")
        self.is_open = False

    def _send(self, producer: Producer, positions: Sequence[TopicPartition], group: Any) -> None:
        """Send positions; give the producer up where that hangs.

        librdkafka may wait for ever for a coordinator that it knew before the brokers were away, whatever time it is
        given (confluentinc/librdkafka#5456, #5511, as of 2.16). Another producer asks for it anew.
        """

        def call() -> None:
            producer.send_offsets_to_transaction(list(positions), group, _CALL_S)

        if not bounded(call, _HANGS_S):
            self._drop()
            raise Undone(f"Kafka has not answered for {_HANGS_S:g} s to which positions are to be committed")

    def abort(self) -> None:
        """Have nothing of the transaction be there."""
        if self.is_open and self._producer is not None:
            self.is_open = False
            with contextlib.suppress(KafkaException):
                self._producer.abort_transaction(_CALL_S)
                return
            self._drop()

    def close(self) -> None:
        """Abort what is open, and let go."""
        self.abort()
        self._drop()

    def _begin(self) -> None:
        producer = self._ready()
        self._call(producer.begin_transaction, "begin a transaction")
        self.is_open = True

    def _ready(self) -> Producer:
        if self._producer is None:
            producer = self._producer = self._made()
            self._call(lambda: producer.init_transactions(_CALL_S), "begin to write in transactions")
        return self._producer

    def _made(self) -> Producer:
        config: dict[str, Any] = {
            **PRODUCER_SETTINGS,
            "linger.ms": 5,
            # One that was removed with its generation stays so, whoever wakes late.
            "allow.auto.create.topics": False,
            "queue.buffering.max.kbytes": 16 << 10,
            "transactional.id": self._name,
            "transaction.timeout.ms": int(_TRANSACTION_S * 1000),
            "message.max.bytes": 1_000_000_000,  # the topic says what is too large
            "reconnect.backoff.max.ms": 500,
            "retry.backoff.max.ms": 200,
            "log_level": QUIET,
            "error_cb": _told_by_calls,
        }
        return Producer(self._kafka.client(**config), logger=_UNHEARD)

    def _call(self, call: Callable[[], None], doing: str) -> None:
        """Make one of a transaction's calls, and again for as long as brokers may be away."""
        deadline = time.monotonic() + self._kafka.outage_limit_s
        while True:
            try:
                return call()
            except KafkaException as failure:
                error: KafkaError = failure.args[0]
                if error.retriable() and not error.txn_requires_abort():
                    if time.monotonic() < deadline:
                        continue  # on the same producer, which knows how far it is
                    raise BrokerUnavailable(
                        f"Kafka at {self._kafka.bootstrap_servers} did not let refold {doing} for "
                        f"{self._kafka.outage_limit_s:g} s: {error.str()}. What was committed is kept."
                    ) from failure
                self._lost(failure, doing)

    def _lost(self, failure: KafkaException, doing: str) -> None:
        """Give a transaction up.

        Raises:
            Undone: It may be done again.
            AccessDenied: It may not.
        """
        error: KafkaError = failure.args[0]
        if is_denial(error):
            raise broker_error(error, doing, self._kafka, self._needs()) from failure
        if error.txn_requires_abort():
            self.abort()
        else:  # fenced, or worse: this producer writes nothing any more
            self._drop()
        raise Undone(f"refold could not {doing}: {error.name()}: {error.str()}") from failure

    def _drop(self) -> None:
        self.is_open, self._producer = False, None

    def _needs(self) -> list[Need]:
        return [
            Need("Write", "topic", self._topic),
            Need("Write", "transactional-id", self._name),
            Need("Describe", "transactional-id", self._name),
        ]


def _told_by_calls(_error: KafkaError) -> None:
    """Pass over what the calls themselves report."""
