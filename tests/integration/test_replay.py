"""How far a replay is, as anybody sees it who asks its group."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime

import msgspec

from streams.control.record import Generation
from streams.control.replay import Replay
from streams.data.cut import Cut
from streams.data.stamp import Stamp
from streams.types import Committed
from tests.integration.kit import Kit, produce, tally_events, until
from tests.integration.test_verify import folding

NewKit = Callable[..., Kit]


def generation(kit: Kit) -> Generation:
    build = kit.store.current()
    assert build is not None
    manifest, now = build.manifest, datetime.now(UTC)
    return Generation(
        id="tally.v1",
        number=1,
        version=1,
        fingerprint="f",
        codec="json",
        topic=manifest.topic,
        topic_id=manifest.topic_id,
        partitions=manifest.partitions,
        group=kit.group,
        directory="tally.v1",
        phase="replaying",
        epoch=manifest.build,
        state=manifest.directory,
        targets=kit.ends(),
        made_at=now,
        changed_at=now,
    )


def test_who_begins_to_look_sees_no_less_than_those_before_where_a_part_is_folded_again(new_kit: NewKit) -> None:
    kit = new_kit()
    produce(kit.bootstrap, kit.topic, tally_events(1000, streams=300))
    kit.fold_all()
    kept = kit.state_dir.parent / "kept"
    shutil.copytree(kit.state_dir, kept)
    produce(kit.bootstrap, kit.topic, tally_events(1000, streams=300, first=1000))
    kit.fold_all()
    ends = kit.ends()
    produce(kit.bootstrap, kit.topic, tally_events(200, streams=300, first=2000))
    one = generation(kit)
    before = Replay(kit.cluster, one).progress
    assert before.events_processed == 2000
    assert {number: lag.position for number, lag in before.partitions.items()} == ends

    # Another machine, whose copy is older: it folds what it lacks once more.
    shutil.rmtree(kit.state_dir)
    shutil.copytree(kept, kit.state_dir)
    build = kit.store.current()
    assert build is not None
    asking = ExitStack()
    cut = asking.enter_context(Cut.asked(build))
    with asking, folding(kit):
        until("all to be held where they are", lambda: len(cut.held()) == 4)
        until("the group to be told", lambda: sum(found.position for found in kit.committed().values()) == 1000)
        stamps = {number: Stamp.parse(found.metadata) for number, found in kit.committed().items()}
        assert {number: stamp and stamp.furthest for number, stamp in stamps.items()} == ends
        replay = Replay(kit.cluster, one)
        replay.look()
        assert replay.progress.events_processed == 2000
        assert {number: lag.position for number, lag in replay.progress.partitions.items()} == ends
        assert not replay.is_caught_up()
        asking.close()
        until("all to be folded", lambda: kit.lag() == 0)
    assert kit.check() == 2200


def test_at_its_end_it_is_shown_once_it_is_there(new_kit: NewKit) -> None:
    kit = new_kit(partitions=1)
    produce(kit.bootstrap, kit.topic, tally_events(100))
    kit.fold_all()
    one = generation(kit)
    assert Replay(kit.cluster, one).progress.completion_percentage() == 100.0
    told = kit.committed()[0]
    stamp = Stamp.parse(told.metadata)
    assert stamp is not None

    again = msgspec.structs.replace(stamp, furthest=told.position, furthest_events=100, events=7)
    kit.cluster.commit(kit.group, kit.topic, {0: Committed(position=7, metadata=again.encode())})
    progress = Replay(kit.cluster, one).progress
    assert progress.partitions[0].position == 99
    assert (progress.completion_percentage() or 0.0) < 100.0
    assert progress.events_processed == 100
