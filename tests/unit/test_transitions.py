"""A projection's record: which steps there are, in which order, and that each may be taken twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from streams.control import transitions as to
from streams.control import wishes
from streams.control.in_place import begun_in_place
from streams.control.record import Record, Source, Summary, schema_of
from streams.errors import GenerationNotFound, NotReady, RebuildRunning
from streams.types import RebuildProgress, TopicInfo

FACTS: dict[str, Any] = {
    "version": 1,
    "fingerprint": "aa",
    "codec": "JsonCodec()",
    "topic": "orders",
    "topic_id": "id",
    "partitions": 4,
    "epoch": 1,
}
NEXT = FACTS | {"version": 2, "fingerprint": "bb"}
REPORT = Summary(models_before=10, models_after=10, changed=1, added=0, removed=0, seconds=0.1, at=datetime.now(UTC))


def first() -> Record:
    return to.founded(None, "orders", "g", "orders.v1", FACTS)


def begun(record: Record, rebuild: str = "r1") -> Record:
    return wishes.begun(record, rebuild, NEXT, policy="report", approve="ask", keep_s=60, by="test", why="a fix")


STEPS: list[Callable[[Record], Record]] = [
    begun,
    lambda record: to.pinned(record, "r1", NEXT, {0: 10}),
    lambda record: to.caught_up(record, "r1", RebuildProgress(dead_letters=2)),
    lambda record: to.compared(record, "r1", REPORT, "1 model differs"),
    wishes.approved,
    lambda record: to.switched(record, "r1"),
]


def same(one: Record, other: Record) -> bool:
    return msgspec.json.encode(one) == msgspec.json.encode(other)


def after(count: int) -> Record:
    record = first()
    for step in STEPS[:count]:
        record = step(record)
    return record


def test_the_whole_way_and_back() -> None:
    record = first()
    assert (record.active, record.wanted, record.live.group) == ("orders.v1", "orders.v1", "g")
    phases = []
    for step in STEPS:
        record = step(record)
        phases.append(record.generations[-1].phase)
    assert phases == ["new", "replaying", "verifying", "waiting", "ready", "active"]
    assert (record.active, record.wanted) == ("orders.v2-2", "orders.v2-2")
    assert record.live.group == "g-2"
    assert record.kept is not None
    assert record.kept.id == "orders.v1"
    assert record.kept.kept_until is not None
    back = wishes.rolled_back(record, None, 60)
    assert back.active == "orders.v1"
    assert back.kept is not None
    assert back.kept.id == "orders.v2-2"
    again = wishes.rolled_back(back, "orders.v2-2", 60)
    assert again.active == "orders.v2-2"
    gone = to.retired(wishes.retiring(again, "orders.v1", "test"), "orders.v1")
    assert [one.id for one in gone.generations] == ["orders.v2-2"]
    assert [one.id for one in gone.gone] == ["orders.v1"]


@pytest.mark.parametrize("count", range(1, len(STEPS) + 1))
def test_a_step_that_is_taken_twice_changes_nothing(count: int) -> None:
    record = after(count)
    assert same(STEPS[count - 1](record), record)


@pytest.mark.parametrize("count", range(len(STEPS)))
def test_no_step_of_a_driver_is_taken_before_its_turn(count: int) -> None:
    """A driver that is behind, or of another rebuild, changes nothing."""
    record = after(count)
    steps = [STEPS[1], STEPS[2], STEPS[5]]
    for step in steps:
        if STEPS.index(step) != count:
            assert same(step(record), record)
    if count:
        assert same(to.pinned(record, "other", NEXT, {}), record)
        assert same(to.caught_up(record, "other", RebuildProgress()), record)
        assert same(to.compared(record, "other", REPORT), record)
        assert same(to.switched(record, "other"), record)


def test_a_second_rebuild_is_refused_and_the_first_is_named() -> None:
    with pytest.raises(RebuildRunning, match=r"orders\.v2-2 is replaying since .* begun by test\. `refold resume"):
        begun(after(2), "r2")
    assert begun(after(6), "r2").newest == 3


@pytest.mark.parametrize("count", range(1, len(STEPS)))
def test_cancelled_at_every_step_the_active_one_stays(count: int) -> None:
    record = wishes.cancelled(after(count))
    assert (record.active, record.wanted) == ("orders.v1", "orders.v1")
    assert record.generations[-1].phase == "retiring"
    assert same(to.switched(record, "r1"), record)
    assert same(to.caught_up(record, "r1", RebuildProgress()), record)
    record = to.retired(record, "orders.v2-2")
    assert [one.id for one in record.generations] == ["orders.v1"]
    assert same(wishes.cancelled(record), record)
    # A name is never given again: a driver that wakes late cannot mean the next one.
    assert begun(record, "r2").generations[-1].id == "orders.v2-3"


def test_what_cannot_be_is_refused_and_says_what_there_is() -> None:
    record = after(6)
    assert same(wishes.approved(record), record)
    with pytest.raises(NotReady, match="no rebuild of it is under way"):
        wishes.approved(wishes.rolled_back(record, None, 1))
    with pytest.raises(NotReady, match=r"orders\.v2-2 is replaying"):
        wishes.approved(after(2))
    with pytest.raises(NotReady, match="only one that is kept"):
        wishes.retiring(record, "orders.v2-2", "")
    with pytest.raises(GenerationNotFound, match=r"no generation 'orders\.v9': it has orders\.v1 \(kept\)"):
        wishes.retiring(record, "orders.v9", "")
    with pytest.raises(GenerationNotFound, match="what is kept is none"):
        wishes.rolled_back(first(), None, 1)
    with pytest.raises(NotReady, match="could be cancelled"):
        wishes.cancelled(record)
    with pytest.raises(NotReady, match="could be paused"):
        wishes.paused(record, is_paused=True)
    assert wishes.paused(after(2), is_paused=True).running is not None


def test_what_was_compared_may_be_compared_again_and_the_steps_are_kept() -> None:
    waiting = after(4)
    again = wishes.verified_again(waiting)
    assert again.generations[-1].phase == "verifying"
    assert same(wishes.verified_again(again), again)
    assert again.rebuild is not None
    assert [one.what for one in again.rebuild.steps] == ["new", "replaying", "verifying", "waiting", "verifying"]
    ready = to.compared(again, "r1", REPORT)
    assert ready.generations[-1].phase == "ready"
    assert wishes.verified_again(ready).generations[-1].phase == "verifying"
    for count in (0, 2):
        with pytest.raises(NotReady):
            wishes.verified_again(after(count))


SOURCE = Source(topic="orders", topic_id="id", partitions=4)
OWN = FACTS | {"topic": "repartition-ab", "topic_id": "", "source": SOURCE}
TOPIC = TopicInfo(name="g-2.repartition-ab", id="own", partitions=4)


def test_one_with_a_topic_of_its_own_has_it_made_and_filled_first() -> None:
    record = wishes.begun(first(), "r1", OWN, policy="report", approve="ask", keep_s=60, by="test", why="a fix")
    assert record.generations[-1].topic == TOPIC.name
    assert (schema_of(first()), schema_of(record)) == (1, 2)
    filled = to.repartitioned(record, "r1", TOPIC, {0: 7})
    green = filled.generations[-1]
    assert (green.phase, green.topic_id, green.event_topic) == ("repartitioning", "own", "orders")
    assert green.source is not None
    assert green.source.targets == {0: 7}
    assert same(to.repartitioned(filled, "r1", TOPIC, {0: 9}), filled)
    folded = to.pinned(filled, "r1", {"state": "s", "epoch": 1}, {0: 10})
    assert folded.generations[-1].phase == "replaying"
    assert folded.generations[-1].source == green.source


def test_one_without_has_none_made() -> None:
    record = begun(first())
    assert to.repartitioned(record, "r1", TOPIC, {0: 7}) == record


def test_other_code_does_not_fold_a_topic_that_it_has_not_filled() -> None:
    record = to.founded(None, "orders", "g", "orders.v1", OWN | {"topic_id": "own"})
    with pytest.raises(NotReady, match=r"rebuilt beside \(`refold rebuild orders`\)"):
        begun_in_place(record, "r1", code=(2, "bb", "JsonCodec()"), by="test", why="a fix")
    assert begun_in_place(record, "r1", by="test", why="again").running is not None
