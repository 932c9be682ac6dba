"""Rebuilds that keep models: where they may begin, and that what they give is what an uninterrupted one gives."""

from __future__ import annotations

import asyncio
import random
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest

from streams import (
    FromBeginning,
    FromCheckpoint,
    FromEvent,
    FromPosition,
    FromTime,
    Prepared,
    ProjectionCheckpoint,
    RebuildProgress,
    RebuildStrategy,
    Snapshots,
    Target,
)
from streams.broker import EmbeddedBroker
from streams.cli.request import parse_strategy
from streams.control.search import Found, Search
from streams.data.codec import Outcome, Record
from streams.data.json_codec import JsonCodec
from streams.data.scan import scan
from streams.errors import (
    BrokerUnavailable,
    CheckpointError,
    CodeChanged,
    ConfigError,
    CqrsError,
    HistoryIncomplete,
    RebuildCancelled,
    TopicChanged,
)
from tests.integration.kit import Kit, produce, tally_events, until, wait_for_log
from tests.integration.slow import SlowTally
from tests.support import Tally, envelope

NewKit = Callable[..., Kit]
SLOW = "tests.integration.slow:SlowTally"


class Latest(Tally):
    """Keeps what the last event of a stream said: folding one again changes nothing."""

    name = "tally"
    idempotent = True

    def apply_to_model(self, model: dict[str, Any] | None, event: Any) -> dict[str, Any] | None:
        return {"last": event.id, "at": event.offset}


async def cancelled(kit: Kit, *, at_events: int) -> RebuildCancelled:
    """Cancel a rebuild after some of its events."""
    coordinator = kit.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    while coordinator.get_progress().events_processed < at_events:
        await asyncio.sleep(0.01)
        assert not work.done()
    coordinator.cancel()
    with pytest.raises(RebuildCancelled) as raised:
        await work
    return raised.value


def target_of(kit: Kit) -> dict[int, int]:
    build = kit.store.current()
    assert build is not None
    record = build.rebuild()
    assert record is not None
    return dict(record.targets)


async def unchanged(kit: Kit, strategy: RebuildStrategy, error: type[CqrsError], why: str, **options: Any) -> None:
    """See that a rebuild is refused, and that nothing was changed."""
    before = (kit.build, kit.raw(), kit.positions(), kit.committed())
    with pytest.raises(error, match=why):
        await kit.coordinator(**options).rebuild(strategy)
    assert (kit.build, kit.raw(), kit.positions(), kit.committed()) == before


# Going on with a rebuild


async def test_cancelled_rebuild_goes_on_from_the_checkpoint_in_its_error_to_its_own_ends(new_kit: NewKit) -> None:
    kit = new_kit(projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(160, first=1))
    ends = kit.ends()
    error = await cancelled(kit, at_events=50)
    checkpoint = error.checkpoint
    assert checkpoint.positions == kit.positions()
    assert (checkpoint.topic, checkpoint.generation, checkpoint.build) == (kit.topic, "tally.v1", kit.build)
    produce(kit.bootstrap, kit.topic, tally_events(40, first=161))  # are none of this rebuild's
    seen: list[RebuildProgress] = []
    coordinator = kit.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild_from_checkpoint(checkpoint))
    while not work.done():
        await asyncio.sleep(0.02)
        seen.append(coordinator.get_progress())
    progress = await work
    begun = [one for one in seen if one.partitions]
    assert (begun[0].completion_percentage() or 0) >= 100 * 50 / 160  # it goes on from where it was
    assert begun[0].events_processed >= 50
    assert (progress.events_processed, progress.completion_percentage()) == (160, 100.0)
    assert kit.positions() == target_of(kit) == ends
    assert kit.check() == 160
    kit.fold_all()
    assert kit.check() == 200


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_command_goes_on_in_another_process(new_kit: NewKit, end: signal.Signals) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300, first=1))
    env = {"REFOLD_SESSION_TIMEOUT_S": "6"}
    with kit.process("--yes", command="rebuild", projection=SLOW, env=env) as rebuild:
        until("some of it is folded", lambda: sum(one.position for one in kit.committed().values()) > 30)
        rebuild.process.send_signal(end)
        assert rebuild.wait() == (130 if end is not signal.SIGKILL else -signal.SIGKILL)
    build = kit.build
    produce(kit.bootstrap, kit.topic, tally_events(50, first=301))
    until("the group is empty", lambda: not kit.cluster.members(kit.group))
    with kit.process("--from", "checkpoint", "--json", command="rebuild", projection=SLOW, env=env) as again:
        assert again.wait() == 0, again.output()
    figures = orjson.loads(again.output().splitlines()[-1])
    assert (figures["events_processed"], figures["completion_percentage"]) == (300, 100.0)
    assert kit.build == build + 1
    assert kit.check() == 300


