"""Partitions that come to a machine from the snapshot repository, with the tail folded: what is served is the fold."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
import pytest

from streams import SpecificStreams
from tests.integration.fleet import Fleet, Worker, fleet, soon
from tests.integration.kit import Kit, produce, tally_events, traffic, until, wait_for_log
from tests.integration.test_doctor import examined, state
from tests.integration.test_streams import spoil
from tests.integration.test_worker import metrics
from tests.s3 import s3

NewKit = Callable[..., Kit]
EVENTS = 60_000
"""Of two partitions: much more in each than is folded again rather than fetched."""


class Place(Protocol):
    """A repository of a test's own."""

    @property
    def variables(self) -> dict[str, str]:
        """What workers are told of it."""
        ...

    @property
    def objects(self) -> Path:
        """Where its objects are, as files."""
        ...


@dataclass(frozen=True)
class Volume:
    """One on a shared volume."""

    objects: Path

    @property
    def variables(self) -> dict[str, str]:
        return {"REFOLD_SNAPSHOT_REPOSITORY": f"file://{self.objects}", "REFOLD_SNAPSHOT_SECONDS": "0.5"}


@dataclass(frozen=True)
class InS3:
    """One in S3."""

    url: str
    config: dict[str, str | bool]
    credentials: dict[str, str]
    objects: Path

    @property
    def variables(self) -> dict[str, str]:
        told = {"REFOLD_SNAPSHOT_REPOSITORY": self.url, "REFOLD_SNAPSHOT_SECONDS": "0.5"}
        return told | {"REFOLD_SNAPSHOT_REPOSITORY_CONFIG": orjson.dumps(self.config).decode()} | self.credentials


@pytest.fixture(params=["volume", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "volume":
        yield Volume(tmp_path / "volume")
        return
    with s3(tmp_path / "s3") as server:
        yield InS3(server.url, server.config, server.credentials, server.objects)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "volume")


def snapshots(worker: Worker) -> dict[int, int]:
    """By partition, the position of the newest snapshot, as a worker says."""
    generation = worker.status()["projections"]["tally"]["generations"]["tally.v1"]
    return {one["partition"]: one["snapshot"] for one in generation["partitions"] if one["snapshot"] is not None}


def wait_for_snapshots(worker: Worker, partitions: int = 2) -> dict[int, int]:
    soon("snapshots to be there", lambda: set(snapshots(worker)) == set(range(partitions)))
    return snapshots(worker)


def address(worker: Worker) -> str:
    return f"127.0.0.1:{worker.port}"


def has_all(workers: Fleet, worker: Worker) -> None:
    """Wait until a worker has every partition, and serves it."""
    soon("it to have all", lambda: set(workers.owners("tally.v1").values()) == {address(worker)})
    workers.ready(worker)


def lose(worker: Worker) -> None:
    """Kill a worker, and take its disk away."""
    worker.kill()
    shutil.rmtree(worker.state_dir)


def restored(worker: Worker, partitions: int) -> None:
    """Wait until so many partitions have come from the repository, and no more."""
    said = '"snapshot.restored"'
    soon(f"{partitions} partitions to be fetched", lambda: worker.output().count(said) >= partitions)
    assert worker.output().count(said) == partitions


def left(state_dir: Path) -> list[Path]:
    """What a copy that was put together or sent has left. Directories come and go meanwhile: so no rglob."""
    kinds = (".restoring-", ".shipping-")
    return [Path(path) / one for path, names, _ in os.walk(state_dir) for one in names if one.startswith(kinds)]


def test_a_partition_that_comes_to_another_machine_is_fetched_and_folded_on(new_kit: NewKit, place: Place) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000))
    with fleet(kit, variables=place.variables) as workers:
        one = workers.start("a")
        workers.ready(one)
        wait_for_snapshots(one)
        with traffic(kit, EVENTS):
            lose(one)
            other = workers.start("b")
            has_all(workers, other)
        restored(other, 2)
        expected = workers.expected()
        soon("the tail to be folded", lambda: workers.models(other, 500) == expected)
        assert list(metrics(other)["refold_partitions_restored_total"].values()) == [2.0]
        assert not left(other.state_dir)


