"""Signals, stopped processes, silent brokers, full and damaged disks: what they cost, and what they never cost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from rocksdict import Options, Rdict

from streams import Generations
from streams.broker import EmbeddedBroker
from streams.cluster import Cluster
from streams.config import FoldSettings, KafkaSettings
from streams.data.agent import AgentStatus
from streams.data.partition import Phase
from streams.data.process_runner import ProcessRunner
from streams.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    CqrsError,
    DiskFull,
    ProjectionError,
    RebuildCancelled,
    StorageError,
)
from tests.integration.fleet import fleet
from tests.integration.kit import Kit, produce, tally_events, until, wait_for_log
from tests.support import Tally, envelope

NewKit = Callable[..., Kit]
SLOW = "tests.integration.slow:SlowTally"


@contextmanager
def paused(pid: int | None) -> Iterator[None]:
    """Stop a process for the time of the block."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def private_kit(private_broker: EmbeddedBroker, tmp_path: Path) -> Kit:
    """A Kit on a broker of this test's own."""
    kit = Kit(private_broker.bootstrap_servers, "trouble", "trouble", tmp_path / "state")
    kit.cluster.create_topic("trouble", 2)
    until("the topic is there", lambda: "trouble" in kit.cluster.topics())
    return kit


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("silent", [False, True])
def test_run_drains_within_ten_seconds_whatever_the_broker_does(
    private_broker: EmbeddedBroker, private_kit: Kit, number: signal.Signals, silent: bool
) -> None:
    kit = private_kit
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with kit.process() as process:
        until("lag 0", lambda: kit.lag() == 0)
        if silent:
            with paused(private_broker.pid):
                process.process.send_signal(number)
                assert process.wait(12) == 0, process.output()
        else:
            process.process.send_signal(number)
            assert process.wait(10) == 0, process.output()
    assert "Traceback" not in process.output()
    assert kit.check() == 2000


def test_rebuild_drains_too_while_the_broker_is_silent(private_broker: EmbeddedBroker, private_kit: Kit) -> None:
    kit = private_kit
    produce(kit.bootstrap, kit.topic, tally_events(3000, first=1))
    with kit.process("--yes", command="rebuild", projection=SLOW) as process:
        wait_for_log(process, ["partitions.assigned"])
        with paused(private_broker.pid):
            process.process.send_signal(signal.SIGTERM)
            assert process.wait(12) == 130, process.output()
    assert "Traceback" not in process.output()
    assert kit.check() < 3000


@pytest.mark.parametrize("command", ["run", "rebuild"])
def test_second_signal_ends_at_once(new_kit: NewKit, command: str) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(50))
    arguments = ["--yes"] if command == "rebuild" else []
    with kit.process(*arguments, command=command, projection="tests.integration.slow:StuckTally") as process:
        wait_for_log(process, ["partitions.assigned", "stuck"])
        process.process.send_signal(signal.SIGTERM)
        wait_for_log(process, ["run.stopping"])
        process.process.send_signal(signal.SIGTERM)
        assert process.wait(3) == 128 + signal.SIGTERM
    assert kit.positions() in ({}, {0: 0})


def test_user_code_that_does_not_end_is_given_up_after_the_deadline(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(50))
    with kit.process(projection="tests.integration.slow:StuckTally") as process:
        wait_for_log(process, ["partitions.assigned", "stuck"])
        process.process.send_signal(signal.SIGTERM)
        assert process.wait(13) == 0
    assert "not drained within 10 s" in process.output()


# Members and brokers that stop


@pytest.mark.slow
def test_stopped_member_costs_its_partitions_a_wait_and_never_the_others_life(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(4000))
    fast = {"REFOLD_SESSION_TIMEOUT_S": "6"}
    with kit.process(env=fast) as first, kit.process(env=fast) as second:
        until("both hold partitions", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [2, 2])
        for one in (first, second):
            wait_for_log(one, ["partitions.assigned"])  # and have them open
        until("lag 0", lambda: kit.lag() == 0)
        with paused(first.process.pid):
            until("the second has all", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [4])
            produce(kit.bootstrap, kit.topic, tally_events(2000, first=4000))
            wait_for_log(second, ["partition.stalled"])
            assert second.runs()
        until("lag 0 again", lambda: kit.lag() == 0)
        until("both hold partitions", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [2, 2])
        produce(kit.bootstrap, kit.topic, tally_events(100, first=6000))
        until("lag 0 at last", lambda: kit.lag() == 0)
        assert [first.terminate(), second.terminate()] == [0, 0]
    assert kit.check() == 6100


