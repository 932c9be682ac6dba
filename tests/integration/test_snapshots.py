"""Snapshots: taken while folding goes on or not, whole or not there, and gone on from."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from streams import FromPosition, FromSnapshot, FromTime, Snapshot, Snapshots
from streams.errors import CheckpointError, CodeChanged, StoreCorrupt
from tests.integration.kit import Kit, produce, read_log, tally_events, until, wait_for_log
from tests.integration.slow import SlowTally
from tests.support import folded

NewKit = Callable[..., Kit]
QUICKLY = {"REFOLD_SESSION_TIMEOUT_S": "6"}
"""How soon the group drops those who are killed."""


def there(kit: Kit) -> Snapshots:
    return Snapshots(kit.store.directory)


def take(kit: Kit) -> Snapshot:
    build = kit.store.current()
    assert build is not None
    taken = there(kit).take(build, wait_s=30)
    assert taken is not None
    return taken


async def test_rebuild_from_before_the_models_goes_on_from_the_newest_snapshot_that_is_not_after_it(
    new_kit: NewKit,
) -> None:
    kit = new_kit(partitions=2)
    marks = []
    for first in (0, 300, 600):
        produce(kit.bootstrap, kit.topic, tally_events(300, first=first))
        kit.fold_all()
        marks.append(kit.positions())
        take(kit)
    wanted = {number: position + 5 for number, position in marks[1].items()}
    progress = await kit.coordinator().rebuild(FromPosition(wanted))
    assert progress.events_processed == 300  # from the second snapshot on
    assert kit.check() == 900
    with pytest.raises(CheckpointError, match=r"Snapshots: .*positions 0@") as raised:
        await kit.coordinator().rebuild(FromPosition({0: marks[0][0] - 1}))
    assert all(one.id in str(raised.value) for one in there(kit).all())
    assert kit.check() == 900


async def test_rebuild_from_a_time_goes_on_from_a_snapshot(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(200))
    kit.fold_all()
    take(kit)
    await asyncio.sleep(0.05)
    between = datetime.now(UTC)
    await asyncio.sleep(0.05)
    produce(kit.bootstrap, kit.topic, tally_events(100, first=200))
    kit.fold_all()
    progress = await kit.coordinator().rebuild(FromTime(between))
    assert progress.events_processed == 100
    assert kit.check() == 300


def test_snapshot_is_taken_while_processes_fold_and_is_exact(new_kit: NewKit) -> None:
    kit = new_kit(partitions=4)
    produce(kit.bootstrap, kit.topic, tally_events(300, first=1))
    slow = "tests.integration.slow:SlowTally"
    with kit.process(projection=slow, env=QUICKLY) as one, kit.process(projection=slow, env=QUICKLY):
        until("both fold", lambda: [len(m.partitions) for m in kit.cluster.members(kit.group)] == [2, 2])
        for _ in range(3):
            taken = orjson.loads(kit.refold("snapshots", "take", "--json", projection=slow))
            assert set(taken["positions"]) == {"0", "1", "2", "3"}
        assert one.runs()
    log = read_log(kit.bootstrap, kit.cluster.topic(kit.topic))
    snapshots = there(kit).all()
    assert len(snapshots) == 3
    until("the group is empty", lambda: not kit.cluster.members(kit.group))
    for snapshot in snapshots:
        kit.refold("snapshots", "restore", snapshot.id, "--yes", projection=slow)
        assert kit.positions() == snapshot.positions
        expected: dict[str, Any] = {}
        for number, position in snapshot.positions.items():
            expected |= folded([record for record in log[number] if record.offset() < position])
        assert kit.models() == expected
        assert snapshot.models == len(expected)
    kit.refold("rebuild", "--from", "checkpoint", projection=slow)
    assert kit.check() == 300


async def test_rebuild_takes_snapshots_and_keeps_the_newest(new_kit: NewKit) -> None:
    kit = new_kit(projection=SlowTally())
    produce(kit.bootstrap, kit.topic, tally_events(160, first=1))
    await kit.coordinator(snapshot_every=30).rebuild_from_beginning()
    kit.check()
    snapshots = there(kit).all()
    assert 1 <= len(snapshots) <= 3
    assert all(0 < one.events < 160 for one in snapshots)
    progress = await kit.coordinator().rebuild(FromSnapshot(snapshots[0].id))
    assert progress.events_processed == 160 - snapshots[0].events
    assert kit.check() == 160


async def test_snapshot_of_other_code_is_gone_on_from_only_where_that_is_said(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    taken = take(kit)
    kit.projection = SlowTally()
    before = (kit.build, kit.raw())
    with pytest.raises(CodeChanged, match="was folded by other code"):
        await kit.coordinator().rebuild(FromSnapshot(taken.id))
    with pytest.raises(CheckpointError, match=f"There is no snapshot 'x' in .* Snapshots: {taken.id}"):
        await kit.coordinator().rebuild(FromSnapshot("x"))
    assert (kit.build, kit.raw()) == before
    await kit.coordinator(adopt=True).rebuild(FromSnapshot(taken.id))
    assert kit.check() == 100


@pytest.mark.parametrize("damage", ["byte", "file"])
async def test_damaged_snapshot_is_found_when_it_is_restored(new_kit: NewKit, damage: str) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    taken = take(kit)
    before = (kit.build, kit.raw())
    table = next((kit.store.directory / "snapshots" / taken.id / "0").glob("*.sst"))
    if damage == "file":
        table.unlink()
    else:
        raw = bytearray(table.read_bytes())
        raw[len(raw) // 2] ^= 1
        table.unlink()  # it is a hard link: the build's own must stay as it is
        table.write_bytes(raw)
    with pytest.raises(StoreCorrupt, match=taken.id):
        await kit.coordinator().rebuild(FromSnapshot(taken.id))
    assert (kit.build, kit.raw()) == before


def test_snapshots_are_independent_of_what_is_folded_afterwards(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(2000))
    kit.fold_all()
    taken = take(kit)
    produce(kit.bootstrap, kit.topic, tally_events(5000, first=2000))
    kit.fold_all()
    there(kit).verify(taken)
    assert kit.check() == 7000


TAKER = """
import sys
from pathlib import Path
from streams import RocksStore, Snapshots
store = RocksStore(sys.argv[1])
print("ready", flush=True)
while True:
    Snapshots(Path(sys.argv[1])).take(store.current(), wait_s=30)
    Snapshots(Path(sys.argv[1])).prune(keep=2)
