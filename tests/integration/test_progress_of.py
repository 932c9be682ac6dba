"""A rebuild's progress told from outside, and told to reporters."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
import structlog
from structlog.testing import capture_logs

from streams import CallbackReporter, FromCheckpoint, KafkaEventStore, LogReporter, RebuildProgress, progress_of
from streams.errors import ProjectionError, RebuildCancelled
from tests.integration.kit import Kit, produce, tally_events, until
from tests.integration.slow import SlowTally
from tests.integration.test_commands import refold
from tests.support import envelope

NewKit = Callable[..., Kit]
SLOW = "tests.integration.slow:SlowTally"
QUICKLY = {"REFOLD_SESSION_TIMEOUT_S": "6"}


def seen(kit: Kit) -> RebuildProgress | None:
    """What another machine sees: Kafka alone."""
    return progress_of(kit.group, KafkaEventStore(kit.topic, bootstrap_servers=kit.bootstrap))


def once_seen(kit: Kit, looks: Callable[[RebuildProgress], bool]) -> RebuildProgress:
    """What another machine sees once it looks like that."""
    found = until("it is seen", lambda: (one := seen(kit)) is not None and looks(one) and [one])
    assert found
    return found[0]


def test_progress_of_a_rebuild_is_told_from_kafka_alone(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2, projection=SlowTally())
    assert seen(kit) is None
    produce(kit.bootstrap, kit.topic, tally_events(800, first=1))
    with kit.process("--yes", command="rebuild", projection=SLOW, env=QUICKLY) as process:
        first = once_seen(kit, lambda now: now.events_processed > 10)
        assert first.is_running
        assert first.error is None
        later = once_seen(kit, lambda now: now.events_processed > first.events_processed + 50)
        share = later.completion_percentage()
        assert share is not None
        assert 0 < share < 100
        assert later.total_offsets == 800
        assert 800 - later.remaining_offsets == later.events_processed
        assert 20 < later.events_per_second < 100  # two partitions, one process, 20 ms an event
        left = later.estimated_seconds_left()
        assert left is not None
        assert left == pytest.approx(later.remaining_offsets / 45, rel=0.4)
        document = orjson.loads(status(kit, "--json"))
        assert document["progress"]["is_running"]
        assert document["progress"]["completion_percentage"] > 0
        assert " events/s" in status(kit)
        process.kill()
    # This machine sees at once that it is dead; another one, when the group has dropped it.
    dead = progress_of(kit.group, kit.events, kit.store)
    assert dead is not None
    assert not dead.is_running
    assert "ended without a word, after its last checkpoint at" in str(dead.error)
    assert "rebuild stopped at" in status(kit)
    elsewhere = once_seen(kit, lambda now: not now.is_running)
    assert elsewhere.error == dead.error
    # Gone on with, it is the same rebuild; and complete at its pinned ends.
    produce(kit.bootstrap, kit.topic, tally_events(50, first=801))
    done = asyncio.run(kit.coordinator().rebuild(FromCheckpoint()))
    after = seen(kit)
    assert after is not None
    assert after.completion_percentage() == 100.0
    assert (after.events_processed, after.models) == (done.events_processed, done.models) == (800, done.models)
    assert not after.is_running
    assert after.error is None
    # A run goes on: there is no rebuild any more.
    kit.fold_all()
    assert seen(kit) is None


def status(kit: Kit, *words: str) -> str:
    out, _ = refold(kit, "status", SLOW, "--topic", kit.topic, "--group", kit.group, *words)
    return out


async def test_progress_says_why_it_ended(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=SlowTally())
    produce(kit.bootstrap, kit.topic, [*tally_events(300, first=1), ("x", envelope(999, "fail")), ("x", envelope(100))])
    coordinator = kit.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    while coordinator.get_progress().events_processed < 20 and not work.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    coordinator.cancel()
    with pytest.raises(RebuildCancelled):
        await work
    cancelled = progress_of(kit.group, kit.events, kit.store)
    assert cancelled is not None
    assert "was cancelled after" in str(cancelled.error)
    with pytest.raises(ProjectionError):
        await kit.coordinator().rebuild(FromCheckpoint())
    failed = progress_of(kit.group, kit.events, kit.store)
    assert failed is not None
    assert "cannot fold" in str(failed.error)
    assert failed.events_processed == 300


@contextmanager
def informed() -> Iterator[None]:
    """Log what is logged at level info too."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
    try:
        yield
    finally:
        structlog.configure(wrapper_class=before)


class Collects:
    """A reporter of one's own."""

    def __init__(self) -> None:
        self.told: list[RebuildProgress] = []
        self.last: list[RebuildProgress] = []

    def report(self, progress: RebuildProgress) -> None:
        self.told.append(progress)

    def ended(self, progress: RebuildProgress) -> None:
        self.last.append(progress)


async def test_reporters_are_told_and_cannot_end_a_rebuild(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(400, first=1))
    collects, calls = Collects(), []

    def fails(_progress: RebuildProgress) -> None:
        calls.append(time.monotonic())
        raise RuntimeError("no")

    reporters: list[Any] = [collects, CallbackReporter(fails), LogReporter("tally", every_s=0.5)]
    with informed(), capture_logs() as said:
        progress = await kit.coordinator(reporters=reporters).rebuild_from_beginning()
    assert collects.last == [progress]
    assert len(calls) == 1
    shares = [one.completion_percentage() or 0.0 for one in collects.told]
    assert shares == sorted(shares)
    assert len(set(shares)) > 3
    lines = [line for line in said if line["event"] == "rebuild.progress"]
    assert len(lines) >= 2
    assert lines[-1]["percentage"] > lines[0]["percentage"]
    assert [line["why"] for line in said if line["event"] == "reporter.failed"] == ["RuntimeError: no"]


async def test_reporters_are_told_how_it_ended(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(400, first=1))
    collects = Collects()
    coordinator = kit.coordinator(reporters=[collects])
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    while coordinator.get_progress().events_processed < 10 and not work.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert len(collects.last) == 1
    assert not collects.last[0].is_running
    assert collects.last[0].error is not None
