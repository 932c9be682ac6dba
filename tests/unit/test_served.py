"""Which partitions a worker may serve: those that have been at their topic's end since they came."""

from __future__ import annotations

from datetime import UTC, datetime

from streams.control.record import Generation
from streams.data.partition import PartitionStatus, Phase
from streams.serve.served import Served

ONE = Generation(
    id="tally.v1",
    number=1,
    codec="json",
    made_at=datetime.now(UTC),
    changed_at=datetime.now(UTC),
    directory="tally.v1",
    group="g",
    version=1,
    fingerprint="f",
    topic="t",
    topic_id="id",
    partitions=2,
    phase="active",
)


def at(committed: int, phase: Phase = Phase.READY) -> PartitionStatus:
    return PartitionStatus(position=committed, committed=committed, phase=phase)


def test_it_is_served_once_it_has_come_to_where_the_topic_ended_when_the_partition_came() -> None:
    served = Served()
    assert served.why_not(ONE, 0, at(5)) == "at 5, and has not been at its topic's end yet"
    assert not served.look(ONE, {0: at(5)}, {0: 100, 1: 100})
    assert served.why_not(ONE, 0, at(99)) == "at 99 of 100, and has not been at its topic's end yet"
    assert not served.look(ONE, {0: at(99)}, {0: 150, 1: 100})
    assert served.why_not(ONE, 0, at(100)) == "", "before it is looked at again"
    assert served.look(ONE, {0: at(120)}, {0: 9000, 1: 100})
    assert served.why_not(ONE, 0, at(120)) == "", "also where it falls behind later"


def test_what_was_served_before_brokers_went_away_is_remembered_though_agents_had_to_let_go() -> None:
    served = Served()
    assert not served.look(ONE, {0: at(50)}, {0: 100})
    assert not served.was_all(ONE)
    served.note(ONE, {0: at(100)})
    served.note(ONE, {})
    assert served.was_all(ONE)
    assert served.look(ONE, {}, {0: 200})
    assert not served.look(ONE, {0: at(0)}, {0: 200})
    assert not served.was_all(ONE)


def test_a_partition_that_went_and_came_again_is_to_catch_up_again() -> None:
    served = Served()
    assert served.look(ONE, {0: at(100)}, {0: 100})
    assert served.look(ONE, {}, {0: 100})
    assert not served.look(ONE, {0: at(0)}, {0: 200})
    assert served.why_not(ONE, 0, at(0)) == "at 0 of 200, and has not been at its topic's end yet"


def test_what_is_halted_is_served_as_it_is_and_what_is_not_open_is_not() -> None:
    served = Served()
    assert served.look(ONE, {0: at(3, Phase.HALTED)}, {0: 100})
    assert served.why_not(ONE, 0, at(3, Phase.HALTED)) == ""
    assert served.why_not(ONE, 0, at(-1)) == "opening"
