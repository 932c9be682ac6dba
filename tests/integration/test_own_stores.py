"""Rebuilds into a store of the user's own: atomic in SQLite, and in two stores one after the other."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from projections.contract import CqrsProjection, Event
from streams import (
    CheckpointStore,
    Condition,
    FromCheckpoint,
    FromEvent,
    FromPosition,
    MemoryCheckpointStore,
    MemoryReadModelStore,
    ProjectionCheckpoint,
    Query,
    ReadModelStore,
    RebuildCoordinator,
    RebuildHook,
    RebuildProgress,
    RocksReadModelStore,
    SpecificStreams,
)
from streams.broker import EmbeddedBroker
from streams.config import FoldSettings
from streams.errors import (
    CheckpointError,
    CodeChanged,
    ConfigError,
    EventError,
    GroupActive,
    ModelSplit,
    ProjectionError,
    RebuildCancelled,
    StorageError,
)
from tests.integration.kit import Kit, produce, read_log, tally_events, until
from tests.integration.sqlite_models import SqliteModels
from tests.support import Tally, envelope, folded

NewKit = Callable[..., Kit]


class Plain(ReadModelStore[dict[str, Any]]):
    """Models alone, without positions."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}
        self.clears = 0

    def upsert(self, model_id: str, model: dict[str, Any]) -> None:
        self.models[model_id] = dict(model)

    def get(self, model_id: str) -> dict[str, Any] | None:
        found = self.models.get(model_id)
        return None if found is None else dict(found)

    def delete(self, model_id: str) -> None:
        self.models.pop(model_id, None)

    def clear(self) -> None:
        self.clears += 1
        self.models.clear()

    def iterate(self) -> Iterator[tuple[str, dict[str, Any]]]:
        return iter(list(self.models.items()))


def coordinator(
    kit: Kit, store: ReadModelStore[Any], checkpoints: CheckpointStore | None = None, **options: Any
) -> RebuildCoordinator:
    options.setdefault("settings", FoldSettings(checkpoint_events=500))
    projection = options.pop("projection", kit.projection)
    return RebuildCoordinator(projection, kit.events, store, checkpoints or MemoryCheckpointStore(), **options)


def expected(kit: Kit, positions: Mapping[int, int] | None = None) -> dict[str, Any]:
    """The fold of the log, up to positions."""
    models: dict[str, Any] = {}
    for number, records in read_log(kit.bootstrap, kit.cluster.topic(kit.topic)).items():
        models |= folded([one for one in records if positions is None or one.offset() < positions.get(number, 0)])
    return models


def offsets(store: SqliteModels) -> dict[int, int]:
    return {number: one.offset for number, one in store.positions().items()}


async def test_from_the_beginning_and_on_from_where_it_was(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=3)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    store = SqliteModels(tmp_path / "models.db")
    store.upsert("of before", {"count": 1})
    told: list[RebuildProgress] = []

    class Told(RebuildHook):
        def completed(self, progress: RebuildProgress) -> None:
            told.append(progress)

    one = coordinator(kit, store, kit.checkpoints, hooks=[Told()])
    progress = await one.rebuild_from_beginning()
    assert dict(store.iterate()) == expected(kit)
    assert offsets(store) == kit.ends()
    assert (progress.completion_percentage(), progress.events_processed, progress.error) == (100.0, 2000, None)
    assert progress.models == store.count()
    assert told == [progress]
    # Who looks at the group sees it too.
    assert {number: one.position for number, one in kit.committed().items()} == kit.ends()
    loaded = kit.checkpoints.load("tally")
    assert loaded is not None
    assert (loaded.generation, loaded.events_processed) == ("tally.v1", 2000)

    produce(kit.bootstrap, kit.topic, tally_events(700, first=2000))
    progress = await one.rebuild_from_checkpoint()
    assert (progress.events_processed, progress.completion_percentage()) == (700, 100.0)
    assert dict(store.iterate()) == expected(kit)
    assert (await one.rebuild_from_checkpoint(loaded)).events_processed == 0  # it has that by now
    page = store.query(Query(where=(Condition(path="count", operator="gte", value=1),), order_by=("-count",), limit=2))
    assert [model["count"] for _, model in page.models] == sorted((m["count"] for _, m in store.iterate()))[::-1][:2]


