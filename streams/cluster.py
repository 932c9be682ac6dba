"""What refold asks of a Kafka cluster beside reading events: topics, offsets, groups."""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import struct
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

from confluent_kafka import (
    OFFSET_INVALID,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import ConfigResource, NewTopic, OffsetSpec, ResourceType

from streams.calls import MISSING, Calls, broker_error, check_client_settings
from streams.config import KafkaSettings
from streams.errors import BrokerUnavailable, GroupActive, TopicNotFound, at
from streams.types import Committed, Member, TopicInfo, Watermarks

__all__ = ["Cluster"]

_EVERY_BROKER_S = 2.0
_JUST_MADE_S = 0.5
"""How long after its making a broker may not know of a topic."""
_ASK_AGAIN_S = 0.1


def _member(described: Any) -> Member:
    return Member(
        client_id=described.client_id,
        host=described.client_host,
        partitions=tuple(sorted(_assigned(described.assignment))),
    )


def _assigned(assignment: bytes) -> Iterator[int]:
    """Yield the partitions in a member's assignment: Kafka's ConsumerProtocolAssignment, of whichever version."""
    data = io.BytesIO(assignment)

    def number(form: str) -> int:
        return int(struct.unpack(form, data.read(struct.calcsize(form)))[0])

    if len(assignment) < struct.calcsize(">hi"):
        return  # nothing, as while the group is being rebalanced
    number(">h")  # its version
    for _ in range(number(">i")):
        data.read(number(">h"))  # the topic
        for _ in range(number(">i")):
            yield number(">i")


class Cluster:
    """A cluster's admin interface. Every call blocks for at most `request_timeout_s`.

    Args:
        settings: Where the cluster is.

    Raises:
        ConfigError: From the constructor: a client setting is unknown or wrong.
        BrokerUnavailable: From every method: nobody answered.
        BrokerError: From every method: the broker refused.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        check_client_settings(settings)
        self._calls = Calls(settings)

    def within(self, timeout_s: float) -> Cluster:
        """Give the same cluster, by the same connections, whose calls take at most so many seconds."""
        hurried = copy.copy(self)
        hurried._calls = self._calls.within(timeout_s)
        return hurried

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

    def topics(self) -> dict[str, int]:
        """Name all topics, each with its number of partitions."""
        try:
            found = self._calls.admin.list_topics(timeout=self._calls.timeout_s).topics
            return {name: len(found[name].partitions) for name in sorted(found)}
        except KafkaException as error:
            raise broker_error(error.args[0], "list topics", self.settings) from error

    def create_topic(self, name: str, partitions: int, config: dict[str, str] | None = None) -> None:
        """Create a topic with the broker's default replication; one that exists already is left as it is."""
        new = NewTopic(name, num_partitions=partitions, replication_factor=-1, config=config or {})
        self._calls.ask(
            f"create topic {name!r}",
            lambda: self._calls.admin.create_topics([new], request_timeout=self._calls.timeout_s)[name],
            {KafkaError.TOPIC_ALREADY_EXISTS: None},
        )

    def delete_topic(self, name: str) -> None:
        """Delete a topic. One that does not exist is as good as deleted."""
        self._calls.ask(
            f"delete topic {name!r}",
            lambda: self._calls.admin.delete_topics([name], request_timeout=self._calls.timeout_s)[name],
            {KafkaError.UNKNOWN_TOPIC_OR_PART: None},
        )

    def topic_config(self, name: str) -> dict[str, str]:
        """Give a topic's configuration, defaults included."""
        resource = ConfigResource(ResourceType.TOPIC, name)
        entries = self._calls.ask(
            f"read the configuration of topic {name!r}",
            lambda: self._calls.admin.describe_configs([resource], request_timeout=self._calls.timeout_s)[resource],
        )
        return {key: entry.value for key, entry in entries.items()}

    def watermarks(self, topic: TopicInfo) -> dict[int, Watermarks]:
        """Give each partition's first offset, and its last stable one, which is where read_committed ends."""
        low, high = self._offsets(topic, OffsetSpec.earliest(), OffsetSpec.latest())
        return {partition: Watermarks(low=low[partition], high=high[partition]) for partition in low}

    def positions_at(self, topic: TopicInfo, time_ms: int) -> dict[int, int]:
        """Give each partition's first offset whose record has this timestamp or a later one; its end where none has."""
        (found,), marks = self._offsets(topic, OffsetSpec.for_timestamp(time_ms)), self.watermarks(topic)
        return {number: marks[number].high if offset < 0 else offset for number, offset in found.items()}

    def _offsets(self, topic: TopicInfo, *specs: OffsetSpec) -> list[dict[int, int]]:
        """Give each partition's offset for each of the specs: all are asked for at once, and some once more."""

        def asked(partitions: Iterable[int], spec: OffsetSpec) -> dict[int, Future[Any]]:
            futures: dict[TopicPartition, Future[Any]] = self._calls.admin.list_offsets(
                {TopicPartition(topic.name, partition): spec for partition in partitions},
                isolation_level=IsolationLevel.READ_COMMITTED,
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
                found = int(self._calls.ask(doing, partial(ask, partition, number)).offset)
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
        )
        return int(found.offset)

    def committed(self, group: str, topic: TopicInfo) -> dict[int, Committed]:
        """Give the group's committed offsets of a topic, each with the metadata committed with it.

        By a consumer that joins no group: librdkafka's ListConsumerGroupOffsets ends the process where a request of
        it fails while a broker comes back (2.12: SIGSEGV; 2.16: "Assertion `eonce->refcnt > 0' failed").
        """
        return self.committed_of(group, {topic.name: topic.partitions}).get(topic.name, {})

    def committed_of(self, group: str, topics: Mapping[str, int]) -> dict[str, dict[int, Committed]]:
        """Give the group's committed offsets of several topics, by topic and partition; see `committed`.

        Args:
            group: The group.
            topics: Each topic's number of partitions.
        """
        wanted = [TopicPartition(topic, partition) for topic, count in topics.items() for partition in range(count)]
        doing = f"read the offsets of group {group!r}"
        found: list[TopicPartition] = self._calls.outside(
            group, doing, lambda consumer: consumer.committed(wanted, timeout=self._calls.timeout_s)
        )
        for where in found:
            if where.error is not None:
                raise broker_error(where.error, f"{doing} at {at(where.topic, where.partition)}", self.settings)
        committed: dict[str, dict[int, Committed]] = {}
        for where in found:
            if where.offset >= 0:
                one = Committed(position=where.offset, metadata=where.metadata or "")
                committed.setdefault(where.topic, {})[where.partition] = one
        return committed

    def groups(self) -> list[str]:
        """Name all consumer groups."""
        listed = self._calls.ask(
            "list the consumer groups",
            lambda: self._calls.admin.list_consumer_groups(request_timeout=self._calls.timeout_s),
        )
        return sorted(group.group_id for group in listed.valid)

    def members(self, group: str) -> list[Member]:
        """Name who is in a group now; nobody in a group that does not exist.

        By librdkafka's old call, which asks every broker: the newer DescribeConsumerGroups never recovers on a client
        that had asked before a broker's restart, and may end the process (2.16: "Assertion `eonce->refcnt > 0'
        failed"). It is asked only where some brokers answer and others do not.
        """
        began = time.monotonic()
        limit_s = min(_EVERY_BROKER_S, self._calls.timeout_s)
        warnings.filterwarnings("ignore", message=r"list_groups\(\) is deprecated", category=DeprecationWarning)
        while (left_s := began + limit_s - time.monotonic()) > 0:
            with contextlib.suppress(KafkaException):
                found = self._calls.admin.list_groups(group, timeout=left_s)
                if all(one.error is None for one in found):
                    return [_member(member) for one in found for member in one.members]
            time.sleep(_ASK_AGAIN_S)
        rest = self.within(max(1.0, self._calls.timeout_s - limit_s))
        rest.topics()  # raises where nobody answers
        return rest._described_members(group)

    def is_stable(self, group: str) -> bool:
        """Say whether a group is not being rebalanced; so it is where nobody can be asked."""
        warnings.filterwarnings("ignore", message=r"list_groups\(\) is deprecated", category=DeprecationWarning)
        with contextlib.suppress(KafkaException):
            found = self._calls.admin.list_groups(group, timeout=min(_EVERY_BROKER_S, self._calls.timeout_s))
            return all(one.state in ("Stable", "Empty", "Dead") for one in found)
        return True

    def _described_members(self, group: str) -> list[Member]:
        described = self._calls.ask(
            f"describe group {group!r}",
            lambda: self._calls.admin.describe_consumer_groups([group], request_timeout=self._calls.timeout_s)[group],
            {KafkaError.GROUP_ID_NOT_FOUND: MISSING},
        )
        if described is MISSING:
            return []
        return [
            Member(
                client_id=member.client_id,
                host=member.host,
                partitions=tuple(sorted(where.partition for where in member.assignment.topic_partitions)),
            )
            for member in described.members
        ]

    def check_inactive(self, group: str) -> None:
        """Make sure that nobody is in a group.

        Raises:
            GroupActive: Somebody is; the message says who, and how to get them out.
        """
        members = self.members(group)
        if members:
            raise GroupActive(
                f"Group {group!r} is folding: "
                + ", ".join(map(str, members))
                + ". Nothing was changed. Stop these processes (SIGTERM drains them); one that was killed is dropped "
                "by the broker after its session timeout (45 s unless set otherwise)."
            )

    def delete_group(self, group: str) -> None:
        """Delete a group's offsets, and the group. One that does not exist is as good as deleted.

        Raises:
            GroupActive: It has members, who are named.
        """
        self.check_inactive(group)
        self._calls.ask(
            f"delete the offsets of group {group!r}",
            lambda: self._calls.admin.delete_consumer_groups([group], request_timeout=self._calls.timeout_s)[group],
            {KafkaError.GROUP_ID_NOT_FOUND: None},
        )

    def commit(self, group: str, topic: str, offsets: Mapping[int, Committed]) -> None:
        """Commit offsets, with metadata, for a group that has no members.

        By the consumer that also reads them; see `committed`. The broker takes it only while the group is empty, so
        it is also the proof of that.

        Raises:
            GroupActive: It has members, who are named; nothing was changed.
        """
        wanted = [
            TopicPartition(topic, partition, committed.position, committed.metadata)
            for partition, committed in offsets.items()
        ]
        answer = self._calls.outside(
            group,
            f"commit offsets of group {group!r}",
            lambda consumer: consumer.commit(offsets=wanted, asynchronous=False),
            {KafkaError.UNKNOWN_MEMBER_ID: MISSING, KafkaError.ILLEGAL_GENERATION: MISSING},
        )
        if answer is MISSING:
            self.check_inactive(group)
            raise GroupActive(f"Group {group!r} had a member when its offsets were to be set. Nothing was changed.")
