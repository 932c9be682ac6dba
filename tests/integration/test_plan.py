"""Several rebuilds as one plan, and one read that several fold."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from projections.contract import CqrsProjection, Event
from streams.control.plan import RebuildPlan, Step
from streams.data.checkpoint import generation_id
from streams.data.generation import RocksStore
from streams.data.polling import Polling
from streams.data.shared import SharedRead
from streams.errors import ConfigError, ProjectionError, RebuildCancelled
from streams.types import RebuildProgress
from tests.integration.kit import Kit, produce, read_log, tally_events, until
from tests.integration.slow import SlowTally
from tests.support import Tally, envelope

NewKit = Callable[..., Kit]
HERE = "tests.integration.several"


class Other(Tally):
    name = "other"


class FailingOther(Tally):
    """Cannot fold one event."""

    name = "other"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        if event.type == "odd":
            raise ValueError("odd")
        return super().apply_to_model(model, event)


def beside(kit: Kit, projection: CqrsProjection[Any]) -> Kit:
    """Another projection of the same topic."""
    return dataclasses.replace(kit, projection=projection, group=f"{kit.group}-{projection.name}")


def step(kit: Kit, **parts: Any) -> Step:
    made: list[Any] = []

    async def run(make: Any) -> RebuildProgress:
        made.append(kit.coordinator(runner=make))
        progress: RebuildProgress = await made[0].rebuild_from_beginning()
        return progress

    return Step(
        name=kit.projection.name,
        topic=kit.topic,
        run=run,
        progress=lambda: made[0].get_progress() if made else RebuildProgress(),
        **parts,
    )


async def test_two_projections_are_rebuilt_from_one_read(new_kit: NewKit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit = new_kit(partitions=4)
    other = beside(kit, Other())
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    read = 0
    poll = Polling.poll

    def counted(self: Polling, *arguments: Any) -> Any:
        nonlocal read
        slices = poll(self, *arguments)
        read += sum(len(piece.records) for piece in slices)
        return slices

    monkeypatch.setattr(Polling, "poll", counted)
    plan = RebuildPlan([step(kit), step(other)], parallel=2)
    outcomes = await plan.run()
    assert {outcome.state for outcome in outcomes.values()} == {"completed"}
    for name, progress in plan.progress.items():
        assert (progress.events_processed, progress.completion_percentage()) == (3000, 100.0), name
    assert kit.check() == other.check() == 3000
    assert read <= 3600, "it was read more than once"
    # Each has a group of its own, which has told Kafka its own positions, and nobody is left in it.
    assert kit.lag() == other.lag() == 0
    assert not kit.cluster.members(kit.group)
    assert not other.cluster.members(other.group)


async def test_what_fails_in_one_fold_does_not_disturb_the_other(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    other = beside(kit, FailingOther())
    produce(kit.bootstrap, kit.topic, tally_events(500))
    produce(kit.bootstrap, kit.topic, [("odd", envelope(1, "odd"))], partition=1)
    produce(kit.bootstrap, kit.topic, tally_events(500, first=500))
    plan = RebuildPlan([step(kit), step(other)], parallel=2)
    outcomes = await plan.run()
    assert outcomes["tally"].state == "completed"
    assert outcomes["other"].state == "failed"
    assert isinstance(outcomes["other"].error, ProjectionError)
    assert kit.check() == 1001
    done = other.check()
    assert 500 <= done < 1001
    committed = other.committed()
    assert committed[0].position == other.positions()[0] == other.ends()[0], "the other partition is folded to its end"
    assert committed[1].position == other.positions()[1] < other.ends()[1]


async def test_one_that_is_cancelled_leaves_the_other_reading(new_kit: NewKit) -> None:
    folded = threading.Semaphore(0)

    class Counted(SlowTally):
        name = "tally"

        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            folded.release()
            return super().apply_to_model(model, event)

    kit = new_kit(partitions=2, projection=Counted())
    other = beside(kit, Other())
    produce(kit.bootstrap, kit.topic, tally_events(400))
    shared = SharedRead(2)
    slow, quick = kit.coordinator(runner=shared.join), other.coordinator(runner=shared.join)
    one = asyncio.create_task(slow.rebuild_from_beginning())
    two = asyncio.create_task(quick.rebuild_from_beginning())
    for _ in range(20):  # and not by the progress, which is told after each batch: there may be no other one
        assert await asyncio.to_thread(folded.acquire, timeout=30)
    slow.cancel()
    with pytest.raises(RebuildCancelled):
        await one
    progress = await two
    assert progress.completion_percentage() == 100.0
    assert other.check() == 400
    assert kit.check() < 400


async def test_one_that_joins_later_or_again_is_read_for_from_where_it_is(new_kit: NewKit) -> None:
    """A read that goes back for one of them gives the others nothing twice."""
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    kit.fold_all()  # it begins at the end, and the other one at the beginning
    other = beside(kit, Other())
    produce(kit.bootstrap, kit.topic, tally_events(1000, first=1000))
    shared = SharedRead(1)
    with kit.live() as agent:
        runner = shared.join(agent.job)
        runner.start()
        await asyncio.to_thread(until, "the first to be at the end", lambda: kit.lag() == 0)
        progress = await other.coordinator(runner=shared.join).rebuild_from_beginning()
        assert progress.events_processed == 2000
        produce(kit.bootstrap, kit.topic, tally_events(100, first=2000))
        await asyncio.to_thread(until, "the first to go on", lambda: kit.lag() == 0)
        runner.stop()
        runner.result()
    assert kit.check() == 2100
    assert other.check() == 2000


async def test_one_that_is_stopped_before_the_read_begins_ends(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    shared = SharedRead(2)
    with kit.live() as agent:
        runner = shared.join(agent.job)
        runner.start()
        assert not runner.wait(0.2)
        runner.stop()
        assert runner.wait(5)
        runner.result()


def test_partitions_come_and_go_while_a_read_is_shared(new_kit: NewKit) -> None:
    """Another member of one of the groups takes half of its partitions, and gives them back."""
    kit = new_kit(partitions=4)
    other = beside(kit, Other())
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    shared = SharedRead(2)
    with kit.live() as one, other.live() as two:
        runners = [shared.join(agent.job) for agent in (one, two)]
        for runner in runners:
            runner.start()
        until("both to be folded", lambda: kit.lag() == 0 and other.lag() == 0)
        with kit.live() as third:
            helper = threading.Thread(target=third.run)
            helper.start()
            until("it to have partitions", lambda: len(third.status.partitions) == 2)
            produce(kit.bootstrap, kit.topic, tally_events(1000, first=1000))
            until("both to be folded", lambda: kit.lag() == 0 and other.lag() == 0)
            third.stop()
            helper.join()
        produce(kit.bootstrap, kit.topic, tally_events(1000, first=2000))
        until("both to be folded", lambda: kit.lag() == 0 and other.lag() == 0)
        for runner in runners:
            runner.stop()
            runner.result()
    assert kit.check() == other.check() == 3000


# Plans


def several(kit: Kit, *names: str, ok: int = 0, options: tuple[str, ...] = (), **variables: str) -> str:
    """Run `refold rebuild` of several; give what it says, on standard output, or on standard error where it fails."""
    command = kit.command("--yes", *options, command="rebuild", projection=f"{HERE}:{names[0]}")
    at = command.index("--group")
    del command[at : at + 2]
    command[command.index(f"{HERE}:{names[0]}") + 1 : 0] = []
    place = command.index(f"{HERE}:{names[0]}") + 1
    command[place:place] = [f"{HERE}:{name}" for name in names[1:]]
    import subprocess

    done = subprocess.run(
        command, env=kit.environment(**variables), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == ok, done.stdout + done.stderr
    return done.stdout


def stored(kit: Kit, projection: CqrsProjection[Any]) -> Kit:
    name = generation_id(projection.name, projection.version)
    found = dataclasses.replace(kit, projection=projection, group=f"refold.{name}")
    found.store = RocksStore(kit.state_dir / name)
    return found


def test_dependent_projections_are_rebuilt_in_order_and_one_that_fails_stops_only_its_dependents(
    new_kit: NewKit,
) -> None:
    from tests.integration.several import Alone, Catalog, Offers, Prices

    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(600))
    try:
        said = several(
            kit, "Offers", "Prices", "Catalog", "Alone", ok=9, options=("--parallel", "2"), TEST_FAILS="1"
        ).splitlines()
        assert [line.partition(":")[0] for line in said] == ["catalog", "alone", "prices", "offers"]
        assert "600 events" in said[0]
        assert "600 events" in said[1]
        assert said[2].startswith("prices: failed: ")
        assert "told to fail" in said[2]
        assert "offers: skipped: 'offers' was not rebuilt: it depends on 'prices', which was not" in said[3]
        log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
        for projection in (Catalog(), Alone()):
            assert stored(kit, projection).check(log) == 600
        assert not (kit.state_dir / "offers.v1").exists()
        # Corrected, the rest is rebuilt.
        document = orjson.loads(several(kit, "Offers", "Prices", options=("--parallel", "2", "--json")))["projections"]
        assert {name: one["state"] for name, one in document.items()} == {"prices": "completed", "offers": "completed"}
        for dependent in (Prices(), Offers()):
            assert stored(kit, dependent).check(log) == 600
    finally:
        for name in ("catalog", "alone", "prices", "offers"):
            kit.cluster.delete_group(f"refold.{name}.v1")


def test_what_a_projection_depends_on_is_to_be_current(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    needing = f"{HERE}:Needing"
    produce(kit.bootstrap, kit.topic, tally_events(100))
    other = dataclasses.replace(kit, group=f"{kit.group}-needing")
    said = other.refold("rebuild", "--yes", projection=needing, ok=3)
    assert "'needing' depends on 'tally', of which the registry knows no generation" in said
    kit.refold_in_place()
    produce(kit.bootstrap, kit.topic, tally_events(10, first=100))
    said = other.refold("rebuild", "--yes", projection=needing, ok=3)
    assert "'tally', which is not current: tally.v1 is behind at" in said
    with kit.process():
        until("it to be current", lambda: kit.lag() == 0)
        other.refold("rebuild", "--yes", projection=needing)


def test_what_cannot_be_one_plan_is_refused(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(1))
    with pytest.raises(AssertionError, match="depend on each other in a circle"):
        several(kit, "Circular", "Turning")
    with pytest.raises(ConfigError, match="tally is to be rebuilt twice"):
        RebuildPlan([step(kit), step(kit)])
    with pytest.raises(ConfigError, match="parallel is 0"):
        RebuildPlan([step(kit)], parallel=0)
