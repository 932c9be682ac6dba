"""A rebuild beside the live generation: nobody who reads or folds notices more than the switch, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import orjson
import psycopg
import pytest

from projections.contract import CqrsProjection
from projections.datasets import DemoEvent, flight_events, order_events
from projections.flights import AircraftLog
from projections.orders import OrderSummary
from streams import ActiveModels, Generations, Registry
from streams.adapters.postgres.stores import Postgres
from streams.broker.postgres import EmbeddedPostgres
from streams.control.begin import begin_beside
from streams.control.record import Record
from streams.control.verify import last_report
from streams.data.files import FILES
from streams.data.generation import RocksStore
from streams.errors import (
    CodeChanged,
    GenerationNotFound,
    HistoryIncomplete,
    NotReady,
    RebuildCancelled,
    RebuildRunning,
)
from tests.integration.crasher import DIED, Job, beside
from tests.integration.kit import Kit, Process, produce, read_log, tally_events, traffic, until, wait_for_log
from tests.integration.slow import SlowTally
from tests.integration.versions import (
    Fixed,
    FixedAircraftLog,
    FixedOrderSummary,
    Impure,
    SlowFixed,
    is_one_in_a_hundred,
)
from tests.support import Tally, envelope, folded

NewKit = Callable[..., Kit]
QUICKLY = {"REFOLD_SESSION_TIMEOUT_S": "6"}
FIXED = "tests.integration.versions:Fixed"
CRASHES = int(os.environ.get("REFOLD_CRASH_EXAMPLES", "8"))


class Reader:
    """Asks all the time, and notes which version answered, and whatever is wrong."""

    IDS = ("stream-7", "stream-17", "stream-27")

    def __init__(self, kit: Kit) -> None:
        self.versions: list[str] = []
        self.wrong: list[str] = []
        self.asked = 0
        self._registry = Registry(kit.cluster, kit.registry)
        self._state_dir = kit.state_dir
        self._kind = kit.kind or FILES
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        where = self._registry, self._state_dir
        with ActiveModels(Tally(), *where, max_age_s=0.05, plain=True, kind=self._kind) as models:
            while not self._stopped.is_set():
                try:
                    found = [one for one in models.get_many(*self.IDS) if one is not None]
                except Exception as error:  # noqa: BLE001
                    self.wrong.append(f"{type(error).__name__}: {error}")
                    continue
                kinds = {"fixed" in one for one in found}
                self.asked += 1
                if len(kinds) > 1:
                    self.wrong.append(f"a mixture: {found}")
                for kind in kinds:
                    version = "new" if kind else "old"
                    if not self.versions or self.versions[-1] != version:
                        self.versions.append(version)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def record_of(kit: Kit) -> Record:
    record = Registry(kit.cluster, kit.registry).get("tally")
    assert record is not None
    return record


def active(kit: Kit, projection: CqrsProjection[Any]) -> Kit:
    """The generation that is active, as a kit."""
    live = record_of(kit).live
    found = Kit(kit.bootstrap, kit.topic, live.group, kit.state_dir, projection=projection, kind=kit.kind)
    found.store.directory = kit.state_dir / live.directory
    return found


@contextmanager
def begun(kit: Kit, events: int = 2000) -> Iterator[Process]:
    """The first generation, folded by a process for good."""
    produce(kit.bootstrap, kit.topic, tally_events(events, streams=100))
    with kit.process(env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        registry = Registry(kit.cluster, kit.registry)
        until("the first generation to be registered", lambda: registry.get("tally") is not None)
        until("all to be folded", lambda: kit.lag() == 0)
        yield live


def check(kit: Kit, projection: CqrsProjection[Any]) -> int:
    return active(kit, projection).check()


@pytest.mark.parametrize("partitions", [4, 8])
def test_the_whole_way_while_events_come_in_and_somebody_reads(new_kit: NewKit, partitions: int) -> None:
    """From the command line: the report, the approval, the switch, back, forth, and nothing is left of the old one."""
    kit = new_kit(partitions=partitions)
    with begun(kit) as live, traffic(kit, 2000), Reader(kit) as reader:
        told = kit.refold("rebuild", "--yes", "--workers", "2", projection=FIXED, ok=10)
        assert "tally.v2-2 waits for a person: " in told
        record = record_of(kit)
        assert (record.active, record.wanted) == ("tally.v1", "tally.v2-2")
        assert record.rebuild is not None
        assert record.rebuild.report is not None
        found = record.rebuild.report  # some may be deleted by an event just then
        assert found.fields == {"/fixed": found.changed}
        assert (found.added, found.removed, found.not_compared) == (0, 0, {})
        assert 5 < found.changed <= 10
        kit.refold("verify", projection=FIXED, ok=10)
        assert "is active" in kit.refold("switch", projection=FIXED)
        with kit.process(projection=FIXED, env=QUICKLY) as new:
            wait_for_log(new, ["run.started"])
            assert "tally.v2-2" in new.output()
            until("both to be folded", lambda: len(record_of(kit).generations) == 2 and live.runs())
            old = record_of(kit).kept
            assert old is not None
            end = kit.ends()
            until("the old one to keep up", partial(is_beyond, kit, end))
            assert "tally.v1 is active" in kit.refold("rollback", projection=FIXED)
            until("the reader to see the old one", lambda: reader.versions[-1] == "old")
            assert "tally.v2-2 is active" in kit.refold("rollback", projection=FIXED)
            until("the reader to see the new one", lambda: reader.versions[-1] == "new")
            assert check(kit, Fixed()) > 2000
            kit.refold("retire", projection=FIXED)
            assert [one.id for one in record_of(kit).generations] == ["tally.v2-2"]
            assert kit.group not in kit.cluster.groups()
            assert {path.name for path in kit.state_dir.iterdir()} == {"tally.v2-2", "tally.registry.json"}
            assert live.runs()
            assert live.terminate() == 0
            end = kit.ends()
            green = active(kit, Fixed())
            until("the new one to go on", partial(is_beyond, green, end))
    assert reader.wrong == []
    assert reader.versions == ["old", "new", "old", "new"]
    assert reader.asked > 100


@pytest.mark.parametrize("kept_in", ["files", "postgres"])
def test_a_driver_may_die_at_any_step(new_kit: NewKit, kept_in: str, database: EmbeddedPostgres) -> None:
    """Another one goes on; what it cannot go on with, has left nothing. Nothing is done twice, no reader sees an error.

    Steps are those that leave something on disk or in Kafka, of the driver and of the agents in it.
    """
    kind = Postgres(database.dsn, f"died_{time.time_ns()}") if kept_in == "postgres" else FILES
    kit = new_kit(partitions=4, kind=kind)
    seed = random.Random(16)
    died = 0
    with begun(kit, 500), Reader(kit) as reader:
        for number in range(CRASHES):
            # Each time the other version is to become active.
            job = Job.of(kit, "beside", dies_at=seed.randint(1, 45), dies_before=bool(number % 2))
            died += crashes(job)
            finish(kit)
            assert check(kit, Fixed()) == 500
            assert {path.name for path in kit.state_dir.iterdir()} == {record_of(kit).active, "tally.registry.json"}
            left = [group for group in kit.cluster.groups() if group.startswith(kit.group)]
            assert left in ([], [record_of(kit).live.group])
        if isinstance(kind, Postgres):
            with psycopg.connect(kind.conninfo, autocommit=True) as database_:
                shown = f"SELECT DISTINCT generation FROM {kind.schema}.tally_positions".encode()
                until("the view to follow", lambda: database_.execute(shown).fetchall() == [(record_of(kit).active,)])
    assert died > CRASHES / 3
    assert reader.wrong == []
    assert reader.versions in (["old", "new"], ["new"])


def crashes(job: Job) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.crasher", msgspec.json.encode(job)],
        env={**os.environ, **QUICKLY},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode in (0, DIED), done.stderr
    return done.returncode == DIED


def finish(kit: Kit) -> None:
    """Go on with whatever a dead driver has left, until one generation is there, of the fixed version."""
    generations = beside(kit)
    record = record_of(kit)
    if record.running is not None:
        asyncio.run(generations.resume(workers=0))
    elif record.live.version != 2:
        asyncio.run(generations.rebuild(policy="report", approve="auto", keep=timedelta(0), workers=0))
    generations.retire()
    assert len(record_of(kit).generations) == 1


@pytest.mark.slow
def test_agents_and_drivers_killed_at_random_while_events_come_in(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    seed = random.Random(4)
    with begun(kit, 4000) as live, traffic(kit, 4000), Reader(kit) as reader:
        arguments = ["--yes", "--workers", "2", "--approve", "auto"]
        command = "rebuild"
        for _ in range(20):
            if record_of(kit).active != "tally.v1":
                break
            with kit.process(*arguments, command=command, projection=FIXED, env=QUICKLY) as driver:
                until("something to happen", partial(begins, driver, kit))
                time.sleep(seed.uniform(0, 3))
                for pid in agents_of(driver.process.pid):
                    if seed.random() < 0.5:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                time.sleep(seed.uniform(0, 1))
                driver.kill()
            running = record_of(kit).running
            command, arguments = ("rebuild", arguments) if running is None else ("resume", ["--workers", "2"])
        else:
            asyncio.run(beside(kit).resume(workers=2))
        assert record_of(kit).live.version == 2
        assert live.runs()
        with kit.process(projection=FIXED, env=QUICKLY):
            end, green = kit.ends(), active(kit, Fixed())
            until("the new one to go on", partial(is_beyond, green, end))
    assert reader.wrong == []
    assert reader.versions == ["old", "new"]
    check(kit, Fixed())
    kit.check()


def is_beyond(kit: Kit, end: dict[int, int]) -> bool:
    positions = kit.positions()
    return all(positions[number] >= position for number, position in end.items())


def begins(driver: Process, kit: Kit) -> bool:
    return not driver.runs() or record_of(kit).running is not None or record_of(kit).active != "tally.v1"


def agents_of(pid: int) -> list[int]:
    command = ["pgrep", "-P", str(pid), "-f", "agent_process"]
    return [int(one) for one in subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()]


async def test_the_same_code_gives_the_same_models_and_is_switched_to_by_itself(new_kit: NewKit) -> None:
    kit = new_kit()
    with begun(kit):
        generations = Generations(Tally(), kit.events, registry=kit.registry, state_dir=kit.state_dir, group=kit.group)
        record = await generations.rebuild(workers=0)
        assert record.active == "tally.v1-2"
        assert record.rebuild is not None
        assert record.rebuild.policy == "identical"
        assert record.rebuild.report is not None
        assert record.rebuild.report.is_identical
        assert generations.get_progress().completion_percentage() == 100.0
        # Whoever ran the old one has its code too, and has taken the new one on.
        assert not generations.is_orphan
        produce(kit.bootstrap, kit.topic, tally_events(100, first=2000, streams=100))
        green, end = active(kit, Tally()), kit.ends()
        for one in (green, kit):
            until("both to be folded on", partial(is_beyond, one, end))
    assert check(kit, Tally()) == 2100
    assert kit.check() == 2100


async def test_impure_code_is_not_switched_to(new_kit: NewKit) -> None:
    kit = new_kit(projection=Impure())
    produce(kit.bootstrap, kit.topic, tally_events(500))
    kit.refold_in_place(projection="tests.integration.versions:Impure")
    generations = Generations(Impure(), kit.events, registry=kit.registry, state_dir=kit.state_dir, group=kit.group)
    record = await generations.rebuild(workers=0)
    assert record.active == "tally.v1"
    assert record.rebuild is not None
    assert "1 of 49 models differ, and they were to be identical: is the code impure" in record.rebuild.why
    report = generations.last_report("tally.v1-2")
    assert report is not None
    assert [one.id for one in report.differences] == ["stream-3"]
    record = generations.cancel()
    assert [one.id for one in record.generations] == ["tally.v1"]
    assert not (kit.state_dir / "tally.v1-2").exists()


async def test_what_is_expected_is_switched_to_without_a_person(new_kit: NewKit) -> None:
    from tests.integration.versions import Expecting

    kit = new_kit()
    with begun(kit):
        generations = Generations(
            Expecting(), kit.events, registry=kit.registry, state_dir=kit.state_dir, group=kit.group
        )
        record = await generations.rebuild(workers=0)
        assert record.rebuild is not None
        assert (record.active, record.rebuild.policy) == ("tally.v2-2", "validate")
        assert record.rebuild.report is not None
        assert (record.rebuild.report.changed, record.rebuild.report.unexpected) == (10, 0)


def test_a_second_rebuild_is_refused_and_a_paused_one_is_resumed_by_another_process(new_kit: NewKit) -> None:
    kit = new_kit()
    slow = "tests.integration.slow:SlowTally"
    produce(kit.bootstrap, kit.topic, tally_events(600))
    kit.refold_in_place()
    with kit.process("--beside", "--yes", "--verify", "none", command="rebuild", projection=slow, env=QUICKLY) as one:
        until("the replay to run", lambda: record_of(kit).generations[-1].phase == "replaying")
        said = kit.refold("rebuild", "--beside", "--yes", projection=slow, ok=3)
        assert f"is being rebuilt already: tally.v1-2, beside tally.v1, begun by process {one.process.pid}" in said
        assert "refold resume" in said
        said = kit.refold("resume", projection=slow, ok=3)
        assert f"process {one.process.pid}" in said
        kit.refold("pause", projection=slow)
        green = Kit(kit.bootstrap, kit.topic, f"{kit.group}-2", kit.state_dir)
        until("the agents to leave", lambda: not green.cluster.members(green.group))
        before = green.committed()
        time.sleep(1)
        assert green.committed() == before
        one.kill()
    kit.refold("resume", "--workers", "2", projection=slow)
    assert record_of(kit).active == "tally.v1-2"
    assert check(kit, SlowTally()) == 600


def test_cancelled_by_another_process_nothing_is_left(new_kit: NewKit) -> None:
    kit = new_kit()
    slow = "tests.integration.slow:SlowTally"
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    kit.refold_in_place()
    before = kit.raw()
    with kit.process("--beside", "--yes", command="rebuild", projection=slow, env=QUICKLY) as driver:
        until("the replay to run", lambda: record_of(kit).generations[-1].phase == "replaying")
        kit.refold("cancel", projection=slow)
        assert driver.wait() == 130
        assert "Traceback" not in driver.output()
    assert [one.id for one in record_of(kit).generations] == ["tally.v1"]
    assert {path.name for path in kit.state_dir.iterdir()} == {"tally.v1", "tally.registry.json"}
    assert f"{kit.group}-2" not in kit.cluster.groups()
    assert kit.raw() == before
    kit.refold("cancel", projection=slow)  # once more is no harm


def test_interrupted_it_is_left_where_it_is(new_kit: NewKit) -> None:
    kit = new_kit()
    slow = "tests.integration.slow:SlowTally"
    produce(kit.bootstrap, kit.topic, tally_events(250))
    kit.refold_in_place()
    with kit.process("--beside", "--yes", "--verify", "none", command="rebuild", projection=slow, env=QUICKLY) as one:
        until("the replay to run", lambda: record_of(kit).generations[-1].phase == "replaying")
        one.process.send_signal(signal.SIGINT)
        assert one.wait() == 130
        assert "was left where it is; tally.v1 is active. `refold resume tally`" in one.output()
        assert "Traceback" not in one.output()
    assert record_of(kit).running is not None
    kit.refold("resume", projection=slow)
    assert check(kit, SlowTally()) == 250


async def test_code_that_cannot_fold_an_event_leaves_readers_where_they_are(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, [*tally_events(300), ("odd", envelope(1, "odd"))])
    kit.refold_in_place()
    broken = "tests.integration.versions:Halting"
    said = kit.refold("rebuild", "--beside", "--yes", projection=broken, ok=1)
    assert "ValueError: odd" in said
    record = record_of(kit)
    assert record.active == "tally.v1"
    assert record.rebuild is not None
    assert "odd" in record.rebuild.why
    # Corrected code is other code; the broken generation is given up first.
    with pytest.raises(CodeChanged, match="is of other code than this process has"):
        await Generations(Fixed(), kit.events, registry=kit.registry, state_dir=kit.state_dir, group=kit.group).resume(
            workers=0
        )
    kit.refold("cancel", projection=broken)
    assert [one.id for one in record_of(kit).generations] == ["tally.v1"]


async def test_what_is_asked_for_at_the_wrong_time_is_refused(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    generations = beside(kit)
    with pytest.raises(NotReady, match="has no generation yet"):
        await generations.rebuild(workers=0)
    kit.refold_in_place()
    with pytest.raises(NotReady, match="no rebuild of it is under way"):
        await generations.switch()
    with pytest.raises(NotReady, match="could be resumed"):
        await generations.resume()
    with pytest.raises(GenerationNotFound, match="what is kept is none"):
        generations.rollback()
    with pytest.raises(GenerationNotFound, match="no other generation"):
        generations.verify()
    with pytest.raises(NotReady, match="only one that is kept"):
        generations.retire("tally.v1")
    assert generations.retire().active == "tally.v1"


async def test_a_cancelled_task_leaves_the_rebuild_to_be_resumed(new_kit: NewKit) -> None:
    kit = new_kit(projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(500))
    kit.refold_in_place()
    generations = Generations(SlowTally(), kit.events, registry=kit.registry, state_dir=kit.state_dir, group=kit.group)
    work = asyncio.create_task(generations.rebuild(policy="none", workers=0))
    await asyncio.to_thread(until, "the replay to run", lambda: record_of(kit).generations[-1].phase == "replaying")
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert record_of(kit).running is not None
    work = asyncio.create_task(generations.resume(workers=0))
    await asyncio.to_thread(until, "something to be folded", lambda: generations.get_progress().events_processed)
    generations.stop()
    with pytest.raises(RebuildCancelled, match="was left where it is"):
        await work
    record = await generations.resume(workers=0)
    assert record.active == "tally.v1-2"
    assert check(kit, SlowTally()) == 500


def test_kept_for_no_time_the_old_one_is_removed_by_whoever_runs(new_kit: NewKit) -> None:
    kit = new_kit()
    with begun(kit) as live:
        kit.refold("rebuild", "--yes", "--approve", "auto", "--keep-minutes", "0.05", projection=FIXED)
        until("the old one to be gone", lambda: len(record_of(kit).generations) == 1)
        until("its state to be gone", lambda: not kit.store.directory.exists())
        assert live.runs()
        assert live.terminate() == 0


def test_two_at_once_begin_one(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(500))
    kit.refold_in_place()
    arguments = ["--beside", "--yes", "--verify", "none"]
    with kit.process(*arguments, command="rebuild") as one, kit.process(*arguments, command="rebuild") as other:
        codes = sorted([one.wait(), other.wait()])
    assert codes == [0, 3], one.output() + other.output()
    assert record_of(kit).newest == 2


def test_in_place_is_refused_while_one_is_made_beside(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.refold_in_place()
    asyncio.run(beside(kit).rebuild(workers=0))  # waits for approval
    said = kit.refold("rebuild", "--in-place", "--yes", ok=3)
    assert "is being rebuilt already" in said
    document = orjson.loads(kit.refold("cancel", "--json"))
    assert document["rebuild"]["outcome"] == "cancelled"
    kit.refold("rebuild", "--in-place", "--yes")
    assert record_of(kit).live.epoch > 1
    with pytest.raises(RebuildRunning), kit.store.rebuilding("test"):
        asyncio.run(beside(kit).rebuild(workers=0))


def test_models_are_those_of_the_log(new_kit: NewKit) -> None:
    """The generations' own fold, checked by the plainest code."""
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.refold_in_place()
    asyncio.run(beside(kit).rebuild(approve="auto", policy="report", workers=0))
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    expected = {key: one for records in log.values() for key, one in folded(records, Fixed()).items()}
    assert active(kit, Fixed()).models() == expected


