"""Live folding against the real broker: crashes, rebalances, offsets, and everything that must be refused."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from projections.contract import CqrsProjection, Event
from streams.config import FoldSettings
from streams.data.agent import AgentStatus
from streams.data.cloudevents import CloudEventsCodec
from streams.data.rocks_partition import RocksPartition
from streams.data.stamp import Stamp
from streams.errors import (
    CodeChanged,
    DiskFull,
    EventError,
    ForeignOffset,
    GroupActive,
    HistoryIncomplete,
    ProjectionError,
    StoreLocked,
    TopicChanged,
    TopicNotFound,
)
from tests.integration.kit import Kit, produce, read_log, reset, tally_events, traffic, until, wait_for_log
from tests.support import Tally, envelope, folded

NewKit = Callable[..., Kit]


def test_folds_every_event_and_goes_on_from_there(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    assert kit.fold_all().status.events == 2000
    assert kit.check() == 2000
    produce(kit.bootstrap, kit.topic, tally_events(500, first=2000))
    assert kit.fold_all().status.events == 500
    assert kit.check() == 2500


@pytest.mark.parametrize("every", [1, 7, 1000])
def test_a_given_checkpoint_interval_is_kept_exactly(new_kit: NewKit, every: int) -> None:
    kit = new_kit(partitions=1, settings=FoldSettings(checkpoint_events=every, checkpoint_seconds=100))
    produce(kit.bootstrap, kit.topic, tally_events(50))
    committed: set[int] = set()

    def look(status: AgentStatus) -> None:
        committed.update(one.committed for one in status.partitions.values() if one.committed >= 0)

    kit.fold_all(look=look)
    assert committed | {0} == {*range(0, 51, every), 50}
    assert kit.check() == 50


def test_at_the_end_of_a_backlog_models_are_in_tables_for_those_who_open_the_store(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(20_000, streams=20_000))
    with kit.process() as process:
        until("all to be folded", lambda: kit.lag() == 0)
        (store,) = [path for path in kit.store.directory.glob("builds/*/0") if path.is_dir()]
        until("the log to be short", lambda: sum(path.stat().st_size for path in store.glob("*.log")) < 10_000)
        produce(kit.bootstrap, kit.topic, tally_events(500, first=20_000))
        until("all to be folded", lambda: kit.lag() == 0)
        process.kill()
    assert kit.check() == 20_500


@pytest.mark.slow
def test_killed_at_random_moments_models_are_the_fold_of_the_log(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(150_000, streams=5000))
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    rng = random.Random(7)
    seen = []
    for _ in range(8):
        # A killed member's partitions are given out again after its session timeout.
        with kit.process("--checkpoint-events", "500", env={"REFOLD_SESSION_TIMEOUT_S": "2"}) as process:
            wait_for_log(process, ["partitions.assigned"])
            time.sleep(rng.uniform(0.0, 0.25))  # the moment of the crash, not a wait for anything
            process.kill()
        seen.append(kit.check(log))
    assert seen == sorted(seen)
    assert any(0 < count < 150_000 for count in seen), f"no kill hit the middle of the fold: {seen}"
    kit.fold_all()
    assert kit.check(log) == 150_000


@pytest.mark.slow
def test_two_processes_share_the_partitions_and_hand_them_over_in_the_middle(new_kit: NewKit) -> None:
    kit = new_kit(partitions=6)
    produce(kit.bootstrap, kit.topic, tally_events(60_000, streams=500))
    # A checkpoint at each event makes the fold slow enough for the handover to fall into its middle.
    slow = ("--checkpoint-events", "5")
    with kit.process(*slow) as first:
        wait_for_log(first, ["partitions.assigned"])
        with kit.process(*slow) as second:
            wait_for_log(second, ['"positions"'])
            until(
                "both hold partitions",
                lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [3, 3],
            )
            assert kit.lag() > 0, "the fold was over before the handover"
            assert first.terminate() == 0
            until(
                "the second has all",
                lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [6],
            )
            before = kit.lag()
            until("it to fold on", lambda: kit.lag() < before - 100)
            assert second.terminate() == 0
    kit.check()
    kit.fold_all()
    assert kit.check() == 60_000


def test_record_written_at_the_end_is_folded_after_a_rebalance(new_kit: NewKit) -> None:
    # At the end of a partition librdkafka's own position was one too far before 2.13 (librdkafka #4844).
    kit = new_kit(partitions=8)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with kit.process() as first:
        until("lag 0", lambda: kit.lag() == 0)
        for number in range(2):
            with kit.process() as second:
                until("both are in", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [4, 4])
                assert second.terminate() == 0
            until("one is left", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [8])
            for partition in range(8):
                produce(kit.bootstrap, kit.topic, [(f"late-{partition}", envelope(number))], partition=partition)
            until("lag 0 again", lambda: kit.lag() == 0)
        assert first.terminate() == 0
    assert kit.check() == 1016


def test_offsets_and_stamps_are_as_kafkas_admin_client_sees_them(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    admin = AdminClient({"bootstrap.servers": kit.bootstrap})
    futures = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(kit.group)])
    committed = {where.partition: where for where in futures[kit.group].result().topic_partitions}
    positions = kit.positions()
    assert {partition: where.offset for partition, where in committed.items()} == positions
    for where in committed.values():
        stamp = Stamp.parse(where.metadata)
        assert stamp is not None
        assert (stamp.generation, stamp.build) == ("tally.v1", 1)
        assert len(stamp.fingerprint) == 16
    checkpoint = kit.checkpoints.load("tally")
    assert checkpoint is not None
    assert (checkpoint.topic, checkpoint.positions, checkpoint.events_processed) == (
        kit.topic,
        positions,
        100,
    )


def test_mirror_is_never_ahead_of_the_store(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, settings=FoldSettings(checkpoint_events=50))
    produce(kit.bootstrap, kit.topic, tally_events(3000))

    def look(status: AgentStatus) -> None:
        for partition, mirrored in kit.committed().items():
            if partition in status.partitions and status.partitions[partition].committed >= 0:
                assert mirrored.position <= status.partitions[partition].committed

    kit.fold_all(look=look)
    assert kit.check() == 3000


@pytest.mark.parametrize("how", ["run", "rebuild"])
async def test_transactions_committed_and_aborted_end_at_exactly_the_end(new_kit: NewKit, how: str) -> None:
    kit = new_kit(partitions=2)
    producer = Producer({"bootstrap.servers": kit.bootstrap, "transactional.id": kit.group})
    producer.init_transactions(30)
    for number, outcome in enumerate(["commit", "abort", "commit", "abort", "abort"]):
        producer.begin_transaction()
        for key, value in tally_events(20, first=number * 20):
            producer.produce(kit.topic, value=value, key=key)
        producer.flush()
        (producer.commit_transaction if outcome == "commit" else producer.abort_transaction)(30)

    def stable_ends() -> dict[int, int]:
        return {p: marks.high for p, marks in kit.cluster.watermarks(kit.cluster.topic(kit.topic)).items()}

    # Five markers in each partition that a transaction wrote to have offsets of their own; the last is written
    # a moment after the broker has said yes.
    until("the last marker is written", lambda: sum(stable_ends().values()) == 110)
    ends = stable_ends()
    if how == "run":
        kit.fold_all()
    else:
        progress = await kit.coordinator().rebuild_from_beginning()
        assert progress.completion_percentage() == 100.0
        assert (progress.events_processed, progress.total_events) == (40, 40)
        assert {p: lag.position for p, lag in progress.partitions.items()} == ends
    assert kit.positions() == ends
    assert kit.lag() == 0
    assert kit.check() == 40


def test_open_transaction_is_waited_for_by_nobody_and_folded_when_it_commits(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    producer = Producer({"bootstrap.servers": kit.bootstrap, "transactional.id": kit.group})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(kit.topic, value=envelope(10), key="stream-0")
    producer.flush()
    kit.fold_all()
    assert kit.check() == 10
    producer.commit_transaction(30)
    kit.fold_all()
    assert kit.check() == 11


BAD_RECORDS: dict[str, tuple[bytes | None, bytes | None, str]] = {
    "undecodable": (b"k", b"{not json", "is not JSON"),
    "no type": (b"k", b'{"id":"x"}', "no 'type'"),
    "null value": (b"k", None, "the value is null"),
    "key not UTF-8": (b"\xff\xfe", b'{"type":"add"}', "is not UTF-8"),
    "no key": (None, b'{"type":"add"}', "no key"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_bad_record_stops_with_its_coordinates_and_everything_before_it_is_kept(new_kit: NewKit, kind: str) -> None:
    key, value, why = BAD_RECORDS[kind]
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(30))
    produce(kit.bootstrap, kit.topic, [(key, value)])
    produce(kit.bootstrap, kit.topic, tally_events(5, first=31))
    for _ in range(2):  # again at the next start: the same place, nothing twice
        with pytest.raises(EventError) as raised:
            kit.fold_all()
        assert f"{kit.topic}[0]@30 is no event" in str(raised.value)
        assert why in str(raised.value)
        assert kit.positions() == {0: 30}
        log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
        assert kit.models() == folded(log[0][:30])


@pytest.mark.parametrize("kind", ["fail", "unstorable"])
def test_failing_user_code_stops_in_front_of_its_event_and_the_corrected_code_goes_on(
    new_kit: NewKit, kind: str
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(200), partition=0)
    produce(kit.bootstrap, kit.topic, [("stream-0", envelope(200, kind))], partition=0)
    produce(kit.bootstrap, kit.topic, tally_events(100, first=201), partition=0)
    produce(kit.bootstrap, kit.topic, [("other", envelope(1)) for _ in range(50)], partition=1)
    for _ in range(2):
        with pytest.raises(ProjectionError) as raised:
            kit.fold_all()
        assert (raised.value.partition, raised.value.offset, raised.value.event_id) == (0, 200, "e200")
        assert f"{kit.topic}[0]@200" in str(raised.value)
        assert kit.positions()[0] == 200
        assert (
            kit.models()["stream-0"]
            == folded(read_log(kit.bootstrap, kit.cluster.topic(kit.topic))[0][:200])["stream-0"]
        )

    class Corrected(Tally):
        name = "tally"

        def extract_model_id(self, event: Event) -> str | None:
            return None if event.type == kind else super().extract_model_id(event)

    kit.projection = Corrected()
    kit.fold_all(adopt=True)
    assert kit.check() == 351


def test_event_of_900_kb_is_folded(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(
        kit.bootstrap,
        kit.topic,
        [("a", envelope(0)), ("a", envelope(1, text="x" * 900_000)), ("a", envelope(2))],
    )
    kit.fold_all()
    assert kit.check() == 3


def test_typed_async_projection_folds_cloudevents(new_kit: NewKit) -> None:
    class Count(CqrsProjection[dict]):  # type: ignore[type-arg]
        name = "count"

        def extract_model_id(self, event: Event) -> str | None:
            return event.stream

        async def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any]:
            return {"n": (model or {"n": 0})["n"] + event.data["n"]}

    kit = new_kit(partitions=1, projection=Count(), codec=CloudEventsCodec())
    event = b'{"specversion":"1.0","id":"1","source":"/s","type":"T","data":{"n":2}}'
    produce(kit.bootstrap, kit.topic, [("a", event), ("b", event), ("a", event)])
    kit.fold_all()
    assert kit.models() == {"a": {"n": 4}, "b": {"n": 2}}


# Offsets that somebody else set


def test_group_reset_to_the_beginning_by_an_admins_tool_rebuilds(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    kit.fold_all()
    before = kit.raw()
    reset(kit, dict.fromkeys(kit.positions(), 0))
    agent = kit.fold_all()
    assert agent.status.events == 500
    assert kit.raw() == before
    assert kit.check() == 500


@pytest.mark.parametrize("offset", [3, 99999])
def test_group_set_to_what_the_state_cannot_honour_is_refused_and_the_state_kept(new_kit: NewKit, offset: int) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(50))
    kit.fold_all()
    before = kit.raw()
    reset(kit, {0: offset})
    with pytest.raises(ForeignOffset, match=rf"\[0\]@{offset} .*position 50.*--to-earliest"):
        kit.fold_all()
    assert kit.raw() == before
    reset(kit, {0: 50})  # the way out that the message names
    kit.fold_all()
    assert kit.check() == 50


def test_group_of_another_projection_is_refused(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()

    class Other(Tally):
        name = "other"

    other = Kit(kit.bootstrap, kit.topic, kit.group, tmp_path / "other", Other())
    with pytest.raises(ForeignOffset, match="cannot share a group"):
        other.fold_all()
    assert kit.lag() == 0


def test_lost_disk_is_folded_again_from_the_log(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    empty = Kit(kit.bootstrap, kit.topic, kit.group, tmp_path / "new-disk")
    assert empty.fold_all().status.events == 300
    assert empty.raw() == kit.raw()


# Topics and stores that are not what they were


def test_unknown_topic_is_named_with_near_ones(new_kit: NewKit) -> None:
    kit = new_kit()
    near = f"{kit.topic[:-1]}x"
    with pytest.raises(TopicNotFound, match=f"{near}.*does not exist.*{kit.topic}"):
        Kit(kit.bootstrap, near, kit.group, kit.state_dir).claim()


def test_topic_made_again_is_refused(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()
    before = kit.raw()
    kit.cluster.delete_topic(kit.topic)
    until("the topic is gone", lambda: kit.topic not in kit.cluster.topics())
    kit.cluster.create_topic(kit.topic, 1)
    with pytest.raises(TopicChanged, match="made again"):
        kit.claim()
    assert kit.raw() == before


def test_partitions_added_are_refused(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()
    admin = AdminClient({"bootstrap.servers": kit.bootstrap})
    admin.create_partitions([NewPartitions(kit.topic, 2)])[kit.topic].result()
    until("both partitions are known", lambda: kit.cluster.topic(kit.topic).partitions == 2)
    with pytest.raises(TopicChanged, match=r"2 partitions, and .* from 1"):
        kit.claim()


def test_events_deleted_before_they_were_folded_are_named(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(30))
    kit.fold_all()
    produce(kit.bootstrap, kit.topic, tally_events(30, first=30))
    kit.delete_before(0, 40)
    with pytest.raises(HistoryIncomplete, match=r"begins at offset 40.*position 30: 10 offsets are gone"):
        kit.fold_all()
    assert kit.positions() == {0: 30}


def test_new_state_on_a_truncated_topic_must_be_allowed(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(30))
    kit.delete_before(0, 10)
    with pytest.raises(HistoryIncomplete, match="--allow-incomplete"):
        kit.fold_all()
    kit.fold_all(allow_incomplete=True)
    assert kit.check() == 20
    kit.fold_all()  # once begun, it is not asked again


def test_second_process_on_the_same_state_is_refused_and_the_first_unhurt(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, settings=FoldSettings())
    produce(kit.bootstrap, kit.topic, tally_events(100))
    with kit.process() as first:
        wait_for_log(first, ["partitions.assigned"])
        second = Kit(kit.bootstrap, kit.topic, f"{kit.group}-2", kit.state_dir, settings=kit.settings)
        with pytest.raises(StoreLocked):
            second.fold_all()
        until("lag 0", lambda: kit.lag() == 0)
        assert first.terminate() == 0
    assert kit.check() == 100


def test_changed_code_is_refused_until_adopted_or_rebuilt(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()

    class Changed(Tally):
        name = "tally"
        version = 2

    changed = Kit(kit.bootstrap, kit.topic, kit.group, kit.state_dir, Changed())
    changed.store = kit.store
    with pytest.raises(CodeChanged, match="--adopt"):
        changed.claim()
    changed.fold_all(adopt=True)
    changed.claim()


# Brokers


@pytest.mark.slow
def test_broker_that_goes_away_and_comes_back_costs_nothing(private_broker: Any, tmp_path: Path) -> None:
    bootstrap = private_broker.bootstrap_servers
    kit = Kit(bootstrap, "outage", "outage", tmp_path / "state")
    kit.cluster.create_topic("outage", 2)
    until("the topic is there", lambda: "outage" in kit.cluster.topics())
    produce(bootstrap, "outage", tally_events(5000))
    with kit.process() as process:
        until("lag 0", lambda: kit.lag() == 0)
        private_broker.kill()
        wait_for_log(process, ["broker.away"])
        private_broker.restart()
        produce(bootstrap, "outage", tally_events(5000, first=5000))
        until("lag 0 again", lambda: kit.lag() == 0)
        assert process.terminate() == 0
    assert kit.check() == 10_000


def test_broker_away_at_the_start_is_one_clear_error(new_kit: NewKit) -> None:
    kit = new_kit()
    env = {"REFOLD_BOOTSTRAP_SERVERS": "127.0.0.1:1", "REFOLD_REQUEST_TIMEOUT_S": "2"}
    with kit.process(env=env) as process:
        assert process.wait(20) == 7
    assert "No Kafka broker at 127.0.0.1:1 answered within 2 s" in process.output()
    assert "Traceback" not in process.output()


def test_broker_away_for_longer_than_the_limit_ends_the_fold(private_broker: Any, tmp_path: Path) -> None:
    bootstrap = private_broker.bootstrap_servers
    kit = Kit(bootstrap, "limit", "limit", tmp_path / "state")
    kit.cluster.create_topic("limit", 1)
    until("the topic is there", lambda: "limit" in kit.cluster.topics())
    produce(bootstrap, "limit", tally_events(100))
    with kit.process(env={"REFOLD_OUTAGE_LIMIT_S": "2"}) as process:
        until("lag 0", lambda: kit.lag() == 0)
        private_broker.kill()
        assert process.wait(40) == 7
    assert "REFOLD_OUTAGE_LIMIT_S" in process.output()
    private_broker.restart()
    assert kit.check() == 100


# Processes


def test_sigterm_drains_commits_leaves_and_exits_0(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(20_000))
    with kit.process() as process:
        wait_for_log(process, ["partitions.assigned"])
        assert process.terminate() == 0
        assert kit.cluster.members(kit.group) == []
        committed = kit.committed()
        positions = kit.positions()
        assert {partition: one.position for partition, one in committed.items()} == {
            partition: positions.get(partition, 0) for partition in range(4)
        }
        assert "run.stopped" in process.output()
    kit.check()


def test_slow_user_code_stops_promptly_at_sigterm(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(500, first=1))
    with kit.process(projection="tests.integration.slow:SlowTally") as process:
        wait_for_log(process, ["partitions.assigned"])
        until("some events are folded", lambda: kit.lag() < 500)
        began = time.monotonic()
        assert process.terminate() == 0
        assert time.monotonic() - began < 5
    assert 0 < kit.check() < 500


def test_reads_beside_the_writer(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with kit.process() as process:
        until("lag 0", lambda: kit.lag() == 0)
        assert kit.check() == 1000
        assert process.runs()


def test_consumer_of_another_kind_in_the_group_takes_no_partition_silently(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    consumer = Consumer(
        {"bootstrap.servers": kit.bootstrap, "group.id": kit.group, "partition.assignment.strategy": "range"}
    )
    consumer.subscribe([kit.topic])
    until("it is in the group", lambda: consumer.poll(0.1) or consumer.assignment())
    with pytest.raises(GroupActive, match=r"rdkafka on .*partitions 0"):
        kit.fold_all()
    consumer.close()


def test_what_was_fetched_before_a_store_is_opened_anew_is_not_folded_over_the_gap(
    new_kit: NewKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write fails while events come: its partition waits, and is read again from where its store is."""
    kit = new_kit(partitions=2)
    committed, chance = RocksPartition.commit, random.Random(4)
    failed = 0

    def failing(*arguments: Any) -> None:
        nonlocal failed
        if chance.random() < 0.3 and failed < 8:
            failed += 1
            raise DiskFull("no space, for a moment")
        committed(*arguments)

    monkeypatch.setattr(RocksPartition, "commit", failing)
    with traffic(kit, 0), kit.live() as agent:
        thread = threading.Thread(target=agent.run)
        thread.start()
        until("all to have failed", lambda: failed == 8)
        time.sleep(1.5)
        agent.stop()
        thread.join()
    assert kit.check() > 500


def test_live_partitions_are_committed_one_after_the_other_where_many_models_changed(new_kit: NewKit) -> None:
    """Each pause is short then; whichever was committed when the process dies, nothing is lost or doubled."""
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(4000, streams=2000))
    env = {"REFOLD_LOG": "streams.data.commits=debug", "REFOLD_SESSION_TIMEOUT_S": "6"}
    with kit.process(env=env) as live:
        wait_for_log(live, ["run.started"])
        until("all to be folded", lambda: kit.lag() == 0)
        for number in range(1, 11):
            produce(kit.bootstrap, kit.topic, tally_events(4000, streams=2000, first=4000 * number))
        until("all to be folded", lambda: kit.lag() == 0)
        saved = [orjson.loads(line)["models"] for line in live.output().splitlines() if "checkpoint.saved" in line]
        assert sum(100 < models < 1000 for models in saved) >= 4, saved  # of one partition each
        for number in range(11, 16):
            produce(kit.bootstrap, kit.topic, tally_events(4000, streams=2000, first=4000 * number))
        live.kill()
    kit.fold_all()
    assert kit.check() == 64_000
