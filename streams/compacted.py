"""A compacted topic as a durable map, which several processes change one after the other."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from streams.calls import QUIET, broker_error
from streams.cluster import Cluster
from streams.denied import Need
from streams.errors import BrokerUnavailable, ConfigError
from streams.log import get_logger

__all__ = ["CompactedTopic"]

log = get_logger(__name__)

_UNHEARD = logging.getLogger("refold.unheard")
"""Where librdkafka says that a writer is fenced, as if that were a disaster; the calls say so too."""
_UNHEARD.addHandler(logging.NullHandler())
_UNHEARD.propagate = False

_CONFIG = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1", "segment.ms": str(60 * 60 * 1000)}
_TRANSACTION_S = 60.0
"""After this the broker aborts a writer's open transaction. 10 s have lost writes while brokers restarted."""
_CALL_S = 5.0
_POLL_S = 0.1
_JITTER_S = 0.2
_ENSURED_S = 30.0
_TOKEN = "refold-write"
_AT_ONCE = {"enable.sparse.connections": False}
"""A client that is made for one call connects to every broker at once. As it connects only where it must, librdkafka
waits for 50 ms first, and half a second more where that meets a broker's first answer (2.16)."""
_FENCED = {
    KafkaError._FENCED,
    KafkaError._FATAL,  # said of every call after the one that was told the cause
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.INVALID_TXN_STATE,
    KafkaError.CONCURRENT_TRANSACTIONS,
}
"""What a writer is told once another one has begun."""


class _Again(Exception):
    """The write is to be begun anew: somebody else came in between, or the transaction was aborted."""


