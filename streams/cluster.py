"""What refold asks of a Kafka cluster beside reading events: topics, offsets, groups."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from confluent_kafka import (
    OFFSET_INVALID,
    IsolationLevel,
    KafkaError,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import ConfigResource, NewPartitions, NewTopic, OffsetSpec, ResourceType

from streams.calls import MISSING
from streams.denied import Need
from streams.errors import BrokerUnavailable, TopicNotFound, at
from streams.groups import Groups
from streams.types import ClusterInfo, TopicInfo, Watermarks

__all__ = ["Cluster"]

_JUST_MADE_S = 0.5
"""How long after its making a broker may not know of a topic."""
_ASK_AGAIN_S = 0.1


class Cluster(Groups):
    """A cluster's admin interface. Every call blocks for at most `request_timeout_s`.

    Args:
        settings: Where the cluster is.

    Raises:
        ConfigError: From the constructor: a client setting is unknown or wrong.
        BrokerUnavailable: From every method: nobody answered.
        BrokerError: From every method: the broker refused.
    """

    def topic(self, name: str, *, advice: str | None = None) -> TopicInfo:
        """Describe a topic.

        Args:
            name: The topic.
            advice: What to do where there is none, for the message; by default, how to make and fill it.

        Raises:
            TopicNotFound: It does not exist; the message names near ones.
        """
        deadline = time.monotonic() + _JUST_MADE_S
        while True:
            described = self._calls.ask(
                f"describe topic {name!r}",
                lambda: self._calls.admin.describe_topics(
                    TopicCollection([name]), request_timeout=self._calls.timeout_s
                )[name],
                {KafkaError.UNKNOWN_TOPIC_OR_PART: MISSING, KafkaError.TOPIC_EXCEPTION: MISSING},
                needs=[Need("Describe", "topic", name)],
            )
            if described is not MISSING:
                break
            if time.monotonic() > deadline:
                raise self._no_topic(name, advice)
            time.sleep(_ASK_AGAIN_S)
        return TopicInfo(name=name, id=str(described.topic_id), partitions=len(described.partitions))

    def _no_topic(self, name: str, advice: str | None) -> TopicNotFound:
        existing = [topic for topic in self.topics() if not topic.startswith("__")]
        near = difflib.get_close_matches(name, existing, 3, 0.5)
        hint = f" Near names: {', '.join(near)}." if near else ""
        advice = advice or (
            f"Reading never creates a topic: `refold load FILE --topic {name} --create` makes and fills it."
        )
        return TopicNotFound(
            f"Topic {name!r} does not exist at {self.settings.bootstrap_servers}.{hint} {advice}", topic=name
        )

    def describe_cluster(self) -> ClusterInfo:
        """Describe the cluster."""
        found = self._calls.ask(
            "describe the cluster",
            lambda: self._calls.admin.describe_cluster(request_timeout=self._calls.timeout_s),
            needs=[Need("Describe", "cluster")],
        )
        return ClusterInfo(id=found.cluster_id, brokers=len(found.nodes))

    def topic_operations(self, name: str) -> frozenset[str] | None:
        """Name the operations on a topic that are allowed to us (KIP-430); None where the cluster does not say."""
        found = self._calls.ask(
            f"describe topic {name!r}",
            lambda: self._calls.admin.describe_topics(
                TopicCollection([name]), include_authorized_operations=True, request_timeout=self._calls.timeout_s
            )[name],
            needs=[Need("Describe", "topic", name)],
        )
        return (
            None if found.authorized_operations is None else frozenset(one.name for one in found.authorized_operations)
        )

    def topics(self) -> dict[str, int]:
        """Name all topics, each with its number of partitions."""
        found = self._calls.again(
            "list topics", lambda: self._calls.admin.list_topics(timeout=self._calls.timeout_s).topics
        )
        return {name: len(found[name].partitions) for name in sorted(found)}

    def create_topic(self, name: str, partitions: int, config: dict[str, str] | None = None) -> None:
        """Create a topic with the broker's default replication; one that exists already is left as it is."""
        new = NewTopic(name, num_partitions=partitions, replication_factor=-1, config=config or {})
        self._calls.ask(
            f"create topic {name!r}",
            lambda: self._calls.admin.create_topics([new], request_timeout=self._calls.timeout_s)[name],
            {KafkaError.TOPIC_ALREADY_EXISTS: None},
            needs=[Need("Create", "topic", name), Need("Create", "cluster")],
        )

    def add_partitions(self, name: str, total: int) -> None:
        """Have a topic have more partitions than it has."""
        self._calls.ask(
            f"add partitions to topic {name!r}",
            lambda: self._calls.admin.create_partitions(
                [NewPartitions(name, total)], request_timeout=self._calls.timeout_s
            )[name],
            {KafkaError.INVALID_PARTITIONS: None},
            needs=[Need("Alter", "topic", name)],
        )

    def delete_topic(self, name: str) -> None:
        """Delete a topic. One that does not exist is as good as deleted."""
        self._calls.ask(
            f"delete topic {name!r}",
            lambda: self._calls.admin.delete_topics([name], request_timeout=self._calls.timeout_s)[name],
            {KafkaError.UNKNOWN_TOPIC_OR_PART: None},
            needs=[Need("Delete", "topic", name)],
        )

    def delete_records(self, topic: TopicInfo, offsets: Mapping[int, int]) -> None:
        """Delete the records of partitions in front of offsets, as retention would."""
        wanted = [TopicPartition(topic.name, partition, offset) for partition, offset in offsets.items()]
        under_way: dict[TopicPartition, Future[Any]] = {}

        def ask(where: TopicPartition) -> Future[Any]:
            if where not in under_way:
                under_way.update(self._calls.admin.delete_records(wanted, request_timeout=self._calls.timeout_s))
            return under_way.pop(where)

        for where in wanted:
            self._calls.ask(
                f"delete records of {at(topic.name, where.partition)}",
                partial(ask, where),
                needs=[Need("Delete", "topic", topic.name)],
            )

    def topic_config(self, name: str) -> dict[str, str]:
        """Give a topic's configuration, defaults included."""
        resource = ConfigResource(ResourceType.TOPIC, name)
        entries = self._calls.ask(
            f"read the configuration of topic {name!r}",
            lambda: self._calls.admin.describe_configs([resource], request_timeout=self._calls.timeout_s)[resource],
            needs=[Need("DescribeConfigs", "topic", name)],
        )
        return {key: entry.value for key, entry in entries.items()}

    def watermarks(self, topic: TopicInfo) -> dict[int, Watermarks]:
        """Give each partition's first offset, and its last stable one, which is where read_committed ends."""
        low, high = self._offsets(topic, OffsetSpec.earliest(), OffsetSpec.latest())
        return {partition: Watermarks(low=low[partition], high=high[partition]) for partition in low}

    def ends(self, topic: TopicInfo) -> dict[int, int]:
        """Give each partition's high watermark: its end, open transactions included."""
        (found,) = self._offsets(topic, OffsetSpec.latest(), isolation=IsolationLevel.READ_UNCOMMITTED)
        return found

    def positions_at(self, topic: TopicInfo, time_ms: int, *, stable: bool = True) -> dict[int, int]:
        """Give each partition's first offset whose record has this timestamp or a later one; its end where none has.

        Args:
            topic: The topic.
            time_ms: Milliseconds since 1970.
            stable: As those see it who read committed transactions only.
        """
        isolation = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        found, ends = self._offsets(topic, OffsetSpec.for_timestamp(time_ms), OffsetSpec.latest(), isolation=isolation)
        return {number: ends[number] if offset < 0 else offset for number, offset in found.items()}

    def _offsets(
        self, topic: TopicInfo, *specs: OffsetSpec, isolation: IsolationLevel = IsolationLevel.READ_COMMITTED
    ) -> list[dict[int, int]]:
        """Give each partition's offset for each of the specs: all are asked for at once, and some once more."""

        def asked(partitions: Iterable[int], spec: OffsetSpec) -> dict[int, Future[Any]]:
            futures: dict[TopicPartition, Future[Any]] = self._calls.admin.list_offsets(
                {TopicPartition(topic.name, partition): spec for partition in partitions},
                isolation_level=isolation,
                request_timeout=self._calls.timeout_s,
            )
            return {where.partition: future for where, future in futures.items()}

        under_way = [asked(range(topic.partitions), spec) for spec in specs]

        def ask(partition: int, number: int) -> Future[Any]:
            return under_way[number].pop(partition, None) or asked([partition], specs[number])[partition]

        def offset(partition: int, number: int) -> int:
            doing = f"list the offsets of {at(topic.name, partition)}"
            deadline = time.monotonic() + self._calls.timeout_s
            while True:
                needs = [Need("Describe", "topic", topic.name)]
                found = int(self._calls.ask(doing, partial(ask, partition, number), needs=needs).offset)
                # Of a broker that did not answer in time, an answer for several partitions says this, and no error.
                if found != OFFSET_INVALID:
                    return found
                if time.monotonic() > deadline:
                    where, limit_s = self.settings.bootstrap_servers, self._calls.timeout_s
                    raise BrokerUnavailable(
                        f"Kafka at {where} gave no answer within {limit_s:g} s, so refold could not {doing}."
                    )
                time.sleep(_ASK_AGAIN_S)

        return [
            {partition: offset(partition, number) for partition in range(topic.partitions)}
            for number in range(len(specs))
        ]

    def high_watermark(self, topic: str, partition: int) -> int:
        """Give the end of a partition's log, open transactions included."""
        where = TopicPartition(topic, partition)
        found = self._calls.ask(
            f"list the offsets of {at(topic, partition)}",
            lambda: self._calls.admin.list_offsets(
                {where: OffsetSpec.latest()},
                isolation_level=IsolationLevel.READ_UNCOMMITTED,
                request_timeout=self._calls.timeout_s,
            )[where],
            needs=[Need("Describe", "topic", topic)],
        )
        return int(found.offset)
