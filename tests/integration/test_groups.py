"""Lag and offsets of any consumer group: the same as Kafka's own tool says and sets, on the same groups."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streams.cluster import Cluster
from streams.config import KafkaSettings
from tests.conftest import GroupFactory, TopicFactory
from tests.integration.kafka_tool import consumer_groups
from tests.integration.kit import Kit, produce, tally_events, until
from tests.schemas import check_printed
from tests.screen import on_screen

NewKit = Callable[..., Kit]
Offsets = dict[tuple[str, int], int | None]


class Site:
    """A cluster, and the two tools."""

    def __init__(self, bootstrap: str, directory: Path) -> None:
        self.bootstrap = bootstrap
        self.directory = directory
        self.cluster = Cluster(KafkaSettings(bootstrap_servers=bootstrap))

    def refold(self, *words: str, ok: int = 0, **variables: Any) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "streams", *words],
            env=environment(self.bootstrap) | variables,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == ok, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        check_printed(done.stdout)
        return done.stdout, done.stderr

    def json(self, *words: str, **variables: Any) -> Any:
        return orjson.loads(self.refold(*words, "--json", **variables)[0])

    def kafka(self, *words: str) -> list[list[str]]:
        """The rows of a table that Kafka's tool prints, without those that name its columns."""
        rows = [line.split() for line in consumer_groups(self.bootstrap, *words).splitlines()]
        return [row for row in rows if len(row) >= 4 and row[2].isdigit() and not row[3].isalpha()]

    def kafka_offsets(self, *words: str) -> Offsets:
        return {(row[1], int(row[2])): int(row[3]) for row in self.kafka("--reset-offsets", *words)}

    def our_offsets(self, *words: str) -> Offsets:
        found = self.json("reset-offsets", *words)
        return {(one["topic"], one["partition"]): one["offset"] for one in found["offsets"]}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        found = self.cluster.committed(group, self.cluster.topic(topic))
        return {number: one.position for number, one in found.items()}