class CompactedTopic:
    """Keys and values in one partition, of which Kafka keeps the last value of each key.

    Args:
        cluster: Where it is.
        name: The topic's. It is made at the first write.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self._cluster = cluster
        self._settings = cluster.settings
        self._ensured_s = -_ENSURED_S

    def read(self) -> dict[str, bytes]:
        """Give the last value of each key, as committed; nothing where there is no such topic.

        Raises:
            BrokerUnavailable, BrokerError: From Kafka.
        """
        return {key: message.value() for key, message in self._read().items()}

    def update(self, key: str, change: Callable[[bytes | None], bytes], *, limit_s: float | None = None) -> bytes:
        """Change one value, so that of several who do so at once each sees what the one before has written.

        1. Begin as the key's only writer, by a transactional id of its own (KIP-98): whoever had begun before can
           write no more.
        2. Read the topic to its end, and let `change` decide.
        3. Write in a transaction. Whoever is told by then that another one has begun starts over.

        A crash anywhere leaves the old or the new value.

        Args:
            key: Which one.
            change: Gives the new value for the old one (None: there is none). It may be called again, with a newer one.
            limit_s: How long to go on trying; by default for longer than a stopped writer's transaction may stay open.

        Returns:
            The value as it is now; where `change` gave what it was given, nothing was written.

        Raises:
            Whatever `change` raises; nothing was written.
            ConfigError: The topic is not compacted, or has several partitions.
            BrokerUnavailable, BrokerError: From Kafka. It may be unknown then whether the value was written.
        """
        if limit_s is None:
            limit_s = _TRANSACTION_S + self._settings.request_timeout_s
        deadline = time.monotonic() + limit_s
        self._ensure()
        tokens: set[bytes] = set()
        while True:
            try:
                return self._write(key, change, tokens, deadline)
            except _Again as again:
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"{key!r} of topic {self.name!r} could not be written: {again}. Other processes write it all "
                        "the time, or the brokers do not answer; try again."
                    ) from again
                log.debug("compacted.again", topic=self.name, key=key, why=str(again))
                time.sleep(random.uniform(0, _JITTER_S))

    def _write(self, key: str, change: Callable[[bytes | None], bytes], tokens: set[bytes], deadline: float) -> bytes:
        producer = Producer(
            self._settings.client(
                **{
                    "transactional.id": f"{self.name}/{key}",
                    "transaction.timeout.ms": int(_TRANSACTION_S * 1000),
                    **_AT_ONCE,
                    "reconnect.backoff.max.ms": 500,
                    "retry.backoff.max.ms": 200,
                    "error_cb": _told_by_calls,
                }
            ),
            logger=_UNHEARD,
        )
        # Step 1
        self._call(producer, lambda: producer.init_transactions(_CALL_S), deadline)
        # Step 2
        found = self._read(deadline).get(key)
        before = None if found is None else found.value()
        if found is not None and any(value in tokens for name, value in found.headers() or () if name == _TOKEN):
            return bytes(found.value())  # written after all, by a transaction of ours whose end we were not told
        after = change(before)
        if after == before:
            return after
        # Step 3
        token = secrets.token_hex(8).encode()
        tokens.add(token)
        self._call(producer, producer.begin_transaction, deadline)
        producer.produce(self.name, key=key.encode(), value=after, headers=[(_TOKEN, token)])
        self._call(producer, lambda: producer.commit_transaction(_CALL_S), deadline)
        return after

    def _call(self, producer: Producer, call: Callable[[], None], deadline: float) -> None:
        """Make one of a transaction's calls, again where that may help.

        Raises:
            _Again: Another writer has begun, or the transaction is lost.
            BrokerUnavailable, BrokerError: It does not help.
        """
        while True:
            try:
                return call()
            except KafkaException as failure:
                error: KafkaError = failure.args[0]
                if error.retriable() and time.monotonic() < deadline:
                    continue  # on the same producer, which knows how far it is
                if error.txn_requires_abort():
                    with contextlib.suppress(KafkaException):
                        producer.abort_transaction(_CALL_S)
                    raise _Again(error.str()) from failure
                if error.code() in _FENCED:
                    raise _Again(error.str()) from failure
                raise broker_error(error, f"write to topic {self.name!r}", self._settings, self._needs()) from failure

    def _needs(self) -> list[Need]:
        writers = f"{self.name}/"  # a prefix
        return [
            Need("Write", "topic", self.name),
            Need("Write", "transactional-id", writers),
            Need("Describe", "transactional-id", writers),
        ]

    def _ensure(self) -> None:
        """See that the topic is there, and is one that keeps what is written; not at every write."""
        if time.monotonic() - self._ensured_s < _ENSURED_S:
            return
        if self.name not in self._cluster.topics():
            self._cluster.create_topic(self.name, 1, _CONFIG)
        self._cluster.topic(self.name)
        policy = self._cluster.topic_config(self.name).get("cleanup.policy", "")
        partitions = self._cluster.topics().get(self.name, 1)
        if policy != "compact" or partitions != 1:
            raise ConfigError(
                f"Topic {self.name!r} has cleanup.policy={policy} and {partitions} partitions, and what is kept in it "
                "must stay: it needs cleanup.policy=compact and one partition. Name another one (--registry), or set "
                f"it (`kafka-configs.sh --alter --topic {self.name} --add-config cleanup.policy=compact`)."
            )
        self._ensured_s = time.monotonic()

    def _read(self, deadline: float | None = None) -> dict[str, Message]:
        """Read up to the end as it is now, also past the open transactions of other keys' writers."""
        if self.name not in self._cluster.topics():
            return {}
        end = self._cluster.high_watermark(self.name, 0)
        found: dict[str, Message] = {}
        deadline = deadline or time.monotonic() + _TRANSACTION_S + self._settings.request_timeout_s
        # Transaction markers at the end are passed by a fetch that finds nothing.
        with closing(self._consumer(**_AT_ONCE, **{"fetch.wait.max.ms": 5})) as consumer:
            position = 0
            while position < end:
                message = consumer.poll(_POLL_S)
                if message is not None:
                    position = max(position, self._take(message, found))
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"Topic {self.name!r} could not be read from {position} to its end at {end}: a broker does not "
                        "answer, or a transaction in it stays open. Try again."
                    )
        return found

    def _take(self, message: Message, found: dict[str, Message]) -> int:
        error: KafkaError | None = message.error()
        if error is None:
            key = (message.key() or b"").decode(errors="replace")
            found.pop(key, None)
            if message.value() is not None:
                found[key] = message
            return int(message.offset()) + 1
        if error.code() == KafkaError._PARTITION_EOF:
            return int(message.offset())
        if error.fatal() or not (error.retriable() or error.code() < 0):
            needs = [Need("Read", "topic", self.name)]
            raise broker_error(error, f"read topic {self.name!r}", self._settings, needs)
        return 0

    def _consumer(self, **settings: Any) -> Consumer:
        consumer = Consumer(
            self._settings.client(
                **{
                    "group.id": "unused",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "enable.partition.eof": True,
                    "isolation.level": "read_committed",
                    "log_level": QUIET,
                    "error_cb": _told_by_calls,
                    **settings,
                }
            )
        )
        consumer.assign([TopicPartition(self.name, 0, 0)])
        return consumer

    def follow(self) -> Generator[tuple[str, bytes] | None, None, None]:
        """Yield each key's values as they are written, from those that there are; None where nothing came for a while.

        Endless; close the generator to stop. A broker that is away is waited for.
        """
        with closing(self._consumer()) as consumer:
            while True:
                message = consumer.poll(_POLL_S)
                if message is None or message.error() is not None:
                    yield None
                elif message.value() is not None:
                    yield message.key().decode(errors="replace"), message.value()


def _told_by_calls(_error: KafkaError) -> None:
    """Pass over what the calls themselves report."""