@pytest.mark.parametrize("kind", ["memory", "rocks", "sqlite"])
async def test_cancelled_it_is_the_fold_up_to_its_positions_and_goes_on(
    new_kit: NewKit, tmp_path: Path, kind: str
) -> None:
    kit = new_kit(partitions=3)
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    rocks: RocksReadModelStore[Any] | None = None
    store: Any
    if kind == "rocks":
        store = rocks = RocksReadModelStore(tmp_path / "models", dict)
    else:
        store = MemoryReadModelStore() if kind == "memory" else SqliteModels(tmp_path / "models.db")
    one = coordinator(kit, store, settings=FoldSettings(rate="2000"))
    running = asyncio.ensure_future(one.rebuild_from_beginning())
    await asyncio.to_thread(until, "something to be folded", lambda: one.get_progress().events_processed >= 500)
    one.cancel()
    with pytest.raises(RebuildCancelled, match="What was folded is committed") as caught:
        await running
    checkpoint = caught.value.checkpoint
    assert checkpoint is not None
    assert 500 <= checkpoint.events_processed < 3000
    assert checkpoint.positions == offsets(store)
    assert dict(store.iterate()) == expected(kit, checkpoint.positions)
    done = await coordinator(kit, store).rebuild_from_checkpoint(checkpoint)
    assert done.events_processed == 3000 - checkpoint.events_processed
    assert dict(store.iterate()) == expected(kit)
    if rocks is not None:
        rocks.close()


def test_killed_again_and_again_each_event_is_in_its_model_once(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=3)
    produce(kit.bootstrap, kit.topic, tally_events(8000))
    path, chance = tmp_path / "models.db", random.Random(2)
    store, kills = SqliteModels(path), 0
    for number in range(20):
        command = [sys.executable, "-m", "tests.integration.own_rebuild", kit.bootstrap, kit.topic, str(path)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kit.environment()
        ) as process:
            try:
                before = offsets(store)
                while number < 6 and process.poll() is None and offsets(store) == before:
                    time.sleep(0.005)
                said, errors = process.communicate(timeout=chance.uniform(0, 0.3) if number < 6 else 60)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
                process.communicate()
                assert dict(store.iterate()) == expected(kit, offsets(store))
                continue
        assert process.returncode == 0, errors
        assert float(said) == 100.0
        break
    assert kills > 3
    assert dict(store.iterate()) == expected(kit)
    assert sum(one.events for one in store.positions().values()) == 8000


async def test_a_broker_that_is_started_again_in_the_middle_is_waited_for(
    private_broker: EmbeddedBroker, tmp_path: Path
) -> None:
    kit = Kit(private_broker.bootstrap_servers, "events", "tally", tmp_path / "state")
    kit.cluster.create_topic("events", 3)
    until("the topic is there", lambda: "events" in kit.cluster.topics())
    produce(kit.bootstrap, kit.topic, tally_events(6000))
    store = SqliteModels(tmp_path / "models.db")
    one = coordinator(kit, store, kit.checkpoints, settings=FoldSettings(checkpoint_events=100, rate="2000"))
    rebuild = asyncio.create_task(one.rebuild_from_beginning())
    for share in (10, 50):  # percent
        while (one.get_progress().completion_percentage() or 0) < share:
            assert not rebuild.done(), rebuild.exception()
            await asyncio.sleep(0.01)
        private_broker.kill()
        await asyncio.sleep(1.0)
        await asyncio.to_thread(private_broker.restart)
    progress = await rebuild
    assert (progress.completion_percentage(), progress.events_processed) == (100.0, 6000)
    assert dict(store.iterate()) == expected(kit)
    assert offsets(store) == kit.ends()


async def test_two_stores_lose_nothing_and_say_what_they_cannot(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(2000))

    class Dies(MemoryCheckpointStore):
        """It ends the rebuild between models and checkpoint."""

        left = 4

        def save(self, name: str, checkpoint: ProjectionCheckpoint) -> None:
            if not self.left:
                raise OSError("gone away")
            self.left -= 1
            super().save(name, checkpoint)

    store, checkpoints = Plain(), Dies()
    with capture_logs() as logs, pytest.raises(StorageError, match=r"Dies.save raised OSError: gone away") as caught:
        await coordinator(kit, store, checkpoints).rebuild_from_beginning()
    assert isinstance(caught.value.__cause__, OSError)
    said = next(one for one in logs if one["event"] == "store.at_least_once")
    assert "a second time" in said["why"]
    at = checkpoints.load("tally")
    assert at is not None
    # What a checkpoint says is folded, is: models are written first.
    whole, folded_by_then = expected(kit), expected(kit, at.positions)
    assert sum(model["count"] for model in store.models.values()) > sum(one["count"] for one in folded_by_then.values())
    checkpoints.left = 1000
    progress = await coordinator(kit, store, checkpoints).rebuild_from_checkpoint()
    assert progress.completion_percentage() == 100.0
    assert progress.models == len(store.models)
    assert set(store.models) == set(whole)
    assert all(store.models[one]["count"] >= whole[one]["count"] for one in whole if whole[one] is not None)
    # Begun anew, it is the fold again, whatever was there.
    await coordinator(kit, store, checkpoints).rebuild_from_beginning()
    assert store.models == whole
    produce(kit.bootstrap, kit.topic, tally_events(300, first=2000))
    await coordinator(kit, store, checkpoints).rebuild_from_checkpoint()
    assert store.models == expected(kit)


