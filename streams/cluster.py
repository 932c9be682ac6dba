"""What refold asks of a Kafka cluster beside reading events: topics, offsets, groups."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType

from streams.config import KafkaSettings
from streams.errors import BrokerError, BrokerUnavailable, CqrsError, GroupActive, TopicNotFound, at
from streams.types import Committed, Member, TopicInfo, Watermarks

__all__ = ["QUIET", "Cluster", "broker_error"]

T = TypeVar("T")

QUIET = 2
"""librdkafka's own log lines only where critical: what it reports reaches us as errors, and is told in context."""

_AWAY = {
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TIMED_OUT,
    KafkaError._RESOLVE,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.BROKER_NOT_AVAILABLE,
    KafkaError._TIMED_OUT_QUEUE,
}


def broker_error(error: KafkaError, doing: str, settings: KafkaSettings) -> CqrsError:
    """Turn Kafka's error into one of ours.

    Args:
        error: What librdkafka or the broker said.
        doing: What was tried, to follow "could not".
        settings: Where it was tried.
    """
    if error.code() in _AWAY:
        return BrokerUnavailable(
            f"No Kafka broker at {settings.bootstrap_servers} answered within {settings.request_timeout_s:g} s "
            f"({error.str()}), so refold could not {doing}. Check the address (--bootstrap-servers or "
            "REFOLD_BOOTSTRAP_SERVERS) and that the broker runs; `refold broker` starts one here."
        )
    return BrokerError(f"Kafka at {settings.bootstrap_servers} would not {doing}: {error.name()}: {error.str()}")