def test_one_machine_that_lost_its_disk_goes_on_where_the_repository_is(new_kit: NewKit, volume: Volume) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000))

    def newest() -> dict[int, dict[str, Any]]:
        told = kit.refold("snapshots", "list", "--json", ok=0, **volume.variables)  # the newest first
        return {one["partition"]: one for one in reversed([orjson.loads(line) for line in told.splitlines()])}

    with kit.process(env=volume.variables) as run:  # which may send some of the middle first
        until("snapshots", lambda: run.output().count('"snapshot.sent"') >= 2)
        until("of all", lambda: {number: one["position"] for number, one in newest().items()} == kit.ends())
        assert run.terminate() == 0
    build = kit.store.current()
    assert build is not None
    assert {number: one["position"] for number, one in newest().items()} == kit.positions()
    assert sum(one["models"] for one in newest().values()) == len(kit.models())
    shown = kit.refold("snapshots", "list", ok=0, **volume.variables)
    assert f"Of tally.v1, in file://{volume.objects}:" in shown
    told = f"file://{volume.objects} has snapshots of 2 of 2 partitions"
    assert state(examined(kit, 0, **volume.variables), "tally.v1: repository") == ("ok", told)
    shutil.rmtree(next(volume.objects.glob("tally/*/1")))
    mark, told = state(examined(kit, 0, **volume.variables), "tally.v1: repository")
    assert (mark, told.partition(";")[2]) == (
        "warning",
        " of partition 1 there is none that is as new as it should be",
    )
    shutil.rmtree(kit.state_dir)
    produce(kit.bootstrap, kit.topic, tally_events(500, streams=2000, first=EVENTS))
    with kit.process(env=volume.variables) as run:
        wait_for_log(run, ["state.found_in_repository"])
        until("the tail to be folded", lambda: kit.lag() == 0)
        assert run.terminate() == 0
        assert run.output().count('"snapshot.restored"') == 1  # the other one was removed
    assert kit.check() == EVENTS + 500
    again = kit.store.current()
    assert again is not None
    assert (again.manifest.directory, again.manifest.build) == (build.manifest.directory, build.manifest.build)


def test_models_that_were_replaced_do_not_come_back_with_an_older_snapshot(new_kit: NewKit, volume: Volume) -> None:
    """Streams that were folded again: their models are other ones, at whichever position."""
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS // 2, streams=50))
    kit.fold_all()
    spoil(kit, ["stream-3"])
    with kit.process(env=volume.variables) as run:
        wait_for_log(run, ["snapshot.sent"])
        asyncio.run(kit.coordinator().rebuild(SpecificStreams(["stream-3"])))
        until("a new one to be sent", lambda: run.output().count('"snapshot.sent"') == 2)
        assert run.terminate() == 0
    truth = kit.models()
    shutil.rmtree(kit.state_dir)
    with kit.process(env=volume.variables) as run:
        wait_for_log(run, ["snapshot.restored"])
        until("it to be folded on", lambda: kit.store.current() is not None and kit.lag() == 0)
        assert run.terminate() == 0
    assert kit.models() == truth
    assert kit.check() == EVENTS // 2


def test_a_repository_that_hangs_holds_nobody_up(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000))
    with s3(tmp_path / "s3") as server, ExitStack() as stack:
        told = InS3(server.url, server.config, server.credentials, server.objects)
        workers = stack.enter_context(fleet(kit, variables=told.variables))
        one = workers.start("a")
        workers.ready(one)
        wait_for_snapshots(one)
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000, first=EVENTS))
        expected = workers.expected()
        soon("all to be folded", lambda: kit.lag() == 0)
        time.sleep(2.0)  # a snapshot is on its way by now
        assert workers.models(one, 500) == expected
        began = time.monotonic()
        assert one.terminate(within_s=15) == 0, one.output()
        shutil.rmtree(one.state_dir)
        other = workers.start("b")
        workers.listening(other)
        soon("it to look for snapshots", lambda: "restoring" in phases(other).values(), deadline_s=30)
        assert other.get("/healthz")[0] == 200
        assert other.terminate(within_s=15) == 0, other.output()
        assert time.monotonic() - began < 60


def phases(worker: Worker) -> dict[int, str]:
    generation = worker.status()["projections"]["tally"]["generations"].get("tally.v1", {})
    return {one["partition"]: one["phase"] for one in generation.get("partitions", ())}


def test_a_disk_that_was_lost_is_folded_anew_where_the_snapshots_are_of_other_code(
    new_kit: NewKit, volume: Volume
) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS // 2, streams=500))
    with kit.process(env=volume.variables) as run:
        wait_for_log(run, ["snapshot.sent"])
        assert run.terminate() == 0
    shutil.rmtree(kit.state_dir)
    with kit.process("--adopt", "--tombstones", "skip", env=volume.variables) as run:  # read otherwise: another codec
        until("all to be folded", lambda: kit.store.current() is not None and kit.lag() == 0)
        assert run.terminate() == 0
        assert "restored" not in run.output()
    assert kit.check() == EVENTS // 2


