"""`refold load` against a real broker: all arrives once and in order, or the message says how far it got."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from projections.datasets import order_events
from streams.config import KafkaSettings
from streams.errors import BrokerUnavailable, EventError, TopicChanged, TopicNotFound
from streams.lines import EventLines, Fields
from streams.loader import Loader
from tests.conftest import TopicFactory

DEADLINE_S = 30.0
AWAY = "127.0.0.1:1"
"""Nothing listens here."""
REFOLD = [sys.executable, "-c", "from streams.__main__ import main; main()"]


def settings(bootstrap_servers: str, **more: Any) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=bootstrap_servers, **more)


def read_all(bootstrap_servers: str, topic: str) -> list[Message]:
    """Everything in the topic, partition by partition, each to its end."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "unused", "enable.partition.eof": True})
    partitions = len(consumer.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in range(partitions)])
    found: list[Message] = []
    ended = 0
    deadline = time.monotonic() + DEADLINE_S
    while ended < partitions:
        assert time.monotonic() < deadline, f"{ended} of {partitions} partitions read"
        message = consumer.poll(1.0)
        if message is not None and message.error() is None:
            found.append(message)
        elif message is not None:
            ended += 1
    consumer.close()
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def numbered(count: int, *, stream: str = "s") -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{stream}{n % 7}", {"id": str(n), "type": "T", "data": {"n": n}}) for n in range(1, count + 1))


def refold(*arguments: str, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*REFOLD, *arguments],
        input=given,
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
        env={**os.environ, **environment},
    )


def test_every_event_arrives_once_and_each_stream_in_its_order(bootstrap_servers: str, topic: TopicFactory) -> None:
    name = topic(partitions=4)
    events = list(order_events(2000, seed=5))
    loaded = Loader(settings(bootstrap_servers), name).load(events)
    found = read_all(bootstrap_servers, name)
    sent: dict[str, list[bytes]] = {}
    for stream, envelope in events:
        sent.setdefault(stream, []).append(orjson.dumps(envelope))
    got: dict[str, list[bytes]] = {}
    for message in found:
        got.setdefault(message.key().decode(), []).append(message.value())
    assert got == sent
    assert loaded.records == len(events)
    assert loaded.bytes == sum(len(stream) + len(orjson.dumps(envelope)) for stream, envelope in events)
    assert {message.partition() for message in found} == {0, 1, 2, 3}


def test_streams_go_to_the_partitions_that_java_would_choose(bootstrap_servers: str, topic: TopicFactory) -> None:
    def murmur2(key: bytes) -> int:
        """Kafka's own, from org.apache.kafka.common.utils.Utils."""
        mask, m = 0xFFFFFFFF, 0x5BD1E995
        h = 0x9747B28C ^ len(key)
        for start in range(0, len(key) - len(key) % 4, 4):
            k = int.from_bytes(key[start : start + 4], "little") * m & mask
            h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
        tail = key[len(key) - len(key) % 4 :]
        if tail:
            h = (h ^ int.from_bytes(tail, "little")) * m & mask
        h = (h ^ h >> 13) * m & mask
        return h ^ h >> 15

    name = topic(partitions=5)
    Loader(settings(bootstrap_servers), name).load((f"N{n}é", {"type": "T"}) for n in range(200))
    found = read_all(bootstrap_servers, name)
    assert len(found) == 200
    assert all(message.partition() == (murmur2(message.key()) & 0x7FFFFFFF) % 5 for message in found)


def test_the_records_carry_the_time_of_writing_so_that_retention_spares_old_events(
    bootstrap_servers: str, topic: TopicFactory
) -> None:
    name = topic()
    before = time.time() * 1000
    Loader(settings(bootstrap_servers), name).load([("s", {"type": "T", "time": "1999-01-01T00:00:00Z"})])
    assert read_all(bootstrap_servers, name)[0].timestamp()[1] >= before - 1


def test_a_topic_that_does_not_exist_is_named_with_the_command_that_makes_it(bootstrap_servers: str) -> None:
    with pytest.raises(TopicNotFound, match=r"does not exist at .* Give --create to make it"):
        Loader(settings(bootstrap_servers), "no-such-topic").load(numbered(1))


