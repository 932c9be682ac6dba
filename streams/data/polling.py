"""A consumer of the event topic: records in slices, and what becomes of its brokers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streams.calls import broker_error
from streams.data.codec import Record
from streams.data.source import CLIENT, KafkaEventStore
from streams.denied import Need
from streams.errors import BrokerUnavailable, TopicNotFound
from streams.log import get_logger

__all__ = ["Polling", "Slice", "bounded", "end_where_closing_hangs"]

log = get_logger(__name__)

_BATCH = 500
"""Records taken at once: enough to make the call cheap, few enough for the processor's cache."""
_BATCH_S = 0.25
"""How long user code may take for one batch; the batch shrinks to keep to it, so that the group is polled."""
_PROBE_S = 2.0
_HANGS_S = 10.0
_ends_hung = False
_SEEMS_AWAY = (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT)


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive records of one partition, or its end, or that it cannot be read."""

    partition: int
    records: list[Record]
    end: int | None = None
    """The position after everything that the partition has now, transaction markers included."""
    refused: str | None = None
    """The broker would not read from our position on, and why; nothing more is read until `Polling.read`."""


class Polling:
    """Reads partitions of one topic, each from the position that it is told.

    Not thread-safe: one thread polls, reads and closes.

    Args:
        store: The log.
        config: The client's settings beyond those that every reader of events has.
    """

    def __init__(self, store: KafkaEventStore, config: dict[str, Any]) -> None:
        self._topic = store.topic
        self._kafka = store.kafka
        self.failure: BaseException | None = None
        """What is to be raised by the next `poll`: what is raised in a callback would be lost on the way through C."""
        self._reading: set[int] = set()
        self._needs = [Need("Read", "topic", self._topic), Need("Read", "group", str(config.get("group.id", "")))]
        self._away_since: float | None = None
        self._is_away = False
        self._probed = 0.0
        self._batch = 100
        self._polled: tuple[float, int] | None = None
        self.consumer = Consumer({**store.kafka.client(**CLIENT), **config, "error_cb": self._on_error})

    def poll(self, timeout_s: float, room: int | None = None) -> list[Slice]:
        """Give what is there, in each partition's order; wait for the first record only.

        Args:
            timeout_s: How long to wait for it.
            room: The largest number of records to give.

        Raises:
            BrokerUnavailable: No broker was reachable for `outage_limit_s`.
            TopicNotFound: The topic was deleted.
            CqrsError: Whatever a callback raised.
        """
        self._resize_batch()
        limit = self._batch if room is None else min(self._batch, room)
        try:
            first = self.consumer.poll(timeout_s)
            messages = [] if first is None else [first]
            if messages and limit > 1:
                messages += self.consumer.consume(limit - 1, 0)
        except KafkaException as error:
            raise broker_error(error.args[0], f"read topic {self._topic!r}", self._kafka, self._needs) from error
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self._check_outage()
        self._polled = (time.monotonic(), len(messages))
        return self._slices(messages)

    def _resize_batch(self) -> None:
        """Size the next batch by what the last one took, so that slow user code does not outlast the group."""
        if self._polled is not None and self._polled[1]:
            at_s, count = self._polled
            spent_s = time.monotonic() - at_s
            if spent_s > 0:
                self._batch = max(1, min(_BATCH, 2 * self._batch, int(_BATCH_S * count / spent_s)))

    def _slices(self, messages: list[Message]) -> list[Slice]:
        # Runs of one partition, in order. The usual batch is one run without errors, and is found to be by
        # calls that loop in C: this is per record of history.
        if messages and not any(map(Message.error, messages)):
            partitions = list(map(Message.partition, messages))
            if partitions.count(partitions[0]) == len(partitions):
                return [Slice(partitions[0], messages)]
        slices: list[Slice] = []
        for (partition, failed), run in groupby(messages, key=_partition_and_error):
            if not failed:
                slices.append(Slice(partition, list(run)))
            else:
                slices += [ended for message in run if (ended := self._end_of(message)) is not None]
        return slices

    def _end_of(self, message: Message) -> Slice | None:
        error: KafkaError = message.error()
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            return Slice(message.partition(), [], end=message.offset())
        if code == KafkaError._AUTO_OFFSET_RESET:
            return Slice(message.partition(), [], refused=f"{error.str()}, at {message.offset()}")
        if code in (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError._UNKNOWN_TOPIC,
            KafkaError._UNKNOWN_PARTITION,
        ):
            raise TopicNotFound(
                f"Topic {self._topic!r} is gone ({error.str()}). The state is kept as it was committed last.",
                topic=self._topic,
            )
        if error.fatal() or code == KafkaError._FATAL or not (error.retriable() or code < 0):
            raise broker_error(error, f"read topic {self._topic!r}", self._kafka, self._needs)
        log.warning("source.transient_error", topic=self._topic, error=error.str())
        return None

    def _check_outage(self) -> None:
        """Where a broker seems to be away, ask whether any answers; while none does, wait and say so."""
        now = time.monotonic()
        if self._away_since is None or now - self._probed < _PROBE_S:
            return
        try:
            self.consumer.list_topics(self._topic, timeout=1)
        except KafkaException:
            reached = False
        else:
            reached = True
        self._probed = time.monotonic()
        away_since = self._away_since
        if reached:
            if self._is_away:
                log.info("broker.back", bootstrap=self._kafka.bootstrap_servers, away_s=round(now - away_since, 1))
            self._away_since, self._is_away = None, False
        elif not self._is_away:
            self._is_away = True
            log.warning("broker.away", bootstrap=self._kafka.bootstrap_servers, limit_s=self._kafka.outage_limit_s)
        elif now - away_since > self._kafka.outage_limit_s:
            raise BrokerUnavailable(
                f"No Kafka broker at {self._kafka.bootstrap_servers} for {self._kafka.outage_limit_s:g} s "
                f"(REFOLD_OUTAGE_LIMIT_S), while folding {self._topic!r}. What was committed is kept; start again "
                "when the brokers are back."
            )

    @property
    def away_s(self) -> float:
        """For how many seconds no broker has answered; 0.0 where one has."""
        return time.monotonic() - self._away_since if self._is_away and self._away_since is not None else 0.0

    def read(self, partition: int, position: int) -> None:
        """Read a partition from a position on; where it was read already, anew.

        Not by seek, which a rebalance's resume that is still under way overrides: given up and taken on anew, a
        partition is read from the position given with it, and nothing that was fetched before comes out.
        """
        self.stop_reading(partition)
        self.consumer.incremental_assign([TopicPartition(self._topic, partition, position)])
        self._reading.add(partition)

    def stop_reading(self, partition: int) -> None:
        """Read a partition no further."""
        if partition in self._reading:
            self._reading.discard(partition)
            self.consumer.incremental_unassign([TopicPartition(self._topic, partition)])

    def forget(self, partitions: list[TopicPartition]) -> None:
        """Read partitions no further that the group has taken away; for use in its callback."""
        read = [where for where in partitions if where.partition in self._reading]
        self._reading.difference_update(where.partition for where in read)
        self.consumer.incremental_unassign(read)

    def close(self, limit_s: float) -> bool:
        """Close it, within a time; say whether that was enough.

        A revocation that comes while it is closed may never be answered by librdkafka, and Python's lock is held by
        whoever waits for that. In a process that only folds, the kernel ends it then: all is committed by now.
        """
        if _ends_hung:
            signal.setitimer(signal.ITIMER_REAL, limit_s + _HANGS_S)
        is_closed = bounded(self.consumer.close, limit_s)
        if _ends_hung and is_closed:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return is_closed

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in _SEEMS_AWAY:
            # Only the beginning of a suspicion: "all brokers down" is not always said, and one may be down of several.
            if self._away_since is None:
                self._away_since, self._probed = time.monotonic(), 0.0
        elif error.fatal():
            self.failure = broker_error(error, f"read topic {self._topic!r}", self._kafka, self._needs)
        else:
            log.debug("broker.error", error=error.name(), why=error.str())


def _partition_and_error(message: Message) -> tuple[int, bool]:
    return message.partition(), message.error() is not None


def end_where_closing_hangs() -> None:
    """Say that this process only folds: it may be ended (SIGALRM) where closing a consumer hangs."""
    global _ends_hung
    _ends_hung = True


def bounded(call: Callable[[], object], limit_s: float) -> bool:
    """Make a call that may block for as long as a broker is silent; say whether it ended in time.

    One that did not is left to a thread that does not keep the process alive.

    Raises:
        Whatever the call raises in time.
    """
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            ended.append(None)
        except BaseException as error:  # noqa: BLE001  (raised again by whoever waits)
            ended.append(error)

    thread = threading.Thread(target=run, name="refold-last-word", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not ended:
        return False
    if ended[0] is not None:
        raise ended[0]
    return True