async def test_two_stores_that_end_before_the_first_checkpoint_are_cleared_first(new_kit: NewKit) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(1000))

    class Once(MemoryCheckpointStore):
        saves = 0

        def save(self, name: str, checkpoint: ProjectionCheckpoint) -> None:
            self.saves += 1
            if self.saves == 2:
                raise OSError("gone away")
            super().save(name, checkpoint)

    store, checkpoints = Plain(), Once()
    store.upsert("of before", {"count": 1})
    with pytest.raises(StorageError):
        await coordinator(kit, store, checkpoints).rebuild_from_beginning()
    assert store.models  # which the checkpoint knows nothing of
    await coordinator(kit, store, checkpoints).rebuild_from_checkpoint()
    assert store.models == expected(kit)
    assert store.clears == 2


async def test_some_streams_again(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=3)
    produce(kit.bootstrap, kit.topic, [*tally_events(1000), ("gone", envelope(1)), ("gone", envelope(2, "drop"))])
    store = SqliteModels(tmp_path / "models.db")
    one = coordinator(kit, store)
    await one.rebuild_from_beginning()
    whole, positions = expected(kit), store.positions()
    store.upsert("stream-3", {"count": -1})
    store.upsert("stream-4", {"count": -1})
    store.upsert("gone", {"count": -1})
    store.delete("stream-5")
    produce(kit.bootstrap, kit.topic, tally_events(500, first=1000))  # beyond where the models are
    progress = await one.rebuild(SpecificStreams(["stream-3", "stream-5", "gone"]))
    assert progress.completion_percentage() == 100.0
    assert dict(store.iterate()) == whole | {"stream-4": {"count": -1}}
    assert store.positions() == positions
    with pytest.raises(CheckpointError, match="no event of 'nobody'"):
        await one.rebuild(SpecificStreams(["nobody", "stream-4"]))
    await one.rebuild(SpecificStreams(["stream-4"]))
    await one.rebuild_from_checkpoint()
    assert dict(store.iterate()) == expected(kit)


@pytest.mark.parametrize(
    ("value", "error", "why"),
    [
        (envelope(1, "fail"), ProjectionError, "ValueError: cannot fold e1"),
        (b"{", EventError, "is no event"),
        (envelope(1, "unstorable"), ProjectionError, "its model 'poison' cannot be stored"),
    ],
)
async def test_event_that_cannot_be_folded_halts_its_partition_and_the_others_are_done(
    new_kit: NewKit, tmp_path: Path, value: bytes, error: type[Exception], why: str
) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(600))
    place = kit.ends()[1]
    produce(kit.bootstrap, kit.topic, [("poison", value)], partition=1)
    produce(kit.bootstrap, kit.topic, tally_events(600, first=600))
    store = SqliteModels(tmp_path / "models.db")
    one = coordinator(kit, store, settings=FoldSettings())
    with pytest.raises(error, match=rf"\[1\]@{place}.*{why}"):
        await one.rebuild_from_beginning()
    found = offsets(store)
    assert found[0] == kit.ends()[0]
    assert found[1] <= place
    assert dict(store.iterate()) == expected(kit, found)
    with pytest.raises(error, match=why):
        await one.rebuild_from_checkpoint()
    progress = one.get_progress()
    assert why in (progress.error or "")
    assert not progress.is_running

    class Mended(Tally):
        def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
            return model if event.stream == "poison" else super().apply_to_model(model, event)

    if error is ProjectionError:
        mended = coordinator(kit, store, projection=Mended())
        with pytest.raises(CodeChanged, match="adopt=True"):
            await mended.rebuild_from_checkpoint()
        await coordinator(kit, store, projection=Mended(), adopt=True).rebuild_from_checkpoint()
        assert offsets(store) == kit.ends()
        await mended.rebuild_from_beginning()


