"""One load's producer and its accounts: what was handed over, what was delivered, and where to go on."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streams.calls import QUIET, broker_error
from streams.config import KafkaSettings
from streams.errors import BrokerUnavailable, CqrsError, EventError, text_of
from streams.seen import identity

__all__ = ["Delivery", "LoadInterrupted", "Loaded"]

_QUEUE_RECORDS = 100_000

PRODUCER_SETTINGS: dict[str, str | int | float | bool] = {
    "enable.idempotence": True,  # a retry neither repeats nor reorders records
    "acks": "all",
    "compression.type": "lz4",
    "linger.ms": 50,
    "batch.size": 1 << 20,
    "batch.num.messages": 50_000,
    "queue.buffering.max.messages": _QUEUE_RECORDS,
    "queue.buffering.max.kbytes": 64 << 10,
    # Java's partitioner for records with a key. librdkafka's own default is CRC32, by which a stream that a
    # Java or a Faust producer also writes to would be in two partitions.
    "partitioner": "murmur2_random",
    "delivery.report.only.error": True,
}
"""How the producer is set up; the user's own settings (REFOLD_KAFKA) win over these."""

_LOOK_EVERY = 1000
"""Records between two looks at the delivery reports."""
_FRAMING_BYTES = 100
"""More than Kafka adds to a batch of one record (61 bytes, and about 20 for the record)."""
_LAST_WORD_S = 4.0
"""How long acknowledgements are waited for once the load is interrupted."""
_UNSURE = (KafkaError._PURGE_INFLIGHT, KafkaError._MSG_TIMED_OUT)
"""Errors that leave open whether the broker has written the record."""
_PURGED = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was written and acknowledged."""

    topic: str
    records: int
    bytes: int
    """Keys and values, before compression."""
    seconds: float
    """From the first record to the last acknowledgement."""


class LoadInterrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended the load. What was handed over by then is delivered; the message says how far it got."""