def test_a_topic_is_created_once_and_not_with_other_partitions(
    bootstrap_servers: str, topic: TopicFactory, admin: AdminClient
) -> None:
    loader = Loader(settings(bootstrap_servers), topic() + "-made")
    try:
        loader.create_topic(3)
        loader.create_topic(3)
        loader.create_topic()
        with pytest.raises(TopicChanged, match="exists with 3 partitions, not 4"):
            loader.create_topic(4)
        assert loader.load(numbered(10)).records == 10
        described = admin.list_topics(loader.topic, timeout=DEADLINE_S).topics[loader.topic]
        assert len(described.partitions) == 3
    finally:
        admin.delete_topics([loader.topic])[loader.topic].result(DEADLINE_S)


def test_at_a_bad_line_all_before_it_is_delivered_and_nothing_after_it(
    bootstrap_servers: str, topic: TopicFactory
) -> None:
    name = topic(partitions=2)
    good = [orjson.dumps({"stream": stream, **envelope}) for stream, envelope in numbered(2500)]
    file = [*good[:2000], b"oops", *good[2000:]]
    lines = EventLines(file, Fields(), source="f.ndjson")
    with pytest.raises(EventError) as caught:
        Loader(settings(bootstrap_servers), name).load(lines, source="f.ndjson", line=lambda: lines.line)
    message = str(caught.value)
    assert message.startswith("f.ndjson:2001: ")
    assert "2,000 records are delivered" in message
    assert "--from-line 2001 " in message
    assert sorted(int(orjson.loads(found.value())["id"]) for found in read_all(bootstrap_servers, name)) == list(
        range(1, 2001)
    )
    file[2000] = good[0].replace(b'"id":"1"', b'"id":"again"')
    lines = EventLines(file, Fields(), source="f.ndjson", from_line=2001)
    loaded = Loader(settings(bootstrap_servers), name).load(lines, source="f.ndjson", line=lambda: lines.line)
    assert loaded.records == 501
    assert len(read_all(bootstrap_servers, name)) == 2501


def test_a_record_over_the_topics_limit_is_named_and_not_sent(bootstrap_servers: str, topic: TopicFactory) -> None:
    name = topic(config={"max.message.bytes": "5000"})
    records = [*numbered(3), ("big", {"type": "T", "data": "x" * 5000}), *numbered(3)]
    with pytest.raises(EventError, match=r"record:4: the record has 5,0\d\d bytes, .* takes 5,000") as caught:
        Loader(settings(bootstrap_servers), name).load(records)
    assert "3 records are delivered" in str(caught.value)
    assert len(read_all(bootstrap_servers, name)) == 3


def test_a_record_just_under_the_limit_is_taken(bootstrap_servers: str, topic: TopicFactory) -> None:
    name = topic(config={"max.message.bytes": "5000"})
    noise = os.urandom(3000).hex()[: 5000 - 100 - len('s{"type":"T","data":""}')]
    loaded = Loader(settings(bootstrap_servers), name).load([("s", {"type": "T", "data": noise})] * 50)
    assert loaded.records == 50


def test_a_record_that_the_broker_refuses_is_named_by_its_line(bootstrap_servers: str, topic: TopicFactory) -> None:
    name = topic(config={"max.message.bytes": "5000"})
    overruled = settings(bootstrap_servers, kafka={"message.max.bytes": 100_000, "linger.ms": 0})
    big = ("big", {"type": "T", "data": os.urandom(20_000).hex()})
    with pytest.raises(EventError, match=r"record:4: topic .* refused the record as too large") as caught:
        Loader(overruled, name).load(pause_before(numbered(3), big, bootstrap_servers, name))
    assert "3 records are delivered and 1 are not; --from-line 4 goes on" in str(caught.value)