async def test_what_a_store_raises_is_said_and_what_was_committed_stays(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(2000))

    class Full(SqliteModels):
        left = 3

        def commit(self, mutations: Any, position: Any) -> None:
            self.left -= 1
            if not self.left:
                raise RuntimeError("no space")
            super().commit(mutations, position)

    store = Full(tmp_path / "models.db")
    with pytest.raises(StorageError, match=r"Full.commit raised RuntimeError: no space.*rebuild_from_checkpoint"):
        await coordinator(kit, store).rebuild_from_beginning()
    assert dict(store.iterate()) == expected(kit, offsets(store))
    await coordinator(kit, store).rebuild_from_checkpoint()
    assert dict(store.iterate()) == expected(kit)


async def test_models_of_several_partitions_are_found(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=2)
    for number in range(2):
        produce(kit.bootstrap, kit.topic, [("torn", envelope(number))], partition=number)
    with pytest.raises(ModelSplit, match="gave 2 models, and SqliteModels has 1"):
        await coordinator(kit, SqliteModels(tmp_path / "models.db")).rebuild_from_beginning()


async def test_what_only_rocks_store_can_is_refused(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=1)
    store = SqliteModels(tmp_path / "models.db")
    one = coordinator(kit, store)
    with pytest.raises(ConfigError, match="SqliteModels has not: FromBeginning, FromCheckpoint"):
        await one.rebuild(FromEvent("e1"))
    with pytest.raises(ConfigError, match="SqliteModels has not"):
        await one.rebuild(FromPosition({0: 1}))
    with pytest.raises(CheckpointError, match="no models of it that could be gone on with"):
        await one.rebuild_from_checkpoint()
    with pytest.raises(ConfigError, match=r"workers, snapshot_every: that is for RocksStore"):
        coordinator(kit, store, workers=2, snapshot_every=100)
    with pytest.raises(ConfigError, match="SqliteModels keeps no dead letters"):
        coordinator(kit, store, settings=FoldSettings(on_error="skip"))
    with pytest.raises(ConfigError, match="dict is no ReadModelStore: derive it"):
        coordinator(kit, {})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give a KafkaCheckpointStore, and not a MemoryCheckpointStore"):
        RebuildCoordinator(kit.projection, kit.events, kit.store, MemoryCheckpointStore())
    produce(kit.bootstrap, kit.topic, tally_events(10))
    await one.rebuild_from_beginning()
    for checkpoint, why in [
        (ProjectionCheckpoint.initial(), "has folded nothing"),
        (ProjectionCheckpoint(positions={0: 3}, generation="other.v1"), "is of 'other.v1'"),
        (ProjectionCheckpoint(positions={0: 30}, generation="tally.v1"), r"\[0\]@30, and the models are of 10"),
    ]:
        with pytest.raises(CheckpointError, match=why):
            await one.rebuild(FromCheckpoint(checkpoint))


@pytest.mark.parametrize("is_atomic", [True, False])
async def test_a_group_that_somebody_folds_in_keeps_a_rebuild_from_clearing(new_kit: NewKit, is_atomic: bool) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    store: ReadModelStore[Any] = MemoryReadModelStore() if is_atomic else Plain()
    store.upsert("of before", {"count": 1})
    with kit.process() as process:
        await asyncio.to_thread(until, "it to be in the group", lambda: kit.cluster.members(kit.group))
        with pytest.raises(GroupActive):
            await coordinator(kit, store, kit.checkpoints).rebuild_from_beginning()
        assert process.runs(), process.output()
    assert dict(store.iterate()) == {"of before": {"count": 1}}


class Reads(CqrsProjection[dict[str, Any]]):
    """Counts in async code."""

    name = "reads"

    def extract_model_id(self, event: Event) -> str | None:
        return event.stream

    async def apply_to_model(self, model: dict[str, Any] | None, event: Event) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        return {"count": (model or {"count": 0})["count"] + 1}


async def test_async_code_and_a_small_cache(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, [(f"{number % 3000}", envelope(number)) for number in range(9000)])
    store = SqliteModels(tmp_path / "models.db")
    await coordinator(
        kit, store, projection=Reads(), settings=FoldSettings(cache_bytes=1 << 20)
    ).rebuild_from_beginning()
    assert dict(store.iterate()) == {f"{number}": {"count": 3} for number in range(3000)}
