"""Events into a topic: fast, in order, and every one accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from streams.cluster import Cluster
from streams.config import KafkaSettings
from streams.delivery import Delivery, Loaded, LoadInterrupted
from streams.errors import BrokerUnavailable, EventError, TopicChanged, TopicNotFound
from streams.seen import seen_at_the_ends

__all__ = ["LoadInterrupted", "Loaded", "Loader"]


class Loader:
    """Writes events to one topic with an idempotent producer.

    The events of a stream stay in their order. Kafka's own timestamp of a record is the time of writing and
    not the event's: retention goes by it, and would delete events of years ago at once.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self.settings = settings
        self.topic = topic
        self._cluster = Cluster(settings)

    def create_topic(self, partitions: int | None = None) -> None:
        """Create the topic unless it exists.

        Args:
            partitions: How many; None leaves it to the broker's default, and takes a topic as it is.

        Raises:
            TopicChanged: It exists with another number of partitions.
            BrokerUnavailable: Nobody answered.
            BrokerError: The broker refused.
        """
        try:
            existing = self._cluster.topic(self.topic)
        except TopicNotFound:
            self._cluster.create_topic(self.topic, -1 if partitions is None else partitions)
            self._wait_for_topic()
            return
        if partitions is not None and existing.partitions != partitions:
            raise TopicChanged(
                f"Topic {self.topic!r} exists with {existing.partitions} partitions, not {partitions}. "
                "Leave --partitions out to load into it as it is, or name another topic.",
                topic=self.topic,
            )

    def load(
        self,
        records: Iterable[tuple[str, dict[str, Any]]],
        *,
        source: str = "record",
        line: Callable[[], int] | None = None,
        progress: Callable[[int], None] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> Loaded:
        """Write all records, and wait until the brokers have acknowledged each.

        1. Ask for the topic, its size limit, and the events at its ends.
        2. Encode each record and hand it to the producer, until the records end or something ends them: bad
           input, a broker's refusal, a signal, or a full queue that nobody takes from for `request_timeout_s`.
        3. Wait for what was handed over. After a refusal, drop what is queued behind it first.
        4. Add up what was delivered, and from which line on to repeat if not all was.

        In the main thread it takes SIGINT and SIGTERM over for its own time, so that a record is handed over and
        counted, or neither.

        Args:
            records: (stream, envelope) of each; a `projections.datasets.DemoEvent` is one. An EventError that
                iterating raises is bad input; any other exception is raised on as it is, once what was handed
                over before it is delivered.
            source: What the records come from, written before their line in messages.
            line: Gives the line of the record that `records` yielded last; without it, they count from 1.
            progress: Called at every thousandth record with the number handed over.
            warn: Called, once, with what there is to say where an event at the front or at the end of the topic is one
                of these: they may have been loaded before. Not given, nobody looks.

        Raises:
            TopicNotFound: There is no such topic.
            EventError: Bad input, or a record over the size limit; all before it is delivered, nothing after.
            BrokerUnavailable: Nobody answered or acknowledged anything for `request_timeout_s`.
            BrokerError: A broker refused a record.
            LoadInterrupted: SIGINT or SIGTERM.
        """
        # Step 1
        topic = self._cluster.topic(self.topic, advice="Give --create to make it, with --partitions N for so many.")
        seen = {} if warn is None else seen_at_the_ends(self._cluster, topic)
        limit = int(self._cluster.topic_config(self.topic)["max.message.bytes"])
        limit = int(self.settings.kafka.get("message.max.bytes", limit))
        run = Delivery(self.settings, self.topic, limit, source, line)
        # Step 2
        ended_by: BaseException | None = None
        try:
            with run.interrupts_between_records():
                run.hand_over(records, progress, seen, warn)
        except (EventError, BrokerUnavailable, KeyboardInterrupt) as error:
            ended_by = error
        except BaseException:
            run.drain()
            raise
        # Step 3
        try:
            run.drain(drop=isinstance(ended_by, BrokerUnavailable))
        except BrokerUnavailable as error:
            ended_by = error
            run.drain(drop=True)
        # Step 4
        return run.conclude(ended_by)

    def _wait_for_topic(self) -> None:
        # One broker has created it; the one that is asked next may not know yet.
        deadline = time.monotonic() + self.settings.request_timeout_s
        while True:
            try:
                self._cluster.topic(self.topic)
            except TopicNotFound:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return