def test_a_broker_that_is_silent_never_says_where_a_partition_ends(private_broker: EmbeddedBroker) -> None:
    """An answer for several partitions may come without an error, and without their offsets."""
    cluster = Cluster(KafkaSettings(bootstrap_servers=private_broker.bootstrap_servers))
    cluster.create_topic("ends", 8)
    topic = cluster.topic("ends")
    hurried = cluster.within(0.3)
    for _ in range(6):
        with paused(private_broker.pid):
            began = time.monotonic()
            while time.monotonic() - began < 0.8:
                with contextlib.suppress(BrokerError):
                    marks = hurried.watermarks(topic)
                    assert {(one.low, one.high) for one in marks.values()} == {(0, 0)}
        until("it to answer", lambda: cluster.watermarks(topic))
    assert cluster.watermarks(topic)[7].high == 0


@pytest.mark.slow
def test_broker_that_stops_during_an_assignment_is_waited_for(private_broker: EmbeddedBroker, private_kit: Kit) -> None:
    kit = private_kit
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    with kit.process(env={"REFOLD_REQUEST_TIMEOUT_S": "2"}) as process:
        wait_for_log(process, ["run.started"])
        for _ in range(3):
            with paused(private_broker.pid):
                time.sleep(3)  # as long as the broker is to be silent
            time.sleep(0.3)
        until(f"lag 0, by {process.log}", lambda: kit.lag() == 0)
        assert process.terminate() == 0
    assert kit.check() == 2000


async def test_rebuild_that_loses_its_broker_ends_with_the_error_in_its_progress(
    private_broker: EmbeddedBroker, private_kit: Kit
) -> None:
    kit = private_kit
    produce(kit.bootstrap, kit.topic, tally_events(300))
    slow = Kit(
        kit.bootstrap,
        kit.topic,
        kit.group,
        kit.state_dir,
        projection=_slow(),
        kafka_settings={"outage_limit_s": 2.0, "request_timeout_s": 2.0},
    )
    coordinator = slow.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(until, "it folds", lambda: coordinator.get_progress().events_processed > 10)
    private_broker.kill()
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(work, 60)
    progress = coordinator.get_progress()
    assert (progress.is_running, progress.total_events) == (False, None)
    assert progress.error


def _slow() -> Tally:
    from tests.integration.slow import SlowTally

    return SlowTally()


# Cancelling, and one rebuild's figures


@pytest.mark.parametrize("delay_s", [None, 0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.8])
async def test_cancel_at_any_moment(new_kit: NewKit, delay_s: float | None) -> None:
    kit = new_kit(settings=FoldSettings(checkpoint_events=50))
    produce(kit.bootstrap, kit.topic, tally_events(4000))
    kit.fold_all()
    before = kit.raw()
    coordinator = kit.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    if delay_s is not None:
        await asyncio.sleep(delay_s)
    coordinator.cancel()
    outcome = (await asyncio.gather(work, return_exceptions=True))[0]
    progress = coordinator.get_progress()
    assert not progress.is_running
    if isinstance(outcome, RebuildCancelled):
        assert progress.error == str(outcome)
        if "before anything was changed" in str(outcome):
            assert kit.raw() == before
            assert kit.lag() == 0
    else:
        assert progress.completion_percentage() == 100.0, outcome
    kit.fold_all()
    assert kit.raw() == before


