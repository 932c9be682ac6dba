"""The registry in Kafka: writers take turns, whoever was stopped in between changes nothing, readers see it soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from streams.calls import QUIET
from streams.cluster import Cluster
from streams.compacted import CompactedTopic
from streams.config import KafkaSettings
from streams.control import transitions as to
from streams.control import wishes
from streams.control.registry import Registry
from streams.errors import ConfigError, RegistryError
from tests.conftest import TopicFactory
from tests.integration.kit import until
from tests.unit.test_transitions import FACTS, NEXT

WRITER = """
import sys
from pathlib import Path
from streams.cluster import Cluster
from streams.compacted import CompactedTopic
from streams.config import KafkaSettings

bootstrap, topic, here = sys.argv[1:]
calls = 0

def change(before):
    global calls
    calls += 1
    (Path(here) / f"read-{calls}").write_bytes(before or b"")
    while not (Path(here) / f"go-{calls}").exists():
        pass
    return (before or b"") + b"late,"

print(CompactedTopic(Cluster(KafkaSettings(bootstrap_servers=bootstrap)), topic).update("orders", change).decode())
"""


@pytest.fixture
def cluster(bootstrap_servers: str) -> Cluster:
    return Cluster(KafkaSettings(bootstrap_servers=bootstrap_servers))


@pytest.fixture
def name(cluster: Cluster, topic: TopicFactory) -> Iterator[str]:
    """A name that no topic has yet."""
    name = f"{topic(1)}.registry"
    yield name
    cluster.delete_topic(name)


def test_a_writer_that_was_stopped_between_read_and_write_changes_nothing(
    bootstrap_servers: str, cluster: Cluster, name: str, tmp_path: Path
) -> None:
    """Woken, it finds itself fenced, reads again, and decides by what the other has written."""
    registry = CompactedTopic(cluster, name)
    registry.update("orders", lambda _: b"first,")
    late = subprocess.Popen(
        [sys.executable, "-c", WRITER, bootstrap_servers, name, str(tmp_path)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        until("the late writer to have read", (tmp_path / "read-1").exists)
        os.kill(late.pid, signal.SIGSTOP)
        (tmp_path / "go-1").touch()
        assert registry.update("orders", lambda before: (before or b"") + b"other,") == b"first,other,"
        os.kill(late.pid, signal.SIGCONT)
        until("the late writer to have read again", (tmp_path / "read-2").exists)
        assert (tmp_path / "read-2").read_bytes() == b"first,other,"
        assert registry.read() == {"orders": b"first,other,"}, "it has written what it had decided before"
        (tmp_path / "go-2").touch()
        output, _ = late.communicate(timeout=60)
        assert output.strip() == b"first,other,late,"
    finally:
        late.kill()
        late.wait()
    assert registry.read() == {"orders": b"first,other,late,"}


def test_of_many_writers_at_once_each_sees_the_one_before(cluster: Cluster, name: str) -> None:
    registry = CompactedTopic(cluster, name)

    def written_by(who: int, turn: int) -> Callable[[bytes | None], bytes]:
        return lambda before: (before or b"") + b"%d-%d," % (who, turn)

    def write(who: int) -> None:
        for turn in range(3):
            registry.update(f"p{turn % 2}", written_by(who, turn))

    writers = [threading.Thread(target=write, args=[who]) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    written = [one for value in registry.read().values() for one in value.decode().strip(",").split(",")]
    assert sorted(written) == sorted(f"{who}-{turn}" for who in range(3) for turn in range(3))


def test_an_open_transaction_of_another_key_does_not_hide_what_was_written_behind_it(
    bootstrap_servers: str, cluster: Cluster, name: str
) -> None:
    """The last stable offset stays in front of it; whoever read no further would decide by an old record."""
    registry = CompactedTopic(cluster, name)
    registry.update("orders", lambda _: b"1")
    other = Producer({"bootstrap.servers": bootstrap_servers, "transactional.id": "another", "log_level": QUIET})
    other.init_transactions(10)
    other.begin_transaction()
    other.produce(name, key=b"flights", value=b"x")
    other.flush(10)
    threading.Timer(1.5, lambda: other.commit_transaction(10)).start()
    assert registry.update("orders", lambda before: (before or b"") + b"2") == b"12"
    assert registry.update("orders", lambda before: (before or b"") + b"3") == b"123"
    assert registry.read() == {"orders": b"123", "flights": b"x"}


def test_a_topic_that_would_lose_records_is_refused(cluster: Cluster, topic: TopicFactory) -> None:
    for existing in (topic(1), topic(2, {"cleanup.policy": "compact"})):
        with pytest.raises(ConfigError, match="what is kept in it must stay"):
            CompactedTopic(cluster, existing).update("orders", lambda _: b"x")
        assert CompactedTopic(cluster, existing).read() == {}


def test_a_record_of_an_unknown_schema_is_refused_and_left(cluster: Cluster, name: str) -> None:
    raw = CompactedTopic(cluster, name)
    raw.update("orders", lambda _: b'{"schema": 99}')
    raw.update("flights", lambda _: b"no json")
    registry = Registry(cluster, name)
    with pytest.raises(RegistryError, match="has schema 99; this version of refold knows 3"):
        registry.get("orders")
    with pytest.raises(RegistryError, match="cannot be understood"):
        registry.update("flights", lambda _: to.founded(None, "flights", "g", "d", FACTS))
    with pytest.raises(RegistryError):
        registry.all()
    assert raw.read() == {"orders": b'{"schema": 99}', "flights": b"no json"}


def test_whoever_follows_sees_each_record_soon(cluster: Cluster, name: str, tmp_path: Path) -> None:
    registry = Registry(cluster, name, copies=tmp_path)
    assert registry.get("orders") is None
    with registry.watch("orders") as watch:
        assert watch.record is None
        record = registry.update("orders", lambda _: to.founded(_, "orders", "g", "orders.v1", FACTS))
        until("the first record", lambda: watch.record == record)
        record = registry.update(
            "orders",
            lambda one: wishes.begun(
                to.founded(one, "orders", "g", "d", FACTS),
                "r",
                NEXT,
                policy="report",
                approve="ask",
                keep_s=1,
                by="",
                why="",
            ),
        )
        until("the second record", lambda: watch.record == record)
        assert record.revision == 2
    # Nothing is written where nothing changes.
    assert registry.update("orders", lambda one: one or record).revision == 2
    (tmp_path / "orders.v1").mkdir()  # a copy is kept where there is state
    assert registry.get("orders") == record
    assert registry.last_known("orders") == record
    assert registry.last_known("flights") is None
    assert msgspec.json.decode((tmp_path / "orders.registry.json").read_bytes())["schema"] == 1