async def test_completed_rebuild_goes_on_with_what_is_new_and_counts_only_that(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    await kit.coordinator().rebuild_from_beginning()
    produce(kit.bootstrap, kit.topic, tally_events(200, first=1000))
    checkpoint = kit.checkpoints.load("tally")
    assert checkpoint is not None
    progress = await kit.coordinator().rebuild_from_checkpoint(checkpoint)
    assert (progress.events_processed, progress.completion_percentage()) == (200, 100.0)
    assert progress.events_declined == sum(number % 11 == 0 for number in range(1000, 1200))
    assert kit.check() == 1200
    nothing = await kit.coordinator().rebuild_from_checkpoint()
    assert (nothing.events_processed, nothing.completion_percentage()) == (0, 100.0)
    assert kit.check() == 1200


async def test_checkpoint_that_the_same_fold_has_passed_is_gone_on_from_where_the_models_are(new_kit: NewKit) -> None:
    kit = new_kit(projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(200, first=1))
    early = (await cancelled(kit, at_events=20)).checkpoint
    later = kit.coordinator()
    work = asyncio.ensure_future(later.rebuild_from_checkpoint(early))
    await asyncio.to_thread(until, "more is folded", lambda: later.get_progress().events_processed >= 80)
    later.cancel()
    with pytest.raises(RebuildCancelled):
        await work
    await kit.coordinator().rebuild_from_checkpoint(early)  # of two builds before
    assert kit.check() == 200


@pytest.mark.slow
async def test_rebuild_that_is_killed_again_and_again_gives_what_one_that_is_not_gives(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300, first=1))
    env = {"REFOLD_SESSION_TIMEOUT_S": "6"}
    rng = random.Random(7)
    first = True
    for _ in range(4):
        start = "beginning" if first else "checkpoint"
        with kit.process("--yes", "--from", start, command="rebuild", projection=SLOW, env=env) as rebuild:
            wait_for_log(rebuild, ["partitions.assigned"])
            await asyncio.sleep(rng.uniform(0.05, 1.5))
            rebuild.kill()
        first = False
        kit.check()
        until("the group is empty", lambda: not kit.cluster.members(kit.group))
    progress = await kit.coordinator(adopt=True).rebuild_from_checkpoint()  # the same fold, only faster
    assert (progress.events_processed, progress.completion_percentage()) == (300, 100.0)
    assert kit.check() == 300


# Checkpoints that cannot be gone on from