"""


def taking(kit: Kit) -> subprocess.Popen[bytes]:
    """A process that takes one snapshot after the other."""
    return subprocess.Popen(
        [sys.executable, "-c", TAKER, str(kit.store.directory)], stdout=subprocess.PIPE, env=kit.environment()
    )


@pytest.mark.slow
async def test_snapshots_that_a_kill_interrupts_are_never_listed(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(3000))
    kit.fold_all()
    rng = random.Random(5)
    for _ in range(8):
        process = taking(kit)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        await asyncio.sleep(rng.uniform(0.0, 0.6))
        process.kill()
        process.wait()
        process.stdout.close()
        for snapshot in there(kit).all():
            there(kit).verify(snapshot)
    taken = take(kit)
    # What was left is swept; one without a lock yet, which a kill may leave too, only once it is some seconds old.
    place = kit.store.directory / "snapshots"
    assert not [path for path in place.glob(".taking-*") if (path / "taking.lock").exists() or "removed" in path.name]
    until("it is swept", lambda: take(kit) is not None and not list(place.glob(".taking-*")), deadline_s=15)
    await kit.coordinator().rebuild(FromSnapshot(taken.id))
    assert kit.check() == 3000


def test_prune_goes_by_number_and_by_age(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10))
    kit.fold_all()
    taken = [take(kit).id for _ in range(4)]
    assert [one.id for one in there(kit).all()] == taken
    assert [one.id for one in there(kit).prune(older_than=timedelta(days=1))] == []
    assert [one.id for one in there(kit).prune(keep=3)] == taken[:1]
    assert [one.id for one in there(kit).prune(older_than=timedelta(0))] == taken[1:]
    assert there(kit).all() == []


def test_command_takes_lists_restores_and_prunes(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(1200))
    assert "no read models yet" in kit.refold("snapshots", "take", ok=6)
    assert kit.refold("snapshots") == "No snapshots.\n"
    kit.fold_all()
    taken = orjson.loads(kit.refold("snapshots", "take", "--json"))
    assert (taken["events"], taken["positions"]) == (1200, {"0": 1200})
    assert "0@1,200" in kit.refold("snapshots", "list")
    produce(kit.bootstrap, kit.topic, tally_events(100, first=1200))
    kit.fold_all()
    assert kit.positions() == {0: 1300}
    assert "nothing was changed. Say --yes" in kit.refold("snapshots", "restore", taken["id"], ok=2)
    assert kit.positions() == {0: 1300}
    assert "restored" in kit.refold("snapshots", "restore", taken["id"], "--yes")
    assert kit.positions() == {0: 1200}
    kit.check()
    assert taken["id"] in kit.refold("snapshots", "prune", "--keep", "0")
    assert kit.refold("snapshots", "prune", "--keep", "0") == "No snapshot was removed.\n"
    for words in (["restore"], ["list", "x"], ["prune"], ["take", "--keep", "1"]):
        kit.refold("snapshots", *words, ok=2)


async def test_member_that_does_not_answer_is_named(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(10, first=1))
    with kit.process() as live:
        wait_for_log(live, ['"lag_records": 0'])
        os.kill(live.process.pid, signal.SIGSTOP)
        try:
            said = kit.refold("snapshots", "take", "--wait-seconds", "1", ok=3)
        finally:
            os.kill(live.process.pid, signal.SIGCONT)
    assert "No snapshot was taken" in said
    assert "did not answer within 1 s" in said
    assert there(kit).all() == []