def test_changed_code_that_is_to_ask_waits_and_status_says_so(new_kit: NewKit) -> None:
    kit = new_kit()
    with begun(kit) as live:
        said = kit.refold("run", projection=FIXED, ok=1)
        assert "was folded by other code" in said
        assert f"refold rebuild {FIXED}" in said
        status = kit.refold("status", projection=FIXED)
        assert "code of version 2 waits since" in status
        assert live.runs()
        kit.refold("rebuild", "--yes", "--approve", "auto", projection=FIXED)
        status = kit.refold("status", projection=FIXED)
        assert "waits since" not in status
        assert "generations: tally.v1 kept until" in status
        assert "tally.v2-2 active" in status


def test_changed_code_that_is_to_rebuild_brings_its_generation_up_and_folds_it(new_kit: NewKit) -> None:
    """As in a rolling update: several new processes at once, beside the old one."""
    kit = new_kit()
    on_change = ["--on-change", "rebuild"]
    expecting = "tests.integration.versions:Expecting"
    with begun(kit) as live, Reader(kit) as reader:
        with (
            kit.process(*on_change, projection=expecting, env=QUICKLY) as one,
            kit.process(*on_change, projection=expecting, env=QUICKLY) as other,
        ):
            until("the new one to be active", lambda: record_of(kit).active == "tally.v2-2")
            wait_for_log(one, ["run.started"])
            wait_for_log(other, ["run.started"])
            produce(kit.bootstrap, kit.topic, tally_events(200, first=2000, streams=100))
            green, end = active(kit, Fixed()), kit.ends()
            until("the new one to be folded on", partial(is_beyond, green, end))
            assert record_of(kit).newest == 2
            assert one.terminate() == 0
            assert other.terminate() == 0
        assert live.runs()
    assert reader.wrong == []
    assert reader.versions == ["old", "new"]


