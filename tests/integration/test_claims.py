"""Who may fold what: directories, groups, offsets that somebody else set, and topics that are not what they were."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from streams.data.build import write_record
from streams.data.json_codec import JsonCodec
from streams.errors import (
    BuildChanged,
    CodeChanged,
    ForeignOffset,
    GroupActive,
    HistoryIncomplete,
    ModelSplit,
    StoreLocked,
    TopicChanged,
)
from tests.integration.kit import Kit, produce, reset, tally_events, until, wait_for_log
from tests.support import envelope

NewKit = Callable[..., Kit]
COMPACTED = {"cleanup.policy": "compact"}


# Offsets that somebody else set


@pytest.mark.parametrize("gone", ["deleted", "compacted"])
def test_reset_to_a_beginning_that_the_log_no_longer_has_is_refused_before_anything_is_touched(
    new_kit: NewKit, gone: str
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(200))
    kit.fold_all()
    before, positions = kit.raw(), kit.positions()
    if gone == "deleted":
        kit.delete_before(0, 30)
        reset(kit, {0: 30, 1: 0})
    else:
        alter(kit, "compact")
        reset(kit, dict.fromkeys(positions, 0))
    with pytest.raises(HistoryIncomplete, match="nothing was changed"):
        kit.claim()
    assert (kit.raw(), kit.positions(), kit.build) == (before, positions, 1)
    kit.fold_all(allow_incomplete=True)
    assert kit.build == 2
    kit.check()


def alter(kit: Kit, policy: str) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    admin = AdminClient({"bootstrap.servers": kit.bootstrap})
    entry = ConfigEntry("cleanup.policy", policy, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, kit.topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result()
    until("the topic has it", lambda: kit.cluster.topic_config(kit.topic)["cleanup.policy"] == policy)


def test_mixed_reset_is_judged_as_a_whole(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(500))
    kit.fold_all()
    before, positions = kit.raw(), kit.positions()
    reset(kit, {0: 0, 1: positions[1] - 3})
    with pytest.raises(ForeignOffset, match=rf"\[1\]@{positions[1] - 3} .*position {positions[1]}"):
        kit.claim()
    assert (kit.raw(), kit.positions(), kit.build) == (before, positions, 1)
    reset(kit, {1: positions[1]})  # the way out that the message names
    assert kit.fold_all().status.events == positions[0]
    assert (kit.raw(), kit.positions(), kit.build) == (before, positions, 2)
    assert kit.fold_all().status.events == 0


def test_reset_of_all_partitions_is_a_rebuild_also_by_changed_code(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    kit.codec = JsonCodec(metadata="meta")
    kit.events.codec = kit.codec
    with pytest.raises(
        CodeChanged, match=r"read with JsonCodec\(.*metadata='metadata'.*now JsonCodec\(.*metadata='meta'"
    ):
        kit.claim()
    reset(kit, {0: 0, 1: 0})
    assert kit.fold_all().status.events == 300
    assert kit.check() == 300


def test_offsets_of_somebody_elses_consumer_are_refused_before_a_state_is_founded(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    reset(kit, {0: 5})
    with pytest.raises(ForeignOffset, match=r"\[0\]@5 .*no models"):
        kit.claim()
    assert not kit.state_dir.exists()
    reset(kit, {0: 0})
    assert kit.fold_all().status.events == 10


# What a topic lacks


def test_run_on_a_compacted_topic_is_refused_and_leaves_nothing(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, config=COMPACTED)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    with kit.process() as process:
        assert process.wait() == 4
    assert "compacted, which keeps only the last event" in process.output()
    assert list(kit.state_dir.iterdir()) == []
    kit.fold_all(allow_incomplete=True)
    kit.fold_all()  # once begun, it is not asked again
    assert kit.check() == 10


def test_store_that_was_removed_is_not_begun_anew_where_its_first_events_are_gone(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    shutil.rmtree((kit.store.current() or pytest.fail("no build")).path / "1")
    assert kit.fold_all().status.events == kit.positions()[1]  # the log is the truth
    shutil.rmtree((kit.store.current() or pytest.fail("no build")).path / "1")
    kit.delete_before(1, 20)
    with pytest.raises(HistoryIncomplete, match=r"\[1\] begins at offset 20, and the models are of position 0"):
        kit.fold_all()
    assert list(kit.positions()) == [0]
    kit.fold_all(allow_incomplete=True)
    kit.fold_all()  # once begun, it is not asked again
    kit.check()


def test_topic_that_becomes_compacted_later_is_refused_with_the_state_kept(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()
    alter(kit, "compact")
    with pytest.raises(HistoryIncomplete, match="compacted"):
        kit.claim()
    assert kit.positions() == {0: 10}
    kit.fold_all(allow_incomplete=True)


async def test_refused_rebuild_leaves_not_even_a_directory(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    other = Kit(kit.bootstrap, kit.topic, kit.group, kit.state_dir.parent / "other")
    with kit.process() as process:
        wait_for_log(process, ["partitions.assigned"])
        with pytest.raises(GroupActive, match=rf"refold on .*process {process.process.pid} "):
            await other.coordinator().rebuild_from_beginning()
        assert process.terminate() == 0
    kit.delete_before(0, 5)
    with pytest.raises(HistoryIncomplete):
        await other.coordinator().rebuild_from_beginning()
    assert not other.state_dir.exists()


# Two processes


def test_same_group_with_another_directory_is_refused_by_the_first_ones_name(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    other = Kit(kit.bootstrap, kit.topic, kit.group, tmp_path / "other")
    with kit.process() as first:
        until("lag 0", lambda: kit.lag() == 0)
        with other.process() as second:
            assert second.wait() == 3, second.output()
        assert f"process {first.process.pid} (partitions 0, 1)" in second.output()
        assert "another state directory" in second.output()
        assert list(other.state_dir.iterdir()) == []
        assert first.terminate() == 0
    assert kit.check() == 100


@pytest.mark.parametrize("attempt", range(3))
def test_two_first_starts_in_two_directories_at_once_end_with_one(
    new_kit: NewKit, tmp_path: Path, attempt: int
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kits = [Kit(kit.bootstrap, kit.topic, kit.group, tmp_path / str(number) / "state") for number in range(2)]
    with kits[0].process() as first, kits[1].process() as second:
        processes = [first, second]
        until("one has given up", lambda: any(not one.runs() for one in processes))
        until("lag 0", lambda: kit.lag() == 0)
        codes = [one.terminate() if one.runs() else one.wait() for one in processes]
    assert sorted(codes) == [0, 3], [one.output() for one in processes]
    assert kits[codes.index(0)].check() == 100


def test_many_first_starts_in_one_directory_share_its_build(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    failures: list[BaseException] = []

    def claim() -> None:
        try:
            Kit(kit.bootstrap, kit.topic, kit.group, kit.state_dir).claim()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=claim) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert kit.build == 1
    kit.fold_all()
    assert kit.check() == 1000


async def test_rebuild_is_refused_while_another_group_folds_in_the_directory(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    other = Kit(kit.bootstrap, kit.topic, f"{kit.group}-2", kit.state_dir)
    with kit.process() as process:
        until("lag 0", lambda: kit.lag() == 0)
        before = kit.raw()
        with pytest.raises(StoreLocked, match=rf"run of tally\.v1 \(process {process.process.pid} on "):
            await other.coordinator().rebuild_from_beginning()
        assert (kit.raw(), kit.build) == (before, 1)
        assert process.terminate() == 0


@pytest.mark.slow
async def test_readers_never_fail_while_rebuilds_run(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    kit.fold_all()
    live = kit.raw()
    ended = threading.Event()
    seen: list[int] = []
    failures: list[BaseException] = []

    def read() -> None:
        while not ended.is_set():
            try:
                seen.append(len(kit.raw()))
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
                return

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            await kit.coordinator().rebuild_from_beginning()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(seen) > 20
    assert kit.raw() == live


def test_agent_stops_at_its_next_commit_when_another_record_is_current(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()
    with kit.live() as agent:
        failure: list[BaseException] = []

        def run() -> None:
            try:
                agent.run()
            except BaseException as error:  # noqa: BLE001
                failure.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        until("it folds", lambda: agent.status.partitions)
        build = kit.store.current() or pytest.fail("no build")
        newer = type(build.current)(
            **{name: getattr(build.current, name) for name in build.current.__struct_fields__ if name != "revision"},
            revision=2,
        )
        write_record(kit.store.directory / "current.json", newer)
        produce(kit.bootstrap, kit.topic, tally_events(5, first=10))
        thread.join(30)
        assert not thread.is_alive()
    assert isinstance(failure[0], BuildChanged)
    assert kit.positions() == {0: 10}


# Topics that are not what they were


@pytest.mark.parametrize("more", [5, 500])
def test_topic_made_again_under_a_running_fold_is_noticed_before_anything_of_it_is_committed(
    new_kit: NewKit, more: int
) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    with kit.process() as process:
        until("lag 0", lambda: kit.lag() == 0)
        before = kit.raw()
        kit.cluster.delete_topic(kit.topic)
        until("the topic is gone", lambda: kit.topic not in kit.cluster.topics())
        kit.cluster.create_topic(kit.topic, 1)
        until("it is there again", lambda: kit.topic in kit.cluster.topics())
        produce(kit.bootstrap, kit.topic, [("new", envelope(number)) for number in range(more)])
        assert process.wait() != 0, process.output()
    assert "Traceback" not in process.output()
    assert (kit.raw(), kit.positions()) == (before, {0: 100})
    with pytest.raises(TopicChanged, match="made again"):
        kit.claim()


# One stream on several partitions


async def test_stream_on_two_partitions_fails_a_rebuild_with_both_named(new_kit: NewKit) -> None:
    kit = new_kit(partitions=3)
    produce(kit.bootstrap, kit.topic, tally_events(300), partition=0)
    produce(kit.bootstrap, kit.topic, [("other", envelope(1)), ("stream-7", envelope(2))], partition=2)
    coordinator = kit.coordinator()
    with pytest.raises(ModelSplit, match=rf"'stream-7' is on {kit.topic}\[0\] and on {kit.topic}\[2\].*partition_by"):
        await coordinator.rebuild_from_beginning()
    progress = coordinator.get_progress()
    assert not progress.is_running
    assert "stream-7" in (progress.error or "")


def test_stream_on_two_partitions_halts_a_run(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300), partition=0)
    with kit.process() as process:
        until("lag 0", lambda: kit.lag() == 0)
        produce(kit.bootstrap, kit.topic, [("stream-7", envelope(2))], partition=1)
        assert process.wait() == 1, process.output()
    assert f"'stream-7' is on {kit.topic}[0] and on {kit.topic}[1]" in process.output()


def test_stream_on_two_partitions_is_found_when_a_long_first_fold_has_caught_up(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, [(f"s{number}", envelope(1)) for number in range(5000)], partition=0)
    produce(kit.bootstrap, kit.topic, [(f"s{number}", envelope(1)) for number in range(4999, 9000)], partition=1)
    with kit.process() as process:
        assert process.wait() == 1, process.output()
    assert f"'s4999' is on {kit.topic}[0] and on {kit.topic}[1]" in process.output()