class Delivery:
    """One load's producer and its accounts."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        limit_bytes: int,
        source: str,
        line: Callable[[], int] | None,
    ) -> None:
        config: dict[str, Any] = settings.client(
            **PRODUCER_SETTINGS, log_level=QUIET, **{"message.max.bytes": max(1000, limit_bytes)}
        )
        config["on_delivery"] = self._failed
        self.producer = Producer(config)
        self.settings = settings
        self.topic = topic
        self.limit_bytes = limit_bytes
        self.source = source
        self.line = line
        self.started = time.monotonic()
        self.sent = 0
        self.bytes = 0
        self.last_line = 0
        self.failed = 0
        self.unsure = 0
        self.refusal: tuple[KafkaError, int] | None = None
        """The first error that is not a consequence of our dropping the queue, and its record's hash."""
        # A callback for each record could hold its line, and halves the rate. So the lines of the latest
        # records are kept, as many as the producer's queue can hold, and a record that fails is looked up.
        self._latest: deque[tuple[int, int]] = deque(maxlen=int(config["queue.buffering.max.messages"]) + 1)
        """Hash and line of the records handed over last, in order."""
        self._lost: list[int] = []
        """Hash of each record that failed."""
        self._sending = False
        self._interrupted = False

    @contextmanager
    def interrupts_between_records(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM raise while a record is being read, and wait while one is being handed over."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            self._interrupted = True
            if not self._sending:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def hand_over(
        self,
        records: Iterable[tuple[str, dict[str, Any]]],
        progress: Callable[[int], None] | None,
        seen: Mapping[tuple[str, Any], str],
        warn: Callable[[str], None] | None,
    ) -> None:
        """Give the records to the producer; returns early after a refusal."""
        dumps, produce, topic, remember = orjson.dumps, self.producer.produce, self.topic, self._latest.append
        room = self.limit_bytes - _FRAMING_BYTES
        for stream, envelope in records:
            self._sending = True
            number = self.sent + 1
            line = self.line() if self.line is not None else number
            key = stream.encode()
            value = dumps(envelope)
            size = len(key) + len(value)
            if size > room:
                raise self._too_large(line, size, value)
            if seen and warn is not None and (where := seen.get(identity(stream, envelope, value))):
                warn(self._seen_before(line, stream, envelope, where))
                seen = {}
            digest = hash((key, value))
            while True:
                try:
                    produce(topic, value, key)
                    break
                except BufferError:
                    self._make_room()
                except KafkaException as error:  # the producer itself has given up, for good
                    self.refusal = self.refusal or (error.args[0], digest)
                    self._lost.append(digest)
                    self.failed += 1
                    break
                if self.refusal is not None:
                    return
            remember((digest, line))
            self.sent = number
            self.bytes += size
            self.last_line = line
            self._sending = False
            if self._interrupted:
                raise KeyboardInterrupt
            if not number % _LOOK_EVERY:
                self.producer.poll(0)
                if progress is not None:
                    progress(number)
            if self.refusal is not None:
                return

    def drain(self, *, drop: bool = False) -> None:
        """Wait until the producer's queue is empty.

        Raises:
            BrokerUnavailable: Nothing was acknowledged for `request_timeout_s`.
        """
        dropped = False
        while waiting := len(self.producer):
            if (drop or self.refusal is not None) and not dropped:
                self.producer.purge(in_queue=True, in_flight=drop)
                dropped = True
            self._wait_below(waiting, self.producer.flush)  # which also sends what lingers

    def conclude(self, ended_by: BaseException | None) -> Loaded:
        """Give the sum, or raise what ended the load with how far it got."""
        loaded = Loaded(
            topic=self.topic,
            records=self.sent - self.failed,
            bytes=self.bytes,
            seconds=time.monotonic() - self.started,
        )
        if self.refusal is not None and not isinstance(ended_by, BrokerUnavailable):
            raise self._refused(*self.refusal)
        if ended_by is None:
            return loaded
        if isinstance(ended_by, KeyboardInterrupt):
            raise LoadInterrupted(f"Interrupted. {self._how_far(self.last_line + 1)}") from None
        if isinstance(ended_by, BrokerUnavailable):
            raise BrokerUnavailable(f"{ended_by} {self._how_far(self.last_line + 1)}", topic=self.topic) from ended_by
        bad_line = self.line() if self.line is not None else self.sent + 1
        raise EventError(
            f"{ended_by} Nothing from this record on was sent; correct it. {self._how_far(bad_line)}",
            topic=self.topic,
        ) from ended_by

    def _make_room(self) -> None:
        self._wait_below(len(self.producer), self.producer.poll)
        if self._interrupted:
            raise KeyboardInterrupt  # the record at hand was not taken, and is not counted

    def _wait_below(self, waiting: int, wait: Callable[[float], object]) -> None:
        limit_s = self.settings.request_timeout_s
        if self._interrupted:
            limit_s = min(limit_s, _LAST_WORD_S)
        deadline = time.monotonic() + limit_s
        while len(self.producer) >= waiting:
            wait(0.1)
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"Kafka at {self.settings.bootstrap_servers} has acknowledged nothing for {limit_s:g} s."
                )

    def _failed(self, error: KafkaError | None, message: Message) -> None:
        """Take a delivery report: librdkafka's, of a record that it has given up."""
        if error is None:
            return
        digest = hash((message.key(), message.value()))
        self.failed += 1
        self.unsure += error.code() in _UNSURE
        self._lost.append(digest)
        if error.code() not in _PURGED and self.refusal is None:
            self.refusal = (error, digest)

    def _positions(self) -> dict[int, tuple[int, int]]:
        """Give number and line of the latest records by hash; of equal ones, of the first."""
        first = self.sent - len(self._latest) + 1
        found: dict[int, tuple[int, int]] = {}
        for number, (digest, line) in enumerate(self._latest, first):
            found.setdefault(digest, (number, line))
        return found

    def _refused(self, error: KafkaError, digest: int) -> CqrsError:
        position = self._positions().get(digest)
        # A record of a partition that stalled while others went on may be older than what is remembered.
        where = f"{self.source}:{position[1]}" if position else f"a record before {self.source}:{self._latest[0][1]}"
        how_far = self._how_far(self.last_line + 1)
        if error.code() == KafkaError._MSG_TIMED_OUT:
            text = f"Kafka at {self.settings.bootstrap_servers} did not acknowledge {where} in time. {how_far}"
            return BrokerUnavailable(text, topic=self.topic)
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return EventError(
                f"{where}: topic {self.topic!r} refused the record as too large. Shorten it, or raise the "
                f"topic's max.message.bytes. {how_far}",
                topic=self.topic,
            )
        told = broker_error(error, f"write {where} to topic {self.topic!r}", self.settings)
        return type(told)(f"{told} {how_far}", topic=self.topic)

    def _seen_before(self, line: int, stream: str, envelope: dict[str, Any], where: str) -> str:
        what = f"with id {envelope['id']!r}" if "id" in envelope else "just like it"
        return (
            f"{self.source}:{line}: topic {self.topic!r} holds an event {what} of stream {stream!r}, at {where}: "
            "events with these ids may be in the topic already. What is there twice is folded twice."
        )

    def _too_large(self, line: int, size: int, value: bytes) -> EventError:
        return EventError(
            f"{self.source}:{line}: the record has {size:,} bytes, and topic {self.topic!r} takes "
            f"{self.limit_bytes:,} (max.message.bytes, framing included). Value: {text_of(value)}. "
            "Shorten it, or raise the topic's limit."
        )

    def _how_far(self, next_line: int) -> str:
        """Say what was delivered and where to go on.

        Args:
            next_line: The first line that was not handed over; records that failed come before it.
        """
        delivered = self.sent - self.failed
        if not self.failed:
            return f"{delivered:,} records are delivered; --from-line {next_line} goes on behind them."
        unsure = f" ({self.unsure:,} of them may have been written all the same)" if self.unsure else ""
        text = f"{delivered:,} records are delivered and {self.failed:,} are not{unsure}"
        positions = self._positions()
        if any(digest not in positions for digest in self._lost):
            return f"{text}; the first of these comes before line {self._latest[0][1]}."
        number, line = min(positions[digest] for digest in self._lost)
        behind = delivered - (number - 1)
        repeats = f", and repeats {behind:,} that are" if behind else ""
        return f"{text}; --from-line {line} goes on at the first that is not{repeats}."