def test_a_run_that_waits_for_approval_is_stopped_at_once(new_kit: NewKit) -> None:
    kit = new_kit()
    with begun(kit), kit.process("--on-change", "rebuild", projection=FIXED, env=QUICKLY) as new:
        until("it to wait", lambda: record_of(kit).generations[-1].phase == "waiting")
        assert new.terminate() == 0
        assert record_of(kit).active == "tally.v1"


SHIPPED: dict[str, tuple[str, CqrsProjection[Any], CqrsProjection[Any], Callable[[], Iterator[DemoEvent]]]] = {
    "flights": ("aircraft-log", AircraftLog(), FixedAircraftLog(), lambda: islice(flight_events(), 15_000)),
    "orders": ("order-summary", OrderSummary(), FixedOrderSummary(), lambda: order_events(1500, 7)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "partitions"), [("flights", 4), ("flights", 8), ("orders", 4), ("orders", 8)])
def test_a_fix_of_one_model_in_a_hundred_is_reported_as_exactly_these_whoever_dies(
    new_kit: NewKit, what: str, partitions: int
) -> None:
    name, old, fixed, events = SHIPPED[what]
    kit = new_kit(partitions=partitions, projection=old)
    produce(kit.bootstrap, kit.topic, [(one.key, orjson.dumps(one.envelope)) for one in events()])
    new = f"{type(fixed).__module__}:{type(fixed).__qualname__}"
    seed = random.Random(partitions)
    with kit.process(projection=name, env=QUICKLY) as live:
        wait_for_log(live, ["run.started"])
        until("all to be folded", lambda: kit.lag() == 0)
        until("it to be registered", lambda: Registry(kit.cluster, kit.registry).get(name) is not None)
        before = kit.raw()
        command, arguments = "rebuild", ["--yes"]
        for _ in range(3):  # killed on the way, with an agent or without
            with kit.process(*arguments, "--workers", "2", command=command, projection=new, env=QUICKLY) as driver:
                time.sleep(seed.uniform(1.0, 4.0))
                agents = agents_of(driver.process.pid)
                if agents and seed.random() < 0.5:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(seed.choice(agents), signal.SIGKILL)
                driver.kill()
            record = Registry(kit.cluster, kit.registry).get(name)
            assert record is not None
            assert record.active == f"{name}.v1"
            command, arguments = ("rebuild", ["--yes"]) if record.running is None else ("resume", [])
        kit.refold(command, *arguments, projection=new, ok=10)
        record = Registry(kit.cluster, kit.registry).get(name)
        assert record is not None
        report = last_report(kit.state_dir / record.wanted)
        assert report is not None
        truth = {model_id for model_id in before if is_one_in_a_hundred(model_id)}
        assert {one.id for one in report.differences} == truth or len(truth) > len(report.differences) == 20
        assert report.summary.changed == len(truth) > 0
        assert (report.summary.added, report.summary.removed, report.summary.not_compared) == (0, 0, {})
        assert list(report.summary.fields) == [{"flights": "/scheduled", "orders": "/paid_cents"}[what]]
        kit.refold("switch", projection=new)
        record = Registry(kit.cluster, kit.registry).get(name)
        assert record is not None
        assert record.live.version == 2
        green = dataclasses.replace(kit, projection=fixed, group=record.live.group)
        green.store = RocksStore(kit.state_dir / record.live.directory)
        log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
        assert green.check(log) == kit.check(log) == sum(map(len, log.values()))
        assert live.runs()


