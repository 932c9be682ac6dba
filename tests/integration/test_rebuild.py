"""Rebuilding from the beginning: what it gives, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from projections.contract import Event
from streams.config import FoldSettings
from streams.data.stamp import Stamp
from streams.errors import (
    EventError,
    ForeignStore,
    GroupActive,
    HistoryIncomplete,
    ProjectionError,
    RebuildCancelled,
    RebuildError,
    TopicNotFound,
)
from streams.types import RebuildProgress
from tests.integration.kit import TALLY, Kit, produce, read_log, tally_events, until, wait_for_log
from tests.support import Tally, envelope

NewKit = Callable[..., Kit]


async def test_rebuilt_models_equal_the_live_ones_byte_for_byte(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(20_000, streams=900))
    kit.fold_all()
    live = kit.raw()
    progress = await kit.coordinator().rebuild_from_beginning()
    assert kit.raw() == live
    assert kit.check() == 20_000
    assert (progress.events_processed, progress.total_events, progress.is_running) == (20_000, 20_000, False)
    assert progress.models_updated == 20_000 - len([n for n in range(20_000) if n % 11 == 0])
    assert progress.completion_percentage() == 100.0
    assert progress.error is None
    assert progress.started_at is not None
    assert progress.estimated_completion is None
    assert progress.events_per_second == pytest.approx(20_000 / progress.elapsed_seconds)


async def test_changed_fold_gives_its_own_models_and_nothing_of_the_old(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    kit.fold_all()

    class Changed(Tally):
        name = "tally"

        def extract_model_id(self, event: Event) -> str | None:
            return event.stream if event.stream.endswith("1") else None

    kit.projection = Changed()
    await kit.coordinator().rebuild_from_beginning()
    assert kit.models()
    assert all(model_id.endswith("1") for model_id in kit.models())
    assert kit.check() == 2000


async def test_offsets_are_reset_and_stamped_with_the_new_build(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(500))
    kit.fold_all()
    await kit.coordinator().rebuild_from_beginning()
    await kit.coordinator().rebuild_from_beginning()
    committed = kit.committed()
    stamps = [Stamp.parse(one.metadata) for one in committed.values()]
    assert [stamp.build for stamp in stamps if stamp] == [3, 3, 3, 3]
    assert {p: one.position for p, one in committed.items()} == kit.positions()
    assert kit.fold_all().status.events == 0  # live goes on from where the rebuild ended
    produce(kit.bootstrap, kit.topic, tally_events(70, first=500))
    assert kit.fold_all().status.events == 70
    assert kit.check() == 570


async def test_events_that_arrive_meanwhile_are_left_to_live_folding(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(30_000))
    work = asyncio.ensure_future(kit.coordinator().rebuild_from_beginning())
    await asyncio.to_thread(produce, kit.bootstrap, kit.topic, tally_events(30_000, first=30_000))
    progress = await work
    assert progress.completion_percentage() == 100.0
    assert all(lag.position >= lag.target for lag in progress.partitions.values())
    assert kit.check() >= 30_000
    kit.fold_all()
    assert kit.check() == 60_000


async def test_empty_topic_is_complete_at_once(new_kit: NewKit) -> None:
    progress = await new_kit().coordinator().rebuild_from_beginning()
    assert progress.completion_percentage() == 100.0
    assert (progress.events_processed, progress.total_offsets) == (0, 0)


async def test_progress_is_monotone_and_says_100_only_at_the_end(new_kit: NewKit) -> None:
    kit = new_kit(settings=FoldSettings(checkpoint_events=1000))
    produce(kit.bootstrap, kit.topic, tally_events(60_000))
    coordinator = kit.coordinator()
    assert coordinator.get_progress() == RebuildProgress()
    assert coordinator.get_progress().completion_percentage() is None
    seen: list[RebuildProgress] = []
    ended = threading.Event()

    def watch() -> None:  # from a thread that has nothing to do with the rebuild's
        while not ended.wait(0.0005):
            seen.append(coordinator.get_progress())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        final = await coordinator.rebuild_from_beginning()
    finally:
        ended.set()
        watcher.join()
    running = [progress for progress in seen if progress.is_running and progress.partitions]
    percentages = [progress.completion_percentage() or 0.0 for progress in running]
    assert percentages == sorted(percentages)
    assert len(set(percentages)) > 3
    assert [p.events_processed for p in running] == sorted(p.events_processed for p in running)
    for progress in running:
        all_there = all(lag.position >= lag.target for lag in progress.partitions.values())
        assert (progress.completion_percentage() == 100.0) == all_there
    halfway = [p for p in running if 30 < (p.completion_percentage() or 0) < 90]
    assert any(p.estimated_seconds_left() is not None and p.events_per_second > 0 for p in halfway)
    assert final == coordinator.get_progress()


async def test_group_that_is_folding_is_refused_and_nothing_changed(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    with kit.process() as process:
        until("lag 0", lambda: kit.lag() == 0)
        before = kit.raw()
        with pytest.raises(GroupActive, match=r"refold on .*partitions 0, 1, 2, 3.*SIGTERM"):
            await kit.coordinator().rebuild_from_beginning()
        assert kit.raw() == before
        assert kit.lag() == 0
        assert process.terminate() == 0
    await kit.coordinator().rebuild_from_beginning()
    assert kit.raw() == before


async def test_second_rebuild_is_refused_while_one_runs(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(50_000))
    first = asyncio.ensure_future(kit.coordinator().rebuild_from_beginning())
    await asyncio.to_thread(until, "it has begun", kit.store.directory.joinpath("current.json").exists)
    with pytest.raises(RebuildError, match="running"):
        await kit.coordinator().rebuild_from_beginning()
    await first
    assert kit.check() == 50_000


async def test_history_that_is_gone_is_named_before_anything_changes(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    before = kit.raw()
    kit.delete_before(0, 40)
    with pytest.raises(HistoryIncomplete, match=r"\[0\] lacks its first 40 offsets"):
        await kit.coordinator().rebuild_from_beginning()
    assert kit.raw() == before
    assert kit.lag() == 0
    progress = await kit.coordinator(allow_incomplete=True).rebuild_from_beginning()
    assert (progress.events_processed, progress.completion_percentage()) == (60, 100.0)
    assert kit.check() == 60


async def test_compacted_topic_is_refused_unless_allowed(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, config={"cleanup.policy": "compact"})
    produce(kit.bootstrap, kit.topic, tally_events(10))
    with pytest.raises(HistoryIncomplete, match="compacted"):
        await kit.coordinator().rebuild_from_beginning()
    await kit.coordinator(allow_incomplete=True).rebuild_from_beginning()
    assert kit.check() == 10


async def test_compaction_gaps_do_not_keep_a_rebuild_from_its_end(new_kit: NewKit) -> None:
    config = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "min.compaction.lag.ms": "0",
        "max.compaction.lag.ms": "100",
    }
    kit = new_kit(partitions=1, config=config)
    topic = kit.cluster.topic(kit.topic)

    def visible() -> int:
        # A new record now and then rolls the segment, which is what lets the cleaner at the old one.
        produce(kit.bootstrap, kit.topic, [("stream-0", envelope(1))])
        return len(read_log(kit.bootstrap, topic)[0])

    produce(kit.bootstrap, kit.topic, tally_events(2000, streams=10))
    until("the cleaner has taken records", lambda: visible() < 1500)
    progress = await kit.coordinator(allow_incomplete=True).rebuild_from_beginning()
    assert progress.completion_percentage() == 100.0
    assert progress.total_offsets > progress.events_processed


async def test_unknown_topic_changes_nothing(new_kit: NewKit) -> None:
    kit = new_kit()
    kit.cluster.delete_topic(kit.topic)
    until("the topic is gone", lambda: kit.topic not in kit.cluster.topics())
    with pytest.raises(TopicNotFound):
        await kit.coordinator().rebuild_from_beginning()
    assert not kit.state_dir.exists()


async def test_directory_of_something_else_is_refused(new_kit: NewKit) -> None:
    kit = new_kit()
    kit.store.directory.mkdir(parents=True)
    (kit.store.directory / "precious").write_text("x")
    with pytest.raises(ForeignStore):
        await kit.coordinator().rebuild_from_beginning()
    assert (kit.store.directory / "precious").read_text() == "x"


@pytest.mark.parametrize("kind", ["fail", "unstorable", "bad"])
async def test_event_that_cannot_be_folded_fails_the_rebuild_in_front_of_it(new_kit: NewKit, kind: str) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(700))
    poison = b"{" if kind == "bad" else envelope(700, kind)
    produce(kit.bootstrap, kit.topic, [("stream-0", poison), *tally_events(50, first=701)])
    coordinator = kit.coordinator()
    with pytest.raises((EventError, ProjectionError)) as raised:
        await coordinator.rebuild_from_beginning()
    assert f"{kit.topic}[0]@700" in str(raised.value)
    progress = coordinator.get_progress()
    assert not progress.is_running
    assert progress.error == str(raised.value)
    assert (progress.completion_percentage() or 0) < 100
    assert progress.total_events is None
    assert kit.positions() == {0: 700}


async def test_cancel_stops_commits_and_says_so(new_kit: NewKit) -> None:
    kit = new_kit(settings=FoldSettings(checkpoint_events=200))
    produce(kit.bootstrap, kit.topic, tally_events(50_000))
    coordinator = kit.coordinator()
    coordinator.cancel()  # nothing runs: nothing happens
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(
        until, "some events are folded", lambda: coordinator.get_progress().events_processed >= 1000
    )
    coordinator.cancel()
    with pytest.raises(RebuildCancelled, match="cancelled after"):
        await work
    progress = coordinator.get_progress()
    assert not progress.is_running
    assert 0 < (progress.completion_percentage() or 0) < 100
    assert 0 < kit.check() < 50_000
    kit.fold_all()
    assert kit.check() == 50_000


@pytest.mark.parametrize("how", ["task", "timeout"])
async def test_cancelling_the_task_does_the_same(new_kit: NewKit, how: str) -> None:
    kit = new_kit(settings=FoldSettings(checkpoint_events=20))
    produce(kit.bootstrap, kit.topic, tally_events(50_000))
    coordinator = kit.coordinator()
    if how == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await coordinator.rebuild_from_beginning()
    else:
        work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
        await asyncio.to_thread(
            until, "some events are folded", lambda: coordinator.get_progress().events_processed >= 1000
        )
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert not coordinator.get_progress().is_running
    assert kit.cluster.members(kit.group) == []
    assert kit.check() < 50_000
    kit.fold_all()
    assert kit.check() == 50_000


async def test_cancelling_the_task_again_and_again_waits_for_its_end_all_the_same(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(50_000))
    coordinator = kit.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(
        until, "some events are folded", lambda: coordinator.get_progress().events_processed >= 1000
    )
    for _ in range(5):
        work.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await work
    assert kit.cluster.members(kit.group) == []
    assert kit.check() < 50_000


async def test_signal_cancels_a_program_of_ones_own(new_kit: NewKit) -> None:
    kit = new_kit(settings=FoldSettings(checkpoint_events=20))
    produce(kit.bootstrap, kit.topic, tally_events(50_000))
    coordinator = kit.coordinator()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, coordinator.cancel)
    try:
        work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
        await asyncio.to_thread(
            until, "some events are folded", lambda: coordinator.get_progress().events_processed >= 1000
        )
        os.kill(os.getpid(), signal.SIGUSR1)
        began = time.monotonic()
        with pytest.raises(RebuildCancelled) as raised:
            await work
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
    assert time.monotonic() - began < 1.0
    assert kit.check() < 50_000
    await kit.coordinator().rebuild_from_checkpoint(raised.value.checkpoint)
    assert kit.check() == 50_000


@pytest.mark.slow
def test_rebuild_killed_at_random_moments_is_gone_on_with(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100_000, streams=3000))
    kit.fold_all()
    live = kit.raw()
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    rng = random.Random(11)
    fast = {"REFOLD_SESSION_TIMEOUT_S": "1"}
    build = 1
    for attempt in range(6):
        with kit.process("--yes", "--checkpoint-events", "400", command="rebuild", env=fast) as process:
            until("it is at work", lambda: '"strategy' in process.output() or "build" in process.output())
            time.sleep(rng.uniform(0.0, 0.5))  # the moment of the crash, not a wait for anything
            process.kill()
        kit.check(log)  # each partition's models are true to its position, whichever build it is in
        until("the killed member is dropped", lambda: not kit.cluster.members(kit.group))
        assert kit.build in (attempt + 2, build)
        build = kit.build
    kit.fold_all()
    assert kit.check(log) == 100_000
    assert kit.raw() == live


@pytest.mark.slow
def test_partition_that_moves_to_another_member_still_counts(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(40_000))
    with kit.process("--yes", "--json", "--checkpoint-events", "5", command="rebuild") as rebuild:
        wait_for_log(rebuild, ["partitions.assigned"])
        with kit.process() as live:
            wait_for_log(live, ["partitions.assigned"])
            assert rebuild.wait() == 0, rebuild.output()
            final = orjson.loads(rebuild.output().splitlines()[-1])
            assert final["completion_percentage"] == 100.0
            assert final["events_processed"] == 40_000
            until("lag 0", lambda: kit.lag() == 0)
            assert live.terminate() == 0
    assert kit.check() == 40_000


@pytest.mark.slow
def test_rebuild_that_waits_for_a_killed_member_says_so_and_for_how_long(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(700, first=1))
    slow, env = "tests.integration.slow:SlowTally", {"REFOLD_SESSION_TIMEOUT_S": "25"}
    with kit.process("--yes", command="rebuild", projection=slow, env=env) as rebuild:
        wait_for_log(rebuild, ["partitions.assigned"])
        with kit.process(projection=slow, env=env) as helper:
            wait_for_log(helper, ["partitions.assigned"])
            until("it helps", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [2, 2])
            helper.kill()
        wait_for_log(rebuild, ["waiting for partitions", "dropped after its session timeout (25 s)", "s by now"])
        assert rebuild.wait() == 0, rebuild.output()
    assert kit.check() == 700


def test_interrupted_command_exits_130_and_run_goes_on(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(40_000))
    with kit.process("--yes", "--checkpoint-events", "5", command="rebuild") as process:
        wait_for_log(process, ["partitions.assigned"])
        process.process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert "Traceback" not in process.output(), process.output()
    assert kit.check() < 40_000
    kit.fold_all()
    assert kit.check() == 40_000


def test_command_asks_before_it_clears(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()
    with kit.process(command="rebuild") as process:
        assert process.wait() == 2
        assert "--yes" in process.output()
    assert kit.build == 1


def test_exit_codes_and_one_line_errors(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.delete_before(0, 5)
    for projection, arguments, code in [
        (TALLY, [], 4),
        ("no-such-projection", [], 6),
        (TALLY, ["--cache-bytes", "1"], 2),
    ]:
        with kit.process("--yes", *arguments, command="rebuild", projection=projection) as process:
            assert process.wait() == code, process.output()
            last = process.output().splitlines()[-1]
            assert last.startswith("refold: ")
            assert "Traceback" not in process.output()


def test_get_prints_one_model(new_kit: NewKit, capfd: Any) -> None:
    import subprocess
    import sys

    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    model_id, model = next(iter(kit.models().items()))
    command = [sys.executable, "-m", "streams", "get", TALLY, model_id, "--state-dir", str(kit.state_dir)]
    found = subprocess.run(command, capture_output=True, check=True, env=dict(os.environ))
    assert orjson.loads(found.stdout) == model
    command[5] = "nobody"
    missing = subprocess.run(command, capture_output=True, check=False)
    assert missing.returncode == 6
    assert b"no model 'nobody'" in missing.stderr