async def test_checkpoints_of_something_else_are_refused_and_nothing_is_changed(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    good = kit.checkpoints.load("tally")
    assert good is not None
    for bad, why in (
        (ProjectionCheckpoint.initial(), r"it has no event.*Use FromBeginning"),
        (replace(good, generation="other.v1"), r"it is of 'other\.v1'"),
        (replace(good, topic="elsewhere"), "it is of topic 'elsewhere'"),
        (replace(good, topic_id="x"), "was deleted and made again since"),
        (replace(good, positions={9: 1}), "the topic has no partition 9"),
        (replace(good, positions={0: kit.ends()[0] + 1}), "topic lost its tail|what lies between would be skipped"),
    ):
        kind: type[CqrsError] = TopicChanged if "tail" in why else CheckpointError
        await unchanged(kit, FromCheckpoint(bad), kind, why)


async def test_without_models_there_is_nothing_to_go_on_from(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(10))
    with pytest.raises(CheckpointError, match=r"There are no models in .* to go on from\. Rebuild from the beginning"):
        await kit.coordinator().rebuild_from_checkpoint()
    assert not kit.state_dir.exists()


async def test_models_of_other_code_are_gone_on_with_only_where_that_is_said(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    kit.projection = SlowTally()
    await unchanged(kit, FromCheckpoint(), CodeChanged, "was folded by other code")
    await kit.coordinator(adopt=True).rebuild_from_checkpoint()
    assert kit.check() == 100


async def test_events_that_are_gone_behind_the_models_are_refused(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    produce(kit.bootstrap, kit.topic, tally_events(100, first=100))
    kit.delete_before(0, 50)
    await kit.coordinator().rebuild_from_checkpoint()  # what is gone was folded before
    kit.delete_before(0, 150)
    produce(kit.bootstrap, kit.topic, tally_events(100, first=200))
    kit.delete_before(0, 250)
    await unchanged(kit, FromCheckpoint(), HistoryIncomplete, "50 offsets are gone unfolded")


# Positions and times


async def test_position_of_the_models_is_gone_on_from_and_no_other(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    at = kit.positions()
    produce(kit.bootstrap, kit.topic, tally_events(50, first=100))
    await unchanged(kit, FromPosition({0: at[0] - 1}), CheckpointError, "1 offsets would be folded twice")
    await unchanged(kit, FromPosition({0: at[0] + 1}), CheckpointError, "what lies between would be skipped")
    await unchanged(kit, FromPosition({0: 10_000}), CheckpointError, r"There is no .*\[0\]@10000 to begin at")
    await unchanged(kit, FromPosition({5: 0}), CheckpointError, "the topic has no such partition")
    progress = await kit.coordinator().rebuild(FromPosition({0: at[0]}))
    assert progress.events_processed == 50
    assert kit.check() == 150


async def test_idempotent_projection_may_begin_anywhere(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=Latest())
    produce(kit.bootstrap, kit.topic, tally_events(100, first=1))
    kit.fold_all()
    models = kit.models()
    progress = await kit.coordinator().rebuild(FromPosition({0: 40}))
    assert (progress.events_processed, progress.completion_percentage()) == (60, 100.0)
    assert kit.models() == models
    assert kit.positions() == {0: 100}


async def test_time_is_the_first_record_of_it_or_after_it(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    await asyncio.sleep(0.05)
    between = datetime.now(UTC)
    await asyncio.sleep(0.05)
    produce(kit.bootstrap, kit.topic, tally_events(100, first=100))
    await unchanged(kit, FromTime(between - timedelta(hours=1)), CheckpointError, "would be folded twice")
    progress = await kit.coordinator().rebuild(FromTime(between))
    assert progress.events_processed == 100
    assert kit.check() == 200


# Events


def uuid7(milliseconds: int, number: int) -> str:
    return str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | 0x2 << 62 | number))


def with_ids(ids: Sequence[str]) -> list[tuple[str, bytes]]:
    return [
        (f"stream-{number % 20}", orjson.dumps({"id": one, "type": "add", "data": {"n": number}}))
        for number, one in enumerate(ids)
    ]


@pytest.mark.parametrize(("kind", "looks"), [("uuid7", 1), ("own", 1), ("coordinates", 1), ("late", 2)])
async def test_rebuild_from_an_event_begins_right_after_it(
    new_kit: NewKit, monkeypatch: pytest.MonkeyPatch, kind: str, looks: int
) -> None:
    kit = new_kit(partitions=1)
    now = time.time_ns() // 1_000_000 - (86_400_000 if kind == "late" else 0)  # it was produced a day later
    made = {"own": "own-{}", "coordinates": kit.topic + "-0-{}"}
    ids = [made[kind].format(number) if kind in made else uuid7(now, number) for number in range(300)]
    produce(kit.bootstrap, kit.topic, with_ids(ids[:200]))
    kit.fold_all()
    produce(kit.bootstrap, kit.topic, with_ids(ids[200:]))
    looked: list[dict[int, tuple[int, int]]] = []
    look = Search._look

    def noted(search: Search, ranges: dict[int, tuple[int, int]]) -> Found | None:
        looked.append(ranges)
        return look(search, ranges)

    monkeypatch.setattr(Search, "_look", noted)
    progress = await kit.coordinator().rebuild(FromEvent(ids[199]))
    assert progress.events_processed == 100
    assert len(looked) == looks
    assert kind != "coordinates" or looked == [{0: (199, 200)}]
    assert kit.check() == 300


async def test_event_in_the_past_needs_a_snapshot_and_others_are_cut_by_its_time(new_kit: NewKit) -> None:
    kit = new_kit(partitions=3)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    build = kit.store.current()
    assert build is not None
    Snapshots(kit.store.directory).take(build, wait_s=10)
    await asyncio.sleep(0.05)
    produce(kit.bootstrap, kit.topic, [("stream-1", envelope(777))])
    await asyncio.sleep(0.05)
    produce(kit.bootstrap, kit.topic, tally_events(100, first=100))
    kit.fold_all()
    progress = await kit.coordinator().rebuild(FromEvent("e777"))
    assert progress.events_processed == 101  # from the snapshot
    assert kit.check() == 201
    Snapshots(kit.store.directory).prune(keep=0)
    await unchanged(kit, FromEvent("e777"), CheckpointError, r"There are no snapshots\.")


async def test_event_that_is_not_there_is_said_with_how_far_was_looked(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    await unchanged(
        kit,
        FromEvent("e100"),
        CheckpointError,
        r"There is no event 'e100' in .*: looked at 100 events \(.*\[0\] offsets 0 to",
    )
    late = uuid7(time.time_ns() // 1_000_000, 1)
    await unchanged(kit, FromEvent(late), CheckpointError, "looked at 100 events")


async def test_search_can_be_cancelled(new_kit: NewKit) -> None:
    kit = new_kit(codec=SlowCodec())
    produce(kit.bootstrap, kit.topic, tally_events(3000, first=1))
    coordinator = kit.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild(FromEvent("nothing")))
    await asyncio.sleep(1)
    coordinator.cancel()
    with pytest.raises(RebuildCancelled, match="before anything was changed"):
        await asyncio.wait_for(work, 10)


@pytest.mark.slow
def test_reading_ends_where_no_broker_answers_any_more(private_broker: EmbeddedBroker, tmp_path: Path) -> None:
    kit = Kit(
        private_broker.bootstrap_servers,
        "scanned",
        "scanned",
        tmp_path,
        kafka_settings={"outage_limit_s": 2.0, "request_timeout_s": 2.0},
    )
    kit.cluster.create_topic("scanned", 1)
    produce(kit.bootstrap, "scanned", tally_events(100))
    assert sum(map(len, scan(kit.events, {0: (10, 60)}))) == 50
    private_broker.kill()
    with pytest.raises(BrokerUnavailable, match="has sent nothing of scanned for 2 s"):
        list(scan(kit.events, {0: (0, 100)}))


@dataclass(frozen=True)
class SlowCodec:
    """Takes its time for each record."""

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        time.sleep(0.005 * len(records))
        return JsonCodec().decode(records)


# Strategies of one's own, and the command's words


class WhatIsThere:
    """Goes on where there are models, and begins where there are none."""

    def prepare(self, target: Target) -> Prepared:
        return target.empty() if target.found is None else target.kept()


async def test_strategy_from_outside_is_as_good_as_one_of_ours(new_kit: NewKit) -> None:
    kit = new_kit()
    assert isinstance(WhatIsThere(), RebuildStrategy)
    for first in (0, 300):
        produce(kit.bootstrap, kit.topic, tally_events(300, first=first))
        progress = await kit.coordinator().rebuild(WhatIsThere())
        assert progress.events_processed == 300
    assert kit.check() == 600


async def test_strategy_that_fails_leaves_everything_as_it_was(new_kit: NewKit) -> None:
    class Fails:
        def prepare(self, target: Target) -> Prepared:
            target.empty()
            raise CheckpointError("not today")

    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()
    await unchanged(kit, Fails(), CheckpointError, "not today")


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("beginning", FromBeginning()),
        ("checkpoint", FromCheckpoint()),
        ("offset:0=12,3=4", FromPosition({0: 12, 3: 4})),
        ("event:e:1", FromEvent("e:1")),
        ("time:2026-03-01T10:00:00+00:00", FromTime(datetime(2026, 3, 1, 10, tzinfo=UTC))),
    ],
)
def test_words_of_the_command_are_strategies(text: str, strategy: RebuildStrategy) -> None:
    assert parse_strategy(text) == strategy


@pytest.mark.parametrize("text", ["", "end", "offset:", "offset:0", "offset:a=b", "time:", "time:soon", "event:"])
def test_other_words_are_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match=r"Write beginning, checkpoint, event:ID, time:"):
        parse_strategy(text)