async def test_a_driver_that_finds_another_one_at_it_leaves_its_rebuild_alone(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(50))
    kit.refold_in_place()
    generations = beside(kit)
    begin_beside(generations.site)
    with (
        RocksStore(kit.state_dir / "tally.v2-2").rebuilding("another driver"),
        pytest.raises(RebuildRunning, match="another driver"),
    ):
        await generations.resume(workers=0)
    running = record_of(kit).running
    assert running is not None
    assert running.why == ""
    assert record_of(kit).generations[-1].phase == "new"
    assert (await generations.resume(workers=0)).generations[-1].phase == "waiting"


async def test_what_can_never_be_made_is_given_up_and_nothing_is_left(new_kit: NewKit) -> None:
    """The topic loses its beginning between the request and the making."""
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(50))
    kit.refold_in_place()
    generations = beside(kit)
    begin_beside(generations.site)
    kit.delete_before(0, 10)
    with pytest.raises(HistoryIncomplete):
        await generations.resume(workers=0)
    record = record_of(kit)
    assert record.running is None
    assert [one.id for one in record.generations] == ["tally.v1"]
    assert record.rebuild is not None
    assert "lacks its first 10 offsets" in record.rebuild.why
    assert {path.name for path in kit.state_dir.iterdir()} == {"tally.v1", "tally.registry.json"}
    with pytest.raises(HistoryIncomplete):  # and now it is refused before anything is noted
        await generations.rebuild(workers=0)
    assert record_of(kit) == record