def pause_before(
    first: Iterator[tuple[str, dict[str, Any]]], last: tuple[str, dict[str, Any]], servers: str, topic: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the last record once the others are in the topic, and so in batches of their own."""
    expected = 0
    for record in first:
        expected += 1
        yield record
    deadline = time.monotonic() + DEADLINE_S
    while len(read_all(servers, topic)) < expected:
        assert time.monotonic() < deadline
    yield last


def test_a_full_queue_is_waited_for_and_nothing_is_lost(bootstrap_servers: str, topic: TopicFactory) -> None:
    name = topic(partitions=2)
    small = settings(bootstrap_servers, kafka={"queue.buffering.max.messages": 20})
    assert Loader(small, name).load(numbered(500)).records == 500
    assert len(read_all(bootstrap_servers, name)) == 500


def test_a_broker_that_is_away_is_said_within_the_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1"):
        Loader(settings(AWAY, request_timeout_s=1.0), "any").load(numbered(1))
    assert time.monotonic() - started < 5


def test_brokers_that_stop_answering_end_the_load_with_what_is_not_delivered(
    bootstrap_servers: str, topic: TopicFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def producer_without_broker(config: dict[str, Any]) -> Producer:
        return Producer({**config, "bootstrap.servers": AWAY})

    monkeypatch.setattr("streams.delivery.Producer", producer_without_broker)
    name = topic()
    with pytest.raises(BrokerUnavailable, match="acknowledged nothing for 1 s") as caught:
        Loader(settings(bootstrap_servers, request_timeout_s=1.0), name).load(numbered(50))
    assert " 0 records are delivered and 50 are not" in str(caught.value)
    assert "--from-line 1 goes on" in str(caught.value)
    full = settings(bootstrap_servers, request_timeout_s=1.0, kafka={"queue.buffering.max.messages": 20})
    with pytest.raises(BrokerUnavailable, match=" 0 records are delivered and 20 are not"):
        Loader(full, name).load(numbered(50))


def test_an_error_in_the_input_itself_is_raised_after_what_came_before_is_delivered(
    bootstrap_servers: str, topic: TopicFactory
) -> None:
    def failing() -> Iterator[tuple[str, dict[str, Any]]]:
        yield from numbered(100)
        raise RuntimeError("the disk is gone")

    name = topic()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        Loader(settings(bootstrap_servers, kafka={"linger.ms": 60_000}), name).load(failing())
    assert len(read_all(bootstrap_servers, name)) == 100


def test_the_command_loads_standard_input_and_prints_the_sum_as_json(
    bootstrap_servers: str, topic: TopicFactory
) -> None:
    name = topic()
    given = b"".join(orjson.dumps({"stream": s, **e}) + b"\n" for s, e in numbered(20))
    done = refold("load", "-", "--topic", name, "--bootstrap-servers", bootstrap_servers, "--json", given=given)
    assert done.returncode == 0, done.stderr
    figures = orjson.loads(done.stdout)
    assert figures.keys() == {"schema", "topic", "records", "bytes", "seconds"}
    assert (figures["topic"], figures["records"]) == (name, 20)
    assert len(read_all(bootstrap_servers, name)) == 20


def test_the_command_maps_a_csv_into_a_topic_that_it_makes(
    bootstrap_servers: str, topic: TopicFactory, admin: AdminClient, tmp_path: Path
) -> None:
    name = topic() + "-csv"
    file = tmp_path / "orders.csv"
    file.write_text("order,no,at,city,pieces\n7,e1,2024-01-01,Ulm,3\n8,e2,2024-01-02,Bonn,4\n")
    options = ["--key", "order", "--id", "no", "--time", "at", "--type-value", "Ordered"]
    options += ["--data", "city", "pieces", "--partitions", "2"]
    try:
        done = refold("load", str(file), "--topic", name, *options, REFOLD_BOOTSTRAP_SERVERS=bootstrap_servers)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"2 records")
        found = {message.key(): orjson.loads(message.value()) for message in read_all(bootstrap_servers, name)}
        expected = {
            "id": "e1",
            "type": "Ordered",
            "time": "2024-01-01",
            "data": {"city": "Ulm", "pieces": "3"},
        }
        assert found[b"7"] == expected
        assert found.keys() == {b"7", b"8"}
    finally:
        admin.delete_topics([name])[name].result(DEADLINE_S)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["load", "absent.ndjson", "--topic", "t"], 2, b"Cannot read 'absent.ndjson'"),
        (["load", "-", "--topic", "t", "--type", "a", "--type-value", "b"], 2, b"exclude each other"),
        (["load", "-", "--topic", "no-such-topic"], 6, b"does not exist"),
        (["load", "-", "--topic", "t", "--bootstrap-servers", AWAY], 7, b"answered within"),
    ],
)
def test_the_exit_code_tells_the_cause(bootstrap_servers: str, arguments: list[str], code: int, said: bytes) -> None:
    done = refold(*arguments, REFOLD_BOOTSTRAP_SERVERS=bootstrap_servers, REFOLD_REQUEST_TIMEOUT_S="3")
    assert (done.returncode, done.stdout) == (code, b"")
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_delivers_what_was_read_and_says_how_far_it_got(
    bootstrap_servers: str, topic: TopicFactory, number: signal.Signals
) -> None:
    name = topic()
    command = ["load", "-", "--topic", name, "--bootstrap-servers", bootstrap_servers]
    with subprocess.Popen(
        [*REFOLD, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdin is not None
        for stream, envelope in numbered(30):
            running.stdin.write(orjson.dumps({"stream": stream, **envelope}) + b"\n")
        running.stdin.flush()  # and is left open, so that the command waits for more
        deadline = time.monotonic() + DEADLINE_S
        while len(read_all(bootstrap_servers, name)) < 30:
            assert time.monotonic() < deadline
        running.send_signal(number)
        out, err = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 130, err
    assert out == b""
    assert b"30 records are delivered; --from-line 31 goes on" in err
    assert b"Traceback" not in err


def test_file_that_is_loaded_again_is_known_by_its_events(
    bootstrap_servers: str, topic: TopicFactory, tmp_path: Path
) -> None:
    name = topic(3)
    file = tmp_path / "events.ndjson"
    file.write_bytes(b"".join(orjson.dumps({"stream": s, **e}) + b"\n" for s, e in numbered(500)))
    first = refold("load", str(file), "--topic", name, REFOLD_BOOTSTRAP_SERVERS=bootstrap_servers)
    assert (first.returncode, first.stderr) == (0, b"")
    again = refold("load", str(file), "--topic", name, REFOLD_BOOTSTRAP_SERVERS=bootstrap_servers)
    assert again.returncode == 0  # a warning: they may be meant
    assert again.stderr.count(b"events with these ids may be in the topic already") == 1
    assert f"{file}:1: topic '{name}' holds an event with id".encode() in again.stderr
    other = tmp_path / "other.ndjson"
    other.write_bytes(
        b"".join(orjson.dumps({"stream": s, **e, "id": f"x{n}"}) + b"\n" for n, (s, e) in enumerate(numbered(50)))
    )
    more = refold("load", str(other), "--topic", name, REFOLD_BOOTSTRAP_SERVERS=bootstrap_servers)
    assert (more.returncode, more.stderr) == (0, b"")


def test_loading_into_a_topic_that_is_not_there_says_how_to_make_it(bootstrap_servers: str) -> None:
    done = refold("load", "-", "--topic", "nowhere-at-all", REFOLD_BOOTSTRAP_SERVERS=bootstrap_servers)
    assert done.returncode == 6
    assert b"Give --create to make it" in done.stderr
    assert b"Reading" not in done.stderr


def test_csv_with_semicolons_and_decimal_commas(bootstrap_servers: str, topic: TopicFactory, tmp_path: Path) -> None:
    name = topic()
    file = tmp_path / "orders.csv"
    file.write_text("order;price\no1;1,5\n")
    words = ["load", str(file), "--topic", name, "--key", "order", "--type-value", "Ordered"]
    done = refold(
        *words,
        "--delimiter",
        ";",
        "--decimal",
        ",",
        "--columns",
        "price=number",
        REFOLD_BOOTSTRAP_SERVERS=bootstrap_servers,
    )
    assert done.returncode == 0, done.stderr
    ((_, value),) = [(message.key(), message.value()) for message in read_all(bootstrap_servers, name)]
    assert orjson.loads(value)["data"] == {"price": 1.5}
    wrong = refold("load", "-", "--topic", name, "--delimiter", ";", REFOLD_BOOTSTRAP_SERVERS=bootstrap_servers)
    assert (wrong.returncode, b"say how CSV is read" in wrong.stderr) == (2, True)
