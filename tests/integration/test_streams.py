"""Some streams folded again: their models alone, with somebody folding or nobody, at one position."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest

from projections.contract import CqrsProjection, Event
from streams import FromCheckpoint, JsonCodec, RebuildCoordinator, SpecificStreams, progress_of
from streams.control.refolding import Refolding
from streams.data.codec import Outcome, Record
from streams.data.handover import Handovers
from streams.data.refold import Refold
from streams.errors import (
    CheckpointError,
    CodeChanged,
    HistoryIncomplete,
    ModelSplit,
    ProjectionError,
    RebuildCancelled,
    StoreLocked,
    TopicChanged,
)
from tests.integration.crasher import DIED, Job
from tests.integration.kit import Kit, produce, tally_events, until
from tests.integration.slow import SlowTally
from tests.support import Tally, envelope

NewKit = Callable[..., Kit]
QUICKLY = {"REFOLD_SESSION_TIMEOUT_S": "6"}
SOME = ("stream-3", "stream-17", "stream-29")


def spoil(kit: Kit, ids: Sequence[str]) -> None:
    """Change stored models behind everybody's back."""
    build = kit.store.current()
    assert build is not None
    for number in build.partitions():
        store = build.open(number, 0)
        mine = [model_id for model_id in ids if store.get(model_id) is not None]
        store.commit([(model_id, orjson.dumps({"count": -1, "sum": 0, "digest": 1})) for model_id in mine], store.state)
        store.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CountingCodec(JsonCodec):
    """Counts what it decodes."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter, compare=False)

    def decode(self, records: Sequence[Record]) -> Sequence[Outcome]:
        self.counts["records"] += len(records)
        return super(CountingCodec, self).decode(records)


async def test_streams_alone_are_folded_again(new_kit: NewKit) -> None:
    codec = CountingCodec()
    kit = new_kit(partitions=4, codec=codec)
    produce(kit.bootstrap, kit.topic, tally_events(1000))
    kit.fold_all()
    truth = kit.raw()
    spoil(kit, [*SOME, "stream-4", "stream-5"])
    spoilt, positions = kit.raw(), kit.positions()
    produce(kit.bootstrap, kit.topic, tally_events(100, first=1000))  # for somebody else to fold
    codec.counts.clear()
    progress = await kit.coordinator().rebuild(SpecificStreams(SOME))
    assert codec.counts["records"] == progress.events_processed == 60
    assert progress.models == 3
    assert progress.completion_percentage() == 100.0
    assert kit.raw() == spoilt | {model_id: truth[model_id] for model_id in SOME}
    assert kit.positions() == positions
    await kit.coordinator().rebuild(SpecificStreams(["stream-4", "stream-5"]))
    kit.fold_all()
    assert kit.check() == 1100


def test_streams_are_folded_again_while_processes_fold(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    kit.fold_all()
    spoil(kit, SOME)
    with kit.process(env=QUICKLY) as one, kit.process(env=QUICKLY) as two:
        until("both fold", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [2, 2])
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(trickle, kit, 2000, 4000)
            progress = asyncio.run(kit.coordinator().rebuild(SpecificStreams(SOME)))
            assert progress.models == 3
            assert not writing.done(), "the folding went on meanwhile"
            writing.result()
        until("all is folded", lambda: kit.positions() == kit.ends())
        assert one.runs()
        assert two.runs()
        assert kit.check() == 4000


def trickle(kit: Kit, first: int, end: int) -> None:
    """Write events for some seconds."""
    for start in range(first, end, 100):
        produce(kit.bootstrap, kit.topic, tally_events(100, first=start))
        time.sleep(0.1)


def test_idle_and_halted_partitions_get_theirs_too(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    spoil(kit, SOME)
    produce(kit.bootstrap, kit.topic, [("stream-3", envelope(900, "fail"))])
    with kit.process(env=QUICKLY) as process:
        until("it halts", lambda: "partition.halted" in process.output())
        asyncio.run(kit.coordinator().rebuild(SpecificStreams(SOME)))
        assert process.runs()
        assert kit.check() == 300


@pytest.mark.parametrize("halts", [False, True])
def test_streams_handed_over_behind_the_store_are_folded_on_as_long_as_it_is_read(new_kit: NewKit, halts: bool) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300), partition=0)
    produce(kit.bootstrap, kit.topic, [("y", envelope(1))], partition=1)
    if halts:
        produce(kit.bootstrap, kit.topic, [("x", envelope(900, "fail"))], partition=0)
        with pytest.raises(ProjectionError):
            kit.fold_all()
    else:
        kit.fold_all()
    truth = kit.raw()
    spoil(kit, SOME)
    spoilt = kit.raw()
    build = kit.store.current()
    assert build is not None
    refold = Refold(kit.projection, kit.events, {0: SOME}, {0: build.fresh(0, 0)}, {})
    refold.read_to({0: 200}, lambda: None)
    with kit.process(env=QUICKLY) as process, Handovers.asking(build, "test") as asking:
        until(
            "it is read to its end",
            lambda: ("partition.halted" if halts else "partitions.assigned") in process.output(),
        )
        asking.give(0, refold.folds[0])
        outcome = until("it is answered", partial(asking.outcome, 0))
        assert outcome is not None
        if halts:
            assert "has halted meanwhile: " in str(outcome.error)
            assert kit.raw() == spoilt
        else:
            assert (outcome.position, outcome.events, outcome.models) == (300, 6, 3)
            assert kit.raw() == truth


class Monthly(CqrsProjection[dict[str, Any]]):
    """Several models a stream."""

    name = "monthly"
    partition_by = "stream"
    skips: str | None = None

    def extract_model_id(self, event: Event) -> str:
        return f"{event.stream}/{event.data['n'] % 3}"

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        model_id = self.extract_model_id(event)
        return None if model_id == self.skips else {"n": (model or {"n": 0})["n"] + 1}


async def test_all_models_of_a_stream_are_folded_again(new_kit: NewKit) -> None:
    kit = new_kit(projection=Monthly())
    produce(kit.bootstrap, kit.topic, tally_events(300, streams=5))
    kit.fold_all()
    truth = kit.models()
    spoil(kit, list(truth))
    await kit.coordinator().rebuild(SpecificStreams(["stream-1", "stream-2"]))
    now = kit.models()
    assert {key: model for key, model in now.items() if model == truth[key]}.keys() == {
        key for key in truth if key.startswith(("stream-1/", "stream-2/"))
    }
    gone = next(key for key in truth if key.startswith("stream-3/"))
    kit.projection.skips = gone  # type: ignore[attr-defined]
    await kit.coordinator().rebuild(SpecificStreams(["stream-3"]))
    assert gone not in kit.models()
    assert len(kit.models()) == len(truth) - 1
    with kit.store.reader(None) as reader:
        assert reader.count() == len(truth) - 1


async def test_streams_that_the_key_does_not_name(new_kit: NewKit) -> None:
    kit = new_kit(codec=JsonCodec(stream="who"))
    events = [(f"who-{number % 7}", orjson.dumps({"type": "add", "who": f"who-{number % 7}"})) for number in range(140)]
    produce(kit.bootstrap, kit.topic, events)
    kit.fold_all()
    spoil(kit, ["who-1", "who-2"])
    progress = await kit.coordinator().rebuild(SpecificStreams(["who-1", "who-2"]))
    assert progress.events_processed == 40
    assert kit.check() == 140


async def test_what_cannot_be_done_is_refused(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    with pytest.raises(CheckpointError, match=r"There are no models in .* yet"):
        await kit.coordinator().rebuild(SpecificStreams(SOME))
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    before = (kit.build, kit.raw(), kit.positions())
    with pytest.raises(CheckpointError, match=r"has no event of 'nobody'.*Nothing was changed"):
        await kit.coordinator().rebuild(SpecificStreams(["nobody", "stream-3"]))
    kit.projection = SlowTally()
    with pytest.raises(CodeChanged, match="was folded by other code"):
        await kit.coordinator().rebuild(SpecificStreams(SOME))
    kit.projection = Tally()
    with kit.process(env=QUICKLY):
        until("it folds", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [2])
        kit.projection = SlowTally()
        with pytest.raises(StoreLocked, match="To adopt it for other code, stop it first"):
            await kit.coordinator(adopt=True).rebuild(SpecificStreams(SOME))
    kit.delete_before(0, 3)
    kit.projection = Tally()
    with pytest.raises(HistoryIncomplete, match="lacks its first 3 offsets"):
        await kit.coordinator().rebuild(SpecificStreams(SOME))
    assert (kit.build, kit.raw(), kit.positions()) == before
    for bad in ([], "", [""]):
        with pytest.raises(ValueError, match="one or more streams"):
            SpecificStreams(bad)


async def test_corrected_code_is_adopted_with_its_streams(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    before = kit.raw()
    kit.projection = Corrected()
    await kit.coordinator(adopt=True).rebuild(SpecificStreams(["stream-3"]))
    after = kit.raw()
    assert {key for key in after if after[key] != before[key]} == {"stream-3"}
    assert kit.models()["stream-3"]["corrected"] is True
    kit.fold_all()  # as what it is now


class Corrected(Tally):
    """Other code of the same projection."""

    def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        folded = super().apply_to_model(model, event)
        return None if folded is None else folded | {"corrected": True}


async def test_event_that_fails_changes_nothing(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    before = (kit.build, kit.raw())

    class Failing(Tally):
        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            if event.stream == "stream-3" and event.offset > 50:
                raise ValueError("not this one")
            return super().apply_to_model(model, event)

    kit.projection = Failing()
    with pytest.raises(ProjectionError, match="not this one") as raised:
        await kit.coordinator(adopt=True).rebuild(SpecificStreams(SOME))
    assert raised.value.offset is not None
    assert (kit.build, kit.raw()) == before


async def test_model_that_cannot_be_stored_is_told_at_its_event(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()

    class Unstorable(Tally):
        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            folded = super().apply_to_model(model, event)
            return folded | {"bad": object()} if folded and event.offset > 60 else folded

    kit.projection = Unstorable()
    with pytest.raises(ProjectionError, match=r"@\d+.*cannot be stored"):
        await kit.coordinator(adopt=True).rebuild(SpecificStreams(["stream-3"]))


async def test_stream_on_two_partitions_is_found(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, [("x", envelope(1, "ignore")), ("y", envelope(2))], partition=0)
    produce(kit.bootstrap, kit.topic, [("x", envelope(3, "ignore")), ("z", envelope(4))], partition=1)
    kit.fold_all()

    class Takes(Tally):
        def extract_model_id(self, event: Event) -> str | None:
            return event.stream

    kit.projection = Takes()
    with pytest.raises(ModelSplit, match=r"'x' is on .* and on "):
        await kit.coordinator(adopt=True).rebuild(SpecificStreams(["x"]))


async def test_cancelled_it_has_changed_nothing(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(100, streams=1))
    kit.projection = Tally()
    kit.fold_all()
    before = (kit.build, kit.raw())
    kit.projection = SlowTally()
    coordinator = kit.coordinator(adopt=True)
    work = asyncio.ensure_future(coordinator.rebuild(SpecificStreams(["stream-0"])))
    await folded_so_many(coordinator, 5)
    began = time.monotonic()
    coordinator.cancel()
    with pytest.raises(RebuildCancelled, match="before anything was changed") as raised:
        await work
    assert time.monotonic() - began < 1.0
    assert raised.value.checkpoint is None
    assert coordinator.get_progress().error is not None
    assert (kit.build, kit.raw()) == before


async def test_process_that_does_not_answer_is_waited_for_and_named(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    spoil(kit, SOME)
    spoilt = kit.raw()
    with kit.process() as folding:
        await asyncio.to_thread(until, "it folds", lambda: "partitions.assigned" in folding.output())
        folding.process.send_signal(signal.SIGSTOP)
        coordinator = kit.coordinator()
        work = asyncio.ensure_future(coordinator.rebuild(SpecificStreams(SOME)))
        await asyncio.to_thread(
            until, "it waits", lambda: coordinator.get_progress().waiting_for == f"whoever folds {kit.topic}[0]"
        )
        assert (coordinator.get_progress().completion_percentage() or 100) < 100
        coordinator.cancel()
        with pytest.raises(RebuildCancelled, match=r"was cancelled\. No model was replaced"):
            await work
        folding.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert kit.raw() == spoilt  # nobody waits for it any more
        await kit.coordinator().rebuild(SpecificStreams(SOME))
    assert kit.check() == 100


async def test_rebuild_that_was_interrupted_is_still_gone_on_with(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1, projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(120, streams=4))
    coordinator = kit.coordinator()
    with pytest.raises(RebuildCancelled) as raised:
        await cancel_after(coordinator, 20)
    end = kit.ends()[0]
    produce(kit.bootstrap, kit.topic, tally_events(10, streams=4, first=120))
    spoil(kit, ["stream-1"])
    await kit.coordinator().rebuild(SpecificStreams(["stream-1"]))
    kit.check()
    progress = progress_of(kit.group, kit.events, kit.store)
    assert progress is not None
    assert 0 < (progress.completion_percentage() or 0) < 100
    assert "was cancelled" in str(progress.error)
    await kit.coordinator().rebuild(FromCheckpoint(raised.value.checkpoint))
    assert kit.positions() == {0: end}
    kit.check()


async def cancel_after(coordinator: RebuildCoordinator, events: int) -> None:
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await folded_so_many(coordinator, events)
    coordinator.cancel()
    await work


async def folded_so_many(coordinator: RebuildCoordinator, events: int) -> None:
    while coordinator.get_progress().events_processed < events:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)


def test_kill_at_any_moment_leaves_each_model_old_or_new(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    kit.fold_all()
    truth = kit.raw()
    command = kit.command("--from", f"stream:{','.join(SOME)}", "--yes", command="rebuild")
    moments = random.Random(5)
    for folds in (False, True):
        for _ in range(6):
            spoil(kit, SOME)
            spoilt = kit.raw()
            with ExitStack() as stack:
                process = stack.enter_context(kit.process(env=QUICKLY)) if folds else None
                if folds:
                    until("it folds", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [4])
                rebuild = subprocess.Popen(command, env=kit.environment(**QUICKLY), stderr=subprocess.DEVNULL)
                time.sleep(moments.uniform(0.3, 1.5))
                rebuild.send_signal(signal.SIGKILL)
                rebuild.wait()
                if process is not None and moments.random() < 0.5:
                    process.terminate()
            now = kit.raw()
            assert {key: now[key] for key in now if key not in SOME} == {
                key: truth[key] for key in truth if key not in SOME
            }
            assert all(now[key] in (truth[key], spoilt[key]) for key in SOME)
        until("the group is empty", lambda: not kit.cluster.members(kit.group))
        done = subprocess.run(command, env=kit.environment(**QUICKLY), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert kit.raw() == truth


@pytest.mark.parametrize("dies_before", [True, False])
def test_whoever_folds_may_die_at_the_swap(new_kit: NewKit, dies_before: bool) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(600))
    kit.fold_all()
    truth = kit.raw()
    spoil(kit, SOME)
    job = Job.of(kit, "run", dies_at=2, dies_before=dies_before)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.crasher", msgspec.json.encode(job)],
        env=kit.environment(**QUICKLY),
        cwd=Path(__file__).parents[2],
    ) as folding:
        try:
            until("it folds", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [2])
            asyncio.run(kit.coordinator().rebuild(SpecificStreams(SOME)))
            assert folding.wait(10) == DIED
        finally:
            folding.kill()
    assert kit.raw() == truth
    # Its member is still in the group, which is in nobody's way.
    spoil(kit, SOME)
    assert kit.cluster.members(kit.group)
    asyncio.run(kit.coordinator().rebuild(SpecificStreams(SOME)))
    assert kit.raw() == truth


def test_command_says_what_it_does(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(300))
    kit.fold_all()
    two = ["--from", "stream:stream-3,stream-4"]
    asked = kit.refold("rebuild", *two, ok=2)
    assert "streams stream-3, stream-4" in asked
    assert "those of these streams are replaced" in asked
    done = kit.refold("rebuild", *two, "--yes")
    assert done.startswith("12 events into tally")
    assert "2 models" in done
    ids = kit.state_dir.parent / "ids"
    ids.write_text("stream-3\nstream-4\n")
    assert kit.refold("rebuild", "--from", f"stream:@{ids}", "--yes").startswith("12 events into tally")
    assert "cannot be read as the ids of streams" in kit.refold("rebuild", "--from", "stream:@/nowhere", ok=2)
    assert "or an empty one" in kit.refold("rebuild", "--from", "stream:a,,b", ok=2)


async def test_topic_that_is_made_again_meanwhile_is_noticed(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    spoil(kit, SOME)
    before = kit.raw()
    build, topic = kit.store.current(), kit.cluster.topic(kit.topic)
    assert build is not None
    marks = kit.cluster.watermarks(topic)
    refolding = Refolding(kit.projection, kit.events, topic, build, SOME, "test", marks)
    refolding.read(lambda: None)
    kit.cluster.delete_topic(kit.topic)
    until("it is gone", lambda: kit.topic not in kit.cluster.topics())
    kit.cluster.create_topic(kit.topic, 1)
    until("it is there", lambda: kit.topic in kit.cluster.topics())
    with pytest.raises(TopicChanged, match="was deleted and made again while streams of it were folded again"):
        refolding.hand_over("test", lambda _what: None)
    assert kit.raw() == before