@pytest.mark.slow
def test_a_broker_that_restarts_on_the_way_is_waited_for(private_broker: Any, tmp_path: Path) -> None:
    """Readers, whoever folds the live one, and the rebuild beside it: none of them notices more than a pause."""
    kit = Kit(private_broker.bootstrap_servers, "restarted", "restarted", tmp_path / "state")
    kit.cluster.create_topic("restarted", 4)
    until("the topic is there", lambda: "restarted" in kit.cluster.topics())
    produce(kit.bootstrap, kit.topic, tally_events(1500, streams=100))
    arguments = ["--yes", "--approve", "auto", "--workers", "2"]
    slow = "tests.integration.versions:SlowFixed"
    with kit.process(env=QUICKLY) as live:
        registry = Registry(kit.cluster, kit.registry)
        wait_for_log(live, ["run.started"])
        until("the first generation to be registered", lambda: registry.get("tally") is not None)
        until("all to be folded", lambda: kit.lag() == 0)
        with Reader(kit) as reader, kit.process(*arguments, command="rebuild", projection=slow, env=QUICKLY) as driver:
            until("the replay to run", lambda: record_of(kit).generations[-1].phase == "replaying")
            green = dataclasses.replace(kit, group="restarted-2")
            green.store = RocksStore(kit.state_dir / "tally.v2-2")
            until("something to be folded", lambda: green.store.current() and sum(green.positions().values()))
            private_broker.kill()
            time.sleep(3)  # as long as nobody answers
            private_broker.restart()
            assert driver.wait(120) == 0, driver.output()
            assert live.runs()
            until("the reader to see the new one", lambda: reader.versions[-1] == "new")
    assert record_of(kit).active == "tally.v2-2"
    assert reader.wrong == []
    assert check(kit, SlowFixed()) == 1500
    assert kit.check() == 1500