async def test_cancel_before_it_is_awaited_leaves_everything_untouched(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    coordinator = kit.coordinator()
    rebuild = coordinator.rebuild_from_beginning()
    coordinator.cancel()
    with pytest.raises(RebuildCancelled, match="before anything was changed"):
        await rebuild
    assert not kit.state_dir.exists()
    await coordinator.rebuild_from_beginning()  # the next one is not cancelled


async def test_ones_figures_are_never_shown_for_the_next(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    coordinator = kit.coordinator()
    await coordinator.rebuild_from_beginning()
    kit.delete_before(0, 5)
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.sleep(0)
    running = coordinator.get_progress()
    assert (running.is_running, running.events_processed, running.completion_percentage()) == (True, 0, None)
    with pytest.raises(CqrsError):
        await work
    failed = coordinator.get_progress()
    assert (failed.is_running, failed.events_processed) == (False, 0)
    assert "lacks its first 5 offsets" in (failed.error or "")


# One partition's trouble


def test_halted_partition_leaves_the_others_folding(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, [("a", envelope(1)), ("a", envelope(2, "fail"))], partition=0)
    produce(kit.bootstrap, kit.topic, [("b", envelope(number)) for number in range(100)], partition=1)
    with kit.process("--report-seconds", "0.2") as process:
        wait_for_log(process, ["partition.halted", '"halted": {"0"'])
        until("the other is at its end", lambda: kit.committed()[1].position == 100)
        produce(kit.bootstrap, kit.topic, [("b", envelope(number)) for number in range(50)], partition=1)
        until("it goes on", lambda: kit.committed()[1].position == 150)
        assert process.terminate() == 1
    assert f"{kit.topic}[0]@1: the projection failed" in process.output()
    assert kit.positions() == {0: 1, 1: 150}


def test_error_of_user_code_comes_with_its_own_traceback_once(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [("a", envelope(1, "fail"))])
    with kit.process() as process:
        assert process.wait() == 1
    said = process.output()
    assert said.count("Traceback (most recent call last)") == 1
    assert 'raise ValueError(f"cannot fold {event.id}")' in said
    assert "streams/data/fold.py" not in said
    assert said.splitlines()[-1].startswith("refold: ")
    assert said.count("the projection failed") == 1


def test_whole_traceback_is_told_at_debug_level(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [("a", envelope(1, "fail"))])
    with kit.process(level="debug") as process:
        assert process.wait() == 1
    assert "streams/data/fold.py" in process.output()
    assert 'raise ValueError(f"cannot fold {event.id}")' in process.output()


def test_setting_that_is_not_the_users_is_one_message_and_exit_code_2(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    for settings, why in [
        ('{"isolation.level": "read_uncommitted"}', "isolation.level (aborted transactions are no events)"),
        ('{"no.such.key": 1}', "no.such.key"),
    ]:
        with kit.process(env={"REFOLD_KAFKA": settings}) as process:
            assert process.wait() == 2
        assert why in process.output()
        assert len(process.output().splitlines()) == 1


def test_corrupt_block_halts_with_the_way_out(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(4000, streams=2000))
    kit.fold_all()
    path = (kit.store.current() or pytest.fail("no build")).path / "0"
    db = Rdict(str(path), Options(raw_mode=True))
    db.flush(True)
    db.close()
    table = max(path.glob("*.sst"), key=lambda file: file.stat().st_size)
    data = bytearray(table.read_bytes())
    data[100 : len(data) // 2] = bytes(len(data) // 2 - 100)
    table.write_bytes(data)
    produce(kit.bootstrap, kit.topic, tally_events(2000, streams=2000))
    with kit.process() as process:
        assert process.wait() == 1, process.output()
    last = process.output().splitlines()[-1]
    assert "cannot be read" in last
    assert "rebuild from the beginning" in last
    assert "the projection failed" not in process.output()


# A process of its own


async def test_rebuild_in_a_process_of_its_own_gives_the_same(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    kit.fold_all()
    before = kit.raw()
    progress = await kit.coordinator(runner=ProcessRunner).rebuild_from_beginning()
    assert (progress.events_processed, progress.completion_percentage()) == (3000, 100.0)
    assert kit.raw() == before


async def test_errors_stop_and_death_cross_from_its_process(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=_slow(), settings=FoldSettings(session_timeout_s=6))
    produce(kit.bootstrap, kit.topic, tally_events(200, first=1))
    produce(kit.bootstrap, kit.topic, [("a", envelope(1, "fail"))])
    runners: list[ProcessRunner] = []

    def make(job: Any) -> ProcessRunner:
        runners.append(ProcessRunner(job))
        return runners[-1]

    coordinator = kit.coordinator(runner=make)
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(until, "it folds", lambda: coordinator.get_progress().events_processed > 5)
    coordinator.cancel()
    with pytest.raises(RebuildCancelled):
        await work
    assert 0 < kit.check() < 200

    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(until, "it folds", lambda: coordinator.get_progress().events_processed > 5)
    os.kill(runners[-1].pid or pytest.fail("no process"), signal.SIGKILL)
    with pytest.raises(CqrsError, match="died"):
        await work
    assert coordinator.get_progress().error
    await asyncio.to_thread(until, "the member is dropped", lambda: not kit.cluster.members(kit.group))

    with pytest.raises(ProjectionError, match="cannot fold") as raised:
        await coordinator.rebuild_from_beginning()
    assert (raised.value.offset, raised.value.partition) == (200, 0)
    assert "raise ValueError" in raised.value.user_traceback


def test_projection_of_the_program_itself_cannot_go_to_another_process(new_kit: NewKit) -> None:
    class Local(Tally):
        name = "tally"

    kit = new_kit(partitions=1, projection=Local())
    with pytest.raises(ConfigError, match="process of its own"):
        asyncio.run(kit.coordinator(runner=ProcessRunner).rebuild_from_beginning())


# Disks


@contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own; skipped where this user cannot mount one."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path, leave_kb: int) -> None:
    """Leave so much space."""
    free = shutil.disk_usage(path).free - leave_kb * 1024
    if free > 0:
        with (path / "ballast").open("wb") as handle:
            while free > 0:
                free -= handle.write(b"x" * min(free, 1 << 16))


@pytest.mark.parametrize("leave_kb", [0, 4, 16, 64, 256, 1024])
def test_a_full_disk_is_waited_for_and_space_is_all_that_is_needed(
    new_kit: NewKit, tmp_path: Path, leave_kb: int
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, [(f"s{n}", envelope(n, text="x" * 400)) for n in range(6000)])
    disk = tmp_path / "disk"
    with small_disk(disk, 64):
        full = Kit(kit.bootstrap, kit.topic, kit.group, disk / "state", projection=Keeps())
        fill(disk, leave_kb)
        said: list[str] = []

        def look(status: AgentStatus) -> None:
            stalled = [one.why for one in status.partitions.values() if one.phase is Phase.STALLED]
            if stalled and not said:
                full.check()
                (disk / "ballast").unlink()
                said.extend(stalled)

        try:
            full.fold_all(look=look)  # it waits, and goes on by itself
        except StorageError:  # before anything was folded
            assert full.cluster.members(full.group) == []
            assert not said
            (disk / "ballast").unlink()
            full.fold_all()
        else:
            assert all("The disk is full: make space." in one for one in said)
            assert said
        assert full.check() == 6000


def test_a_rebuild_that_the_disk_cannot_hold_is_refused_before_anything_is_changed(
    new_kit: NewKit, tmp_path: Path
) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, [(f"s{n}", envelope(n, text=os.urandom(300).hex())) for n in range(6000)])
    disk = tmp_path / "disk"
    with small_disk(disk, 64):
        full = Kit(kit.bootstrap, kit.topic, kit.group, disk / "state", projection=Keeps())
        full.refold_in_place(projection=KEEPS)
        models = full.raw()
        fill(disk, 1024)
        error = full.refold("rebuild", "--beside", "--yes", projection=KEEPS, ok=1)
        assert "models beside those of 'tally' will take about" in error
        assert "MB free" in error
        generations = Generations(
            Keeps(), full.events, registry=full.registry, state_dir=full.state_dir, group=full.group
        )
        with pytest.raises(DiskFull):
            asyncio.run(generations.rebuild(workers=0))
        record = orjson.loads(full.refold("status", "--json", projection=KEEPS))["registry"]
        assert [one["id"] for one in record["generations"]] == ["tally.v1"]
        assert full.raw() == models
        (disk / "ballast").unlink()
        full.refold("rebuild", "--beside", "--yes", projection=KEEPS)


def test_a_worker_whose_disk_cannot_hold_a_replay_has_no_part_in_it_until_it_can(
    new_kit: NewKit, tmp_path: Path
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, [(f"s{n}", envelope(n, text=os.urandom(300).hex())) for n in range(6000)])
    disk = tmp_path / "disk"
    with small_disk(disk, 64):
        full = Kit(kit.bootstrap, kit.topic, kit.group, disk / "state", projection=Keeps())
        with fleet(full) as workers:
            workers.projection, workers.projection_object = KEEPS, Keeps()
            worker = workers.start("a")
            workers.ready(worker)
            fill(disk, 1024)
            status, _, done = worker.ask("POST", "/v1/projections/tally/rebuild", {"policy": "none"}, timeout_s=40)
            assert status == 200, done
            until("the worker to refuse", lambda: "MB free" in worker.output())
            assert workers.record().active == "tally.v1"
            produce(kit.bootstrap, kit.topic, [("late", envelope(1, text="x"))])
            until("the live models to go on", lambda: kit.lag() == 0)
            (disk / "ballast").unlink()
            until("the switch", lambda: workers.record().running is None)
            assert workers.record().active == "tally.v1-2"
            assert workers.models(worker, page=1000) == workers.expected()


KEEPS = "tests.integration.test_trouble:Keeps"


class Keeps(Tally):
    """A Tally that keeps every event's text."""

    name = "tally"

    def apply_to_model(self, model: dict[str, Any] | None, event: Any) -> dict[str, Any] | None:
        model = super().apply_to_model(model, event)
        return model if model is None else model | {"text": event.data["text"]}


def test_group_is_described_again_after_a_brokers_restart(private_broker: EmbeddedBroker, tmp_path: Path) -> None:
    kit = Kit(private_broker.bootstrap_servers, "t", "g", tmp_path, kafka_settings={"request_timeout_s": 2.0})
    kit.cluster.create_topic("t", 1)
    produce(kit.bootstrap, "t", tally_events(10))
    with kit.process():
        until("it is a member", lambda: len(kit.cluster.members("g")) == 1)
    private_broker.kill()
    with pytest.raises(BrokerUnavailable):
        kit.cluster.members("g")
    private_broker.restart()

    def is_described() -> bool:
        try:
            return kit.cluster.members("g") is not None
        except BrokerUnavailable:  # the client that had asked before never recovers
            return False

    until("the group is described", is_described)