def test_history_that_retention_has_taken_is_still_in_the_snapshots(new_kit: NewKit, volume: Volume) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000))
    with fleet(kit, variables=volume.variables) as workers:
        one = workers.start("a")
        workers.ready(one)
        expected = workers.expected()
        positions = wait_for_snapshots(one)
        lose(one)
        for number, position in positions.items():
            kit.delete_before(number, min(position, 1000))  # less than is folded again rather than fetched, too
        other = workers.start("b")
        has_all(workers, other)
        assert workers.models(other, 500) == expected
        restored(other, 2)


def test_a_copy_that_is_far_behind_is_replaced(new_kit: NewKit, volume: Volume) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(1000, streams=100))
    with fleet(kit, variables=volume.variables) as workers:
        one = workers.start("a")
        workers.ready(one)
        assert one.terminate() == 0
        produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000, first=1000))
        two = workers.start("b")
        has_all(workers, two)
        wait_for_snapshots(two)
        expected = workers.expected()
        lose(two)
        again = workers.start("c", state="a")
        has_all(workers, again)
        restored(again, 2)
        assert workers.models(again, 500) == expected
        assert not left(again.state_dir)


def test_damaged_objects_cost_a_replay_and_nothing_else(new_kit: NewKit, volume: Volume) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000))
    with fleet(kit, variables=volume.variables) as workers:
        one = workers.start("a")
        workers.ready(one)
        wait_for_snapshots(one)
        lose(one)
        for path in volume.objects.rglob("0/files/*"):
            path.write_bytes(b"x" * path.stat().st_size)
        other = workers.start("b")
        has_all(workers, other)
        restored(other, 1)
        soon("the damage to be found", lambda: '"snapshot.damaged"' in other.output())
        expected = workers.expected()
        soon("the fold to be served", lambda: workers.models(other, 500) == expected)
        wait_for_snapshots(other)  # they are sent again
        lose(other)
        third = workers.start("c")
        has_all(workers, third)
        restored(third, 2)


def test_a_repository_that_is_away_is_waited_for_and_folding_goes_on_meanwhile(new_kit: NewKit, tmp_path: Path) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000))
    with s3(tmp_path / "s3") as server, ExitStack() as stack:
        told = InS3(server.url, server.config, server.credentials, server.objects)
        workers = stack.enter_context(fleet(kit, variables=told.variables))
        one = workers.start("a")
        workers.ready(one)
        wait_for_snapshots(one)
        server.stop()
        produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000, first=EVENTS))
        soon("a snapshot not to be sent", lambda: "snapshot.not_sent" in one.output())
        expected = workers.expected()
        soon("folding to go on", lambda: workers.models(one, 500) == expected)
        lose(one)
        other = workers.start("b")
        soon("it to wait for the repository", lambda: "repository.away" in other.output())
        server.start()
        has_all(workers, other)
        restored(other, 2)
        assert workers.models(other, 500) == expected


def test_what_is_retired_leaves_nothing_in_the_repository(new_kit: NewKit, place: Place) -> None:
    kit = new_kit(partitions=2)
    produce(kit.bootstrap, kit.topic, tally_events(EVENTS, streams=2000))
    with fleet(kit, variables=place.variables) as workers:
        one = workers.start("a")
        workers.ready(one)
        wait_for_snapshots(one)
        id_ = workers.record().live.state
        assert any(path.is_file() for path in place.objects.rglob(f"{id_}-*/**/*"))
        status, _, told = one.ask("POST", "/v1/projections/tally/rebuild", {"approve": "auto", "keep_seconds": 1})
        assert status == 200, told
        soon("the old one to be retired", lambda: [each.id for each in workers.record().generations] == ["tally.v1-2"])
        soon("nothing of it to be left", lambda: not [p for p in place.objects.rglob(f"{id_}-*/**/*") if p.is_file()])


def test_workers_that_die_and_lose_their_disks_at_any_time_serve_the_fold(new_kit: NewKit, place: Place) -> None:
    """Also while snapshots are sent, and while they are fetched."""
    chance = random.Random(20)
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(2 * EVENTS, streams=2000))
    variables = place.variables | {"REFOLD_SNAPSHOT_SECONDS": "0.1"}
    with fleet(kit, variables=variables) as workers, traffic(kit, 2 * EVENTS):
        one, other = workers.start("0"), workers.start("1")
        for number in range(2, 8):
            time.sleep(chance.uniform(1.0, 9.0))
            if chance.random() < 0.6:
                lose(one)
                one, other = other, workers.start(str(number))
            else:
                one.kill()
                one, other = other, workers.start(str(number), state=one.state_dir.name.removeprefix("state-"))
    workers_ = Fleet(kit, variables=variables)
    try:
        last = workers_.start("last")
        has_all(workers_, last)
        expected = workers_.expected()
        soon("the fold of all to be served", lambda: workers_.models(last, 500) == expected)
        assert not left(last.state_dir)
    finally:
        workers_.stop()
