"""What refold asks of a Kafka cluster's consumer groups: who is in them, and what they have committed."""

from __future__ import annotations

import contextlib
import copy
import io
import struct
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streams.calls import MISSING, Calls, broker_error, check_client_settings
from streams.config import KafkaSettings
from streams.denied import Need
from streams.errors import BrokerUnavailable, GroupActive, at
from streams.types import Committed, GroupDescription, Member, TopicInfo
from streams.unended import offsets_pending

__all__ = ["Groups"]

_EVERY_BROKER_S = 2.0
_ASK_AGAIN_S = 0.1


def _member(described: Any) -> Member:
    return Member(
        client_id=described.client_id,
        host=described.client_host,
        partitions=tuple(sorted(_assigned(described.assignment))),
    )


def _member_of(described: Any) -> Member:
    """Give one as the newer interface describes it."""
    assigned = sorted((where.topic, where.partition) for where in described.assignment.topic_partitions)
    return Member(
        client_id=described.client_id,
        host=described.host,
        partitions=tuple(sorted(partition for _, partition in assigned)),
        assigned=tuple(assigned),
        instance_id=described.group_instance_id or None,
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


def _check_nobody(group: str, members: Iterable[Member]) -> None:
    members = list(members)
    if not members:
        return
    static = sorted(one.instance_id for one in members if one.instance_id is not None)
    advice = "Stop these processes (SIGTERM drains them); one that was killed is dropped by the broker after its "
    advice += "session timeout (session.timeout.ms, 45 s unless set otherwise)."
    if static:
        advice += f" So is, also when it was stopped, a static member ({', '.join(static)}): it leaves no word."
    raise GroupActive(f"Group {group!r} has members: {', '.join(map(str, members))}. Nothing was changed. {advice}")


class Groups:
    """A cluster's consumer groups; see `Cluster`.

    Args:
        settings: Where the cluster is.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        check_client_settings(settings)
        self._calls = Calls(settings)

    def within(self, timeout_s: float) -> Self:
        """Give the same cluster, by the same connections, whose calls take at most so many seconds."""
        hurried = copy.copy(self)
        hurried._calls = self._calls.within(timeout_s)
        return hurried

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

        Raises:
            OffsetsPending: A transaction has not ended that may move them.
            BrokerUnavailable, BrokerError: From Kafka.
        """
        wanted = [TopicPartition(topic, partition) for topic, count in topics.items() for partition in range(count)]
        doing = f"read the offsets of group {group!r}"
        try:
            found: list[TopicPartition] = self._calls.outside(
                group,
                doing,
                lambda consumer: consumer.committed(wanted, timeout=self._calls.timeout_s),
                needs=[Need("Describe", "group", group)],
            )
        except BrokerUnavailable as error:
            raise offsets_pending(self.settings, group, wanted) or error from error.__cause__
        for where in found:
            if where.error is not None:
                needs = [Need("Describe", "group", group), Need("Describe", "topic", where.topic)]
                raise broker_error(where.error, f"{doing} at {at(where.topic, where.partition)}", self.settings, needs)
        committed: dict[str, dict[int, Committed]] = {}
        for where in found:
            if where.offset >= 0:
                one = Committed(position=where.offset, metadata=where.metadata or "")
                committed.setdefault(where.topic, {})[where.partition] = one
        return committed

    def check_reachable(self) -> None:
        """Make sure that a broker answers."""
        self._calls.again("reach the cluster", lambda: self._calls.admin.list_topics("", timeout=self._calls.timeout_s))

    def groups(self) -> list[str]:
        """Name all consumer groups."""
        listed = self._calls.ask(
            "list the consumer groups",
            lambda: self._calls.admin.list_consumer_groups(request_timeout=self._calls.timeout_s),
            needs=[Need("Describe", "cluster")],
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
        rest.check_reachable()
        return rest._described_members(group)

    def _described_members(self, group: str) -> list[Member]:
        return list(self.describe(group).members)

    def describe(self, group: str) -> GroupDescription:
        """Describe any consumer group; one that does not exist is Dead.

        For commands that end soon: see `members`.
        """
        described = self._calls.ask(
            f"describe group {group!r}",
            lambda: self._calls.admin.describe_consumer_groups([group], request_timeout=self._calls.timeout_s)[group],
            {KafkaError.GROUP_ID_NOT_FOUND: MISSING},
            needs=[Need("Describe", "group", group)],
        )
        if described is MISSING:
            return GroupDescription(group=group, state="Dead")
        return GroupDescription(
            group=group,
            state="".join(word.capitalize() for word in described.state.name.split("_")),
            assignor=described.partition_assignor,
            members=tuple(map(_member_of, described.members)),
        )

    def group_operations(self, group: str) -> frozenset[str] | None:
        """Name the operations on a group that are allowed to us (KIP-430); None where the cluster does not say."""
        found = self._calls.ask(
            f"describe group {group!r}",
            lambda: self._calls.admin.describe_consumer_groups(
                [group], include_authorized_operations=True, request_timeout=self._calls.timeout_s
            )[group],
            {KafkaError.GROUP_ID_NOT_FOUND: MISSING},
            needs=[Need("Describe", "group", group)],
        )
        if found is MISSING or found.authorized_operations is None:
            return None
        return frozenset(one.name for one in found.authorized_operations)

    def check_inactive(self, group: str) -> None:
        """Make sure that nobody is in a group.

        Raises:
            GroupActive: Somebody is; the message says who, and how to get them out.
        """
        _check_nobody(group, self.members(group))

    def check_empty(self, group: str) -> None:
        """The same, for a group of whichever protocol (KIP-848 too), in commands that end soon: see `members`.

        Raises:
            GroupActive: Somebody is; the message says who, and how to get them out.
        """
        _check_nobody(group, self.describe(group).members)

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
            needs=[Need("Delete", "group", group)],
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
            needs=[Need("Read", "group", group), Need("Read", "topic", topic)],
        )
        if answer is MISSING:
            self.check_inactive(group)
            raise GroupActive(f"Group {group!r} had a member when its offsets were to be set. Nothing was changed.")
