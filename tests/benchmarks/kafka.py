"""Topics and groups of a benchmark: made, filled, looked at and removed."""

from __future__ import annotations

import sys
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.benchmarks.workload import Workload

__all__ = ["create_topic", "ends", "load", "remove_all", "say"]

_TIMEOUT_S = 30.0
_SESSION_WAIT_S = 60.0


def say(text: str) -> None:
    """Tell the human, on stderr."""
    print(text, file=sys.stderr, flush=True)


def create_topic(bootstrap_servers: str, topic: str, partitions: int, **config: str) -> None:
    """Make a topic and wait until its partitions have leaders."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 4})
    for future in admin.create_topics([NewTopic(topic, partitions, 1, config=config)]).values():
        future.result(_TIMEOUT_S)
    deadline = time.monotonic() + _TIMEOUT_S
    while len(ends(bootstrap_servers, topic)) != partitions:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{topic} was created but did not show up within {_TIMEOUT_S:g} s.")
        time.sleep(0.05)


def ends(bootstrap_servers: str, topic: str) -> dict[int, int]:
    """Give each partition's end offset; empty where there is no such topic, or not yet.

    The producer of `load` is not transactional and nothing is compacted: the ends are also counts.
    """
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "unused"})
    try:
        found = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
        if found.error is not None:
            return {}
        return {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=_TIMEOUT_S)[1]
            for number in sorted(found.partitions)
        }
    except KafkaException:
        return {}
    finally:
        consumer.close()


def load(bootstrap_servers: str, topic: str, workload: Workload) -> None:
    """Make the topic and produce the workload's events to it, each exactly once.

    A topic of that name is taken as it is, if it holds as many events.

    Raises:
        ValueError: It exists and holds another number of events or has other partitions.
    """
    there = ends(bootstrap_servers, topic)
    if there:
        if sum(there.values()) != workload.events or len(there) != workload.partitions:
            raise ValueError(
                f"{topic} holds {sum(there.values())} events in {len(there)} partitions, and the benchmark "
                f"is to fold {workload.events} in {workload.partitions}. Name another topic, or its sizes."
            )
        say(f"  topic {topic}: {workload.events:,} events are there")
        return
    create_topic(bootstrap_servers, topic, workload.partitions, **{"retention.ms": "-1"})
    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,
            "log_level": 4,
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 256 * 1024,
            "queue.buffering.max.messages": 500_000,
            "queue.buffering.max.kbytes": 512 * 1024,
        }
    )
    failed: list[object] = []

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failed.append(error)

    started = time.perf_counter()
    for number, (key, value) in enumerate(workload.records()):
        while True:
            try:
                producer.produce(topic, value, key, on_delivery=delivered)
                break
            except BufferError:
                producer.poll(0.1)
        if not number % 1000:
            producer.poll(0)
    producer.flush()
    found = sum(ends(bootstrap_servers, topic).values())
    if failed or found != workload.events:
        raise RuntimeError(f"{topic}: {len(failed)} events were not delivered ({failed[:1]}), {found} are there.")
    say(f"  topic {topic}: {workload.events:,} events produced in {time.perf_counter() - started:.1f} s")


def remove_all(bootstrap_servers: str, mark: str) -> None:
    """Delete every topic and group whose name contains the mark; what cannot be deleted is named on stderr.

    A group whose member was killed is not empty before its session times out: that is waited for.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 4})
    deadline = time.monotonic() + _SESSION_WAIT_S
    try:
        topics = [t for t in admin.list_topics(timeout=_TIMEOUT_S).topics if mark in t]
        for topic, removed in admin.delete_topics(topics).items() if topics else ():
            _settle(topic, removed)
        groups = [g.group_id for g in admin.list_consumer_groups().result(_TIMEOUT_S).valid if mark in g.group_id]
        while groups := _delete_groups(admin, groups):
            if time.monotonic() > deadline:
                say(f"  could not delete {', '.join(groups)}: members are still there")
                return
            say(f"  waiting for the dead members of {', '.join(groups)} to time out (Ctrl-C leaves the group)")
            time.sleep(5)
    except KafkaException as error:
        say(f"  could not delete everything with {mark} in its name: {error}")


def _delete_groups(admin: AdminClient, groups: list[str]) -> list[str]:
    """Give those that are to be tried again."""
    if not groups:
        return []
    return [group for group, removed in admin.delete_consumer_groups(groups).items() if not _settle(group, removed)]


def _settle(name: str, removed: Any) -> bool:
    """Wait for one deletion; False where it is worth another try."""
    try:
        removed.result(_TIMEOUT_S)
    except KafkaException as error:
        code = error.args[0].code()
        if code == KafkaError.NON_EMPTY_GROUP:
            return False
        if code not in (KafkaError.GROUP_ID_NOT_FOUND, KafkaError.UNKNOWN_TOPIC_OR_PART):
            say(f"  could not delete {name}: {error}")
    return True