def environment(bootstrap: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("REFOLD_") and name != "COLUMNS"}
    return mine | {"REFOLD_BOOTSTRAP_SERVERS": bootstrap, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def site(bootstrap_servers: str, tmp_path: Path) -> Site:
    return Site(bootstrap_servers, tmp_path)


@contextmanager
def reading(bootstrap: str, topics: list[str], group: str, **settings: Any) -> Iterator[Consumer]:
    """A member of a group that has read all that there was."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest", "client.id": "biller"}
        | {"enable.auto.commit": False}
        | settings
    )
    consumer.subscribe(topics)
    try:
        until("the assignment", lambda: consumer.poll(0.1) is not None or consumer.assignment())
        yield consumer
    finally:
        consumer.close()


def commit(site: Site, group: str, topic: str, offsets: dict[int, int]) -> None:
    consumer = Consumer({"bootstrap.servers": site.bootstrap, "group.id": group})
    try:
        consumer.commit(
            offsets=[TopicPartition(topic, partition, offset) for partition, offset in offsets.items()],
            asynchronous=False,
        )
    finally:
        consumer.close()


def numbers(site: Site, topic: str, partition: int, count: int, **settings: Any) -> None:
    produce(site.bootstrap, topic, [(None, b"x")] * count, partition=partition, **settings)


def test_lag_is_what_kafkas_tool_says_of_a_group_of_several_topics(
    site: Site, topic: TopicFactory, group: GroupFactory
) -> None:
    one, two, name = topic(3), topic(1), group()
    for partition, count in enumerate((10, 0, 7)):
        numbers(site, one, partition, count)
    numbers(site, two, 0, 4)
    commit(site, name, one, {0: 4, 1: 0})
    commit(site, name, two, {0: 4})
    with reading(site.bootstrap, [one, two], name, **{"group.instance.id": "biller-0"}):
        theirs = {
            (row[1], int(row[2])): tuple(row[3:6])
            for row in site.kafka("--describe", "--group", name)
            if row[0] == name
        }
        found = site.json("lag", "--group", name)["groups"][0]
        ours = {
            (part["topic"], part["partition"]): tuple(
                "-" if part[key] is None else str(part[key]) for key in ("position", "end", "lag_records")
            )
            for part in found["partitions"]
        }
        assert ours == theirs
        assert ours[one, 2] == ("-", "7", "-")
        assert found["state"] == "Stable"
        (member,) = found["members"]
        assert (member["client_id"], member["instance_id"]) == ("biller", "biller-0")
        assert len(member["partitions"]) == 4
        assert {part["member"] for part in found["partitions"]} == {"biller"}
        text, _ = site.refold("lag", "--group", name)
        assert "biller as biller-0 on 127.0.0.1" in text
        assert f"{name}: Stable, lag 13 records" in text


def test_lag_tells_how_long_records_wait_and_how_long_they_are_kept(
    site: Site, topic: TopicFactory, group: GroupFactory
) -> None:
    name, kept_s = group(), 3600
    events = topic(2, {"retention.ms": str(kept_s * 1000)})
    now_ms = time.time_ns() // 1_000_000
    producer = Producer({"bootstrap.servers": site.bootstrap})
    for age_s in (600, 60, 5):
        producer.produce(events, b"x", partition=0, timestamp=now_ms - age_s * 1000)
    producer.produce(events, b"x", partition=1)
    assert producer.flush(30) == 0
    commit(site, name, events, {0: 1, 1: 1})
    found = site.json("lag", "--group", name, "--sample-seconds", "0")["groups"][0]
    waits, read = found["partitions"]
    assert 60 <= waits["behind_seconds"] < 90
    assert waits["behind_seconds"] + waits["retention_left_seconds"] == pytest.approx(kept_s, abs=0.01)
    assert waits["retention_margin_records"] == 1
    assert (read["behind_seconds"], read["retention_left_seconds"]) == (0.0, None)
    assert found["behind_seconds"] == waits["behind_seconds"]


def test_lag_tells_of_what_was_deleted_unread_and_of_an_open_transaction(
    site: Site, topic: TopicFactory, new_kit: NewKit
) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(20))
    commit(site, kit.group, kit.topic, {0: 5})
    kit.delete_before(0, 8)
    writer = Producer({"bootstrap.servers": kit.bootstrap, "transactional.id": kit.topic})
    writer.init_transactions(30)
    writer.begin_transaction()
    writer.produce(kit.topic, b"x")
    assert writer.flush(30) == 0
    found = site.json("lag", "--group", kit.group)["groups"][0]["partitions"][0]
    text, _ = site.refold("lag", "--group", kit.group)
    writer.abort_transaction(30)
    assert (found["position"], found["start"], found["stable_end"], found["end"]) == (5, 8, 20, 21)
    assert (found["lag_records"], found["lost_records"]) == (16, 3)
    assert f"{kit.topic}[0]: 3 of these were deleted unread; it begins at 8" in text
    assert f"{kit.topic}[0]: a transaction is open at 20" in text


def test_lag_of_a_projection_needs_no_code_of_it_and_gives_a_rate(new_kit: NewKit, site: Site) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    known: dict[str, Any] = {"REFOLD_REGISTRY": kit.registry}
    with kit.process() as live:
        until("a record of the registry", lambda: kit.lag() == 0 and site.json("lag", **known)["groups"])
        assert live.terminate() == 0
    found = site.json("lag", "tally", **known)["groups"][0]
    assert (found["projection"], found["generation"], found["phase"]) == ("tally", "tally.v1", "active")
    assert (found["lag_records"], found["group"]) == (0, kit.group)
    produce(kit.bootstrap, kit.topic, tally_events(40, first=300))
    found = site.json("lag", "tally", **known)["groups"][0]
    assert found["lag_records"] == 40
    assert (found["records_read_per_second"], found["eta_seconds"]) == (0.0, None)
    _, err = site.refold("lag", "tallly", ok=6, **known)
    assert "The registry knows tally." in err


def test_lag_is_watched_in_lines_as_json_and_on_a_terminal(
    site: Site, topic: TopicFactory, group: GroupFactory
) -> None:
    events, name = topic(1), group()
    numbers(site, events, 0, 10)
    commit(site, name, events, {0: 4})
    words = ("lag", "--group", name, "--watch", "--for-seconds", "5", "--every-seconds", "0.3")
    lines = site.refold(*words)[0].splitlines()
    assert len(lines) >= 2
    assert all("lag 6 records" in line for line in lines)
    looks = [orjson.loads(line) for line in site.refold(*words, "--json")[0].splitlines()]
    assert len(looks) >= 2
    assert looks[-1]["groups"][0]["records_read_per_second"] == 0.0
    command = [sys.executable, "-m", "streams", "lag", "--group", name, "--watch", "--every-seconds", "0.2"]
    with on_screen(command, environment=environment(site.bootstrap)) as screen:
        screen.wait_for("lag 6 records", "0 records/s")
        commit(site, name, events, {0: 9})
        screen.wait_for("lag 1 records")
        screen.type("\x03")
        assert screen.end() == 0


def test_lag_over_time_is_drawn(site: Site, topic: TopicFactory, group: GroupFactory) -> None:
    events, name = topic(1), group()
    numbers(site, events, 0, 500)
    commit(site, name, events, {0: 0})
    command = [sys.executable, "-m", "streams", "lag", "--group", name, "--plot", "--every-seconds", "0.2"]
    with on_screen(command, environment=environment(site.bootstrap)) as screen:
        screen.wait_for("lag, in records", "500┤")
        commit(site, name, events, {0: 500})
        screen.until(
            "a line that falls", lambda: any("⢣" in t or "⡇" in t or "⠱" in t or "⢇" in t for t in [screen.text()])
        )
        screen.type("\x03")
        assert screen.end() == 0
    _, err = site.refold("lag", "--group", name, "--plot", ok=2)
    assert "--for-seconds" in err
    text, _ = site.refold("lag", "--group", name, "--plot", "--for-seconds", "0.5", "--every-seconds", "0.2")
    assert "lag, in records" in text


def test_unknown_group_is_told_with_near_names(site: Site, topic: TopicFactory, group: GroupFactory) -> None:
    events, name = topic(1), group("invoicing")
    numbers(site, events, 0, 1)
    commit(site, name, events, {0: 1})
    _, err = site.refold("lag", "--group", f"{name}x", ok=6)
    assert f"There is no consumer group '{name}x'" in err
    assert name in err.split("Near names:")[1]


@pytest.fixture
def idle(site: Site, topic: TopicFactory, group: GroupFactory) -> tuple[str, str]:
    """A topic of three partitions with timestamps, and a group that has read some of it."""
    events, name = topic(3), group()
    producer = Producer({"bootstrap.servers": site.bootstrap})
    now_ms = time.time_ns() // 1_000_000
    for number in range(12):
        for partition in (0, 1):
            producer.produce(events, b"x", partition=partition, timestamp=now_ms - (12 - number) * 600_000)
    assert producer.flush(30) == 0
    commit(site, name, events, {0: 5, 1: 12})
    return events, name


HOURS_AGO = time.strftime("%Y-%m-%dT%H:%M:%S.000", time.gmtime(time.time() - 3700))


@pytest.mark.parametrize(
    "where",
    [
        ("--to-earliest",),
        ("--to-latest",),
        ("--to-current",),
        ("--to-offset", "0"),
        ("--to-datetime", HOURS_AGO),
        ("--to-datetime", HOURS_AGO + "+01:00"),
        ("--by-duration", "PT35M"),
        ("--by-duration", "P0DT1H0M0S"),
    ],
    ids=lambda where: "-".join(where)[:24],
)
def test_resets_are_those_of_kafkas_tool(site: Site, idle: tuple[str, str], where: tuple[str, ...]) -> None:
    events, name = idle
    scope = ("--group", name, "--topic", events, *where)
    before = site.committed(name, events)
    planned = site.our_offsets(*scope, "--dry-run")
    assert planned == site.kafka_offsets(*scope, "--dry-run")
    assert site.committed(name, events) == before
    assert site.our_offsets(*scope, "--execute") == planned
    assert site.committed(name, events) == {number: planned[events, number] for number in range(3)}


def test_shifts_and_single_partitions_are_those_of_kafkas_tool(site: Site, idle: tuple[str, str]) -> None:
    events, name = idle
    scope = ("--group", name, "--topic", f"{events}:0,1", "--shift-by", "-3")
    assert site.our_offsets(*scope, "--dry-run") == site.kafka_offsets(*scope, "--dry-run")
    assert site.our_offsets(*scope, "--execute") == {(events, 0): 2, (events, 1): 9}
    assert site.committed(name, events) == {0: 2, 1: 9}


def test_exported_lines_go_from_either_tool_into_the_other(site: Site, idle: tuple[str, str], tmp_path: Path) -> None:
    events, name = idle
    words = ("--group", name, "--all-topics", "--to-current", "--export")
    ours = site.refold("reset-offsets", *words)[0]
    theirs = [
        line for line in consumer_groups(site.bootstrap, "--reset-offsets", *words).splitlines() if events in line
    ]
    assert sorted(line.replace('"', "") for line in theirs) == sorted(ours.splitlines())
    lines = tmp_path / "offsets.csv"
    lines.write_text(ours.replace(f"{events},0,5", f"{events},0,7"))
    scope = ("--group", name, "--from-file", str(lines))
    assert (
        site.kafka_offsets(*scope, "--dry-run")
        == site.our_offsets(*scope, "--dry-run")
        == {
            (events, 0): 7,
            (events, 1): 12,
        }
    )
    site.refold("reset-offsets", *scope, "--execute")
    assert site.committed(name, events) == {0: 7, 1: 12}
    lines.write_text("\n".join(theirs))
    site.refold("reset-offsets", *scope, "--execute")
    assert site.committed(name, events) == {0: 5, 1: 12}


def test_several_groups_are_set_by_lines_that_name_them(
    site: Site, idle: tuple[str, str], group: GroupFactory, tmp_path: Path
) -> None:
    events, name = idle
    other = group()
    commit(site, other, events, {2: 0})
    both = ("--group", name, "--group", other)
    text, _ = site.refold("reset-offsets", *both, "--all-topics", "--to-current", "--export")
    assert f"{other},{events},2,0\n" in text
    lines = tmp_path / "offsets.csv"
    lines.write_text(f"{name},{events},0,1\n{other},{events},0,2\n")
    theirs = site.kafka("--reset-offsets", *both, "--from-file", str(lines), "--dry-run")
    assert sorted(theirs) == sorted([[name, events, "0", "1"], [other, events, "0", "2"]])
    site.refold("reset-offsets", *both, "--from-file", str(lines), "--execute")
    assert site.committed(name, events) == {0: 1, 1: 12}
    assert site.committed(other, events) == {0: 2, 2: 0}


def test_offset_that_there_is_not_is_refused_and_never_clamped(site: Site, idle: tuple[str, str]) -> None:
    events, name = idle
    before = site.committed(name, events)
    for where in (("--to-offset", "13"), ("--shift-by", "1"), ("--shift-by", "-6")):
        _, err = site.refold("reset-offsets", "--group", name, "--topic", events, *where, "--execute", ok=2)
        assert "it has 0 to 12" in err
        assert "nothing was changed" in err
    assert f"{events}[2]: the group has no offset there that could be shifted" in err
    _, err = site.refold("reset-offsets", "--group", name, "--topic", f"{events}:7", "--to-latest", "--execute", ok=2)
    assert f"{events}[7]: there are 3 partitions" in err
    assert site.committed(name, events) == before


def test_group_that_reads_is_left_alone_and_its_members_are_named(site: Site, idle: tuple[str, str]) -> None:
    events, name = idle
    scope = ("--group", name, "--topic", events)
    with reading(site.bootstrap, [events], name, **{"group.instance.id": "biller-7"}):
        before = site.committed(name, events)
        _, err = site.refold("reset-offsets", *scope, "--to-earliest", "--execute", ok=3)
        assert "biller on 127.0.0.1" in err
        assert "a static member (biller-7)" in err
        assert "session.timeout.ms" in err
        site.refold("reset-offsets", *scope, "--to-earliest", "--dry-run")
        assert site.committed(name, events) == before


def test_group_of_the_newer_protocol_is_told_of_and_left_alone(site: Site, idle: tuple[str, str]) -> None:
    events, name = idle
    with reading(site.bootstrap, [events], name, **{"group.protocol": "consumer"}):
        found = until("its assignment", lambda: held(site, name))
        assert (found["state"], found["assignor"]) == ("Stable", "uniform")
        assert {part["member"] for part in found["partitions"]} == {"biller"}
        _, err = site.refold("reset-offsets", "--group", name, "--topic", events, "--to-earliest", "--execute", ok=3)
        assert "biller on 127.0.0.1" in err
    until("it to leave", lambda: not site.json("lag", "--group", name)["groups"][0]["members"])
    site.refold("reset-offsets", "--group", name, "--topic", events, "--to-earliest", "--execute")
    assert site.committed(name, events) == {0: 0, 1: 0, 2: 0}


def held(site: Site, name: str) -> Any:
    found = site.json("lag", "--group", name)["groups"][0]
    return found if all(part["member"] for part in found["partitions"]) else None


def test_reset_without_a_word_shows_and_asks(site: Site, idle: tuple[str, str]) -> None:
    events, name = idle
    words = ("reset-offsets", "--group", name, "--topic", events, "--to-earliest")
    before = site.committed(name, events)
    text, err = site.refold(*words, ok=2)
    assert "new offset" in text
    assert "Say --execute to do it" in err
    command = [sys.executable, "-m", "streams", *words]
    with on_screen(command, columns=140, environment=environment(site.bootstrap)) as screen:
        screen.wait_for("Set them? [y/N]")
        screen.type("n\n")
        assert screen.end() == 2
    assert site.committed(name, events) == before
    with on_screen(command, columns=140, environment=environment(site.bootstrap)) as screen:
        screen.wait_for("Set them? [y/N]")
        screen.type("y\n")
        assert screen.end() == 0
    assert site.committed(name, events) == {0: 0, 1: 0, 2: 0}


def test_what_is_wrong_with_the_words_is_said(site: Site, tmp_path: Path) -> None:
    lines = tmp_path / "bad.csv"
    lines.write_text("t,0,1\nt,0,2\nt,one,3\nt,4\ng2,t,1,1\n")
    for words, told in (
        (("--group", "g", "--all-topics"), "Say where to, once"),
        (("--group", "g", "--all-topics", "--to-latest", "--to-earliest"), "These are 2"),
        (("--to-latest",), "Say whose offsets"),
        (("--group", "g", "--to-latest"), "--all-topics"),
        (("--group", "g", "--topic", "t:x", "--to-latest"), "TOPIC:PARTITION"),
        (("--group", "g", "--all-topics", "--by-duration", "1h"), "PnDTnHnMnS"),
        (("--group", "g", "--all-topics", "--to-datetime", "noon"), "YYYY-MM-DD"),
        (("--group", "g", "--from-file", str(lines)), "line 2: t,0,2: t[0] a second time"),
        (("--group", "g", "--from-file", str(lines)), "line 5: g2,t,1,1: group 'g2' was not named"),
        (("--group", "g", "--from-file", str(lines / "x")), "cannot be read"),
        (("--group", "g", "--all-topics", "--to-latest", "--dry-run", "--execute"), "exclude each other"),
    ):
        assert told in site.refold("reset-offsets", *words, ok=2)[1], words


def test_reset_of_a_projection_says_what_it_means_and_refuses_what_the_models_cannot_honour(
    new_kit: NewKit, site: Site
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    known: dict[str, Any] = {"REFOLD_REGISTRY": kit.registry}
    with kit.process() as live:
        until("it to be folded", lambda: kit.lag() == 0 and site.json("lag", **known)["groups"])
        _, err = site.refold("reset-offsets", "tally", "--to-earliest", "--execute", ok=3, **known)
        assert f"process {live.process.pid}" in err
        assert live.terminate() == 0
    models, before = kit.models(), kit.committed()
    same = site.json("reset-offsets", "tally", "--to-latest", "--execute", **known)
    assert {one["means"] for one in same["offsets"]} == {"as it is"}
    assert kit.committed() == before
    for where in (("--to-offset", "10"), ("--shift-by", "-1")):
        _, err = site.refold("reset-offsets", "tally", *where, "--execute", ok=2, **known)
        assert f"the models there are of position {before[0].position}" in err
        assert "refold rebuild tally --from offset:0=" in err
    assert kit.committed() == before
    produce(kit.bootstrap, kit.topic, tally_events(10, first=300))
    _, err = site.refold("reset-offsets", "tally", "--to-latest", "--execute", ok=2, **known)
    assert "no offset can set" in err
    one = ("--group", kit.group, "--topic", f"{kit.topic}:1")
    text, _ = site.refold("reset-offsets", *one, "--to-earliest", "--execute", **known)
    assert "folded again from the beginning, in place" in text
    assert kit.committed()[1].position == 0
    assert kit.models() == models
    with kit.process() as live:
        until("it to be folded again", lambda: kit.lag() == 0)
        assert live.terminate() == 0
    assert kit.check() == 310
    assert kit.build == 2
    kit.delete_before(0, 3)
    _, err = site.refold("reset-offsets", "tally", "--to-earliest", "--execute", ok=4, **known)
    assert "lacks its first 3 offsets" in err