class Cluster:
    """A cluster's admin interface. Every call blocks for at most `request_timeout_s`.

    Raises:
        BrokerUnavailable: From every method: nobody answered.
        BrokerError: From every method: the broker refused.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._timeout = settings.request_timeout_s
        self._admin = AdminClient(settings.client(log_level=QUIET))

    def topic(self, name: str) -> TopicInfo:
        """Describe a topic.

        Raises:
            TopicNotFound: It does not exist; the message names near ones.
        """
        doing = f"describe topic {name!r}"
        futures = self._call(
            doing, lambda: self._admin.describe_topics(TopicCollection([name]), request_timeout=self._timeout)
        )
        try:
            described = self._result(futures[name], doing)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise self._no_topic(name) from None
            raise broker_error(error.args[0], doing, self.settings) from error
        return TopicInfo(name=name, id=str(described.topic_id), partitions=len(described.partitions))

    def _no_topic(self, name: str) -> TopicNotFound:
        existing = [topic for topic in self.topics() if not topic.startswith("__")]
        near = difflib.get_close_matches(name, existing, 3, 0.5)
        hint = f" Near names: {', '.join(near)}." if near else ""
        return TopicNotFound(
            f"Topic {name!r} does not exist at {self.settings.bootstrap_servers}.{hint} Reading never creates a "
            f"topic: `refold load FILE --topic {name} --create` makes and fills it.",
            topic=name,
        )

    def topics(self) -> list[str]:
        """Name all topics."""
        found = self._call("list topics", lambda: self._admin.list_topics(timeout=self._timeout))
        return sorted(found.topics)

    def create_topic(self, name: str, partitions: int, config: dict[str, str] | None = None) -> None:
        """Create a topic with the broker's default replication; one that exists already is left as it is."""
        doing = f"create topic {name!r}"
        new = NewTopic(name, num_partitions=partitions, replication_factor=-1, config=config or {})
        futures = self._call(doing, lambda: self._admin.create_topics([new], request_timeout=self._timeout))
        try:
            self._result(futures[name], doing)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise broker_error(error.args[0], doing, self.settings) from error

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        doing = f"delete topic {name!r}"
        futures = self._call(doing, lambda: self._admin.delete_topics([name], request_timeout=self._timeout))
        self._checked(futures[name], doing)

    def topic_config(self, name: str) -> dict[str, str]:
        """Give a topic's configuration, defaults included."""
        doing = f"read the configuration of topic {name!r}"
        resource = ConfigResource(ResourceType.TOPIC, name)
        futures = self._call(doing, lambda: self._admin.describe_configs([resource], request_timeout=self._timeout))
        entries = self._checked(futures[resource], doing)
        return {key: entry.value for key, entry in entries.items()}

    def watermarks(self, topic: TopicInfo) -> dict[int, Watermarks]:
        """Give each partition's first offset, and its last stable one, which is where read_committed ends."""
        low = self._offsets(topic, OffsetSpec.earliest())
        high = self._offsets(topic, OffsetSpec.latest())
        return {partition: Watermarks(low=low[partition], high=high[partition]) for partition in low}

    def _offsets(self, topic: TopicInfo, spec: OffsetSpec) -> dict[int, int]:
        doing = f"list the offsets of topic {topic.name!r}"
        wanted = {TopicPartition(topic.name, partition): spec for partition in range(topic.partitions)}
        futures = self._call(
            doing,
            lambda: self._admin.list_offsets(
                wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=self._timeout
            ),
        )
        return {where.partition: self._checked(future, doing).offset for where, future in futures.items()}

    def committed(self, group: str) -> dict[str, dict[int, Committed]]:
        """Give the group's committed offsets by topic and partition, each with the metadata committed with it."""
        doing = f"read the offsets of group {group!r}"
        request = ConsumerGroupTopicPartitions(group)
        futures = self._call(
            doing, lambda: self._admin.list_consumer_group_offsets([request], request_timeout=self._timeout)
        )
        found: dict[str, dict[int, Committed]] = {}
        for where in self._checked(futures[group], doing).topic_partitions:
            if where.error is not None:
                raise broker_error(where.error, f"{doing} at {at(where.topic, where.partition)}", self.settings)
            if where.offset >= 0:
                committed = Committed(position=where.offset, metadata=where.metadata or "")
                found.setdefault(where.topic, {})[where.partition] = committed
        return found

    def members(self, group: str) -> list[Member]:
        """Name who is in a group now; nobody in a group that does not exist."""
        doing = f"describe group {group!r}"
        futures = self._call(
            doing, lambda: self._admin.describe_consumer_groups([group], request_timeout=self._timeout)
        )
        try:
            described = self._result(futures[group], doing)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            raise broker_error(error.args[0], doing, self.settings) from error
        return [
            Member(
                client_id=member.client_id,
                host=member.host,
                instance_id=member.group_instance_id,
                partitions=tuple(sorted(where.partition for where in member.assignment.topic_partitions)),
            )
            for member in described.members
        ]

    def delete_group(self, group: str) -> None:
        """Delete a group's offsets, and the group. One that does not exist is as good as deleted.

        Raises:
            GroupActive: It has members, who are named.
        """
        members = self.members(group)
        if not members:
            doing = f"delete the offsets of group {group!r}"
            futures = self._call(
                doing, lambda: self._admin.delete_consumer_groups([group], request_timeout=self._timeout)
            )
            try:
                self._result(futures[group], doing)
            except KafkaException as error:
                code = error.args[0].code()
                if code == KafkaError.NON_EMPTY_GROUP:
                    members = self.members(group)
                elif code != KafkaError.GROUP_ID_NOT_FOUND:
                    raise broker_error(error.args[0], doing, self.settings) from error
                else:
                    return
            else:
                return
        who = ", ".join(
            f"{member.client_id} on {member.host} (partitions {', '.join(map(str, member.partitions)) or 'none'})"
            for member in members
        )
        raise GroupActive(
            f"Group {group!r} is folding: {who or 'a member that just left'}. Its offsets cannot be reset under it. "
            "Stop these processes (SIGTERM drains them); one that was killed is dropped by the broker after its "
            "session timeout (45 s unless set otherwise)."
        )

    def commit(self, group: str, topic: str, offsets: dict[int, Committed]) -> None:
        """Commit offsets, with metadata, for a group that has no members.

        By a consumer that joins no group: the AdminClient's own call loses the metadata.
        """
        consumer = Consumer(
            self.settings.client(log_level=QUIET, **{"group.id": group, "enable.auto.commit": False})
        )
        try:
            consumer.commit(
                offsets=[
                    TopicPartition(topic, partition, committed.position, committed.metadata)
                    for partition, committed in offsets.items()
                ],
                asynchronous=False,
            )
        except KafkaException as error:
            raise broker_error(error.args[0], f"commit offsets of group {group!r}", self.settings) from error
        finally:
            consumer.close()

    def _call(self, doing: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except KafkaException as error:
            raise broker_error(error.args[0], doing, self.settings) from error

    def _result(self, future: Future[Any], doing: str) -> Any:
        try:
            return future.result(self._timeout + 1)
        except TimeoutError:
            raise BrokerUnavailable(
                f"Kafka at {self.settings.bootstrap_servers} gave no answer within {self._timeout:g} s, so refold "
                f"could not {doing}."
            ) from None

    def _checked(self, future: Future[Any], doing: str) -> Any:
        try:
            return self._result(future, doing)
        except KafkaException as error:
            raise broker_error(error.args[0], doing, self.settings) from error
