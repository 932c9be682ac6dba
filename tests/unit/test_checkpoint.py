"""When a checkpoint is due, and the stamp on a committed offset."""

from __future__ import annotations

import pytest

from streams.config import FoldSettings
from streams.data import pace as pacing
from streams.data.checkpoint import belongs, generation_id
from streams.data.pace import Pace
from streams.data.stamp import Stamp


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    return clock


def took(pace: Pace, clock: Clock, seconds: float, models: int) -> None:
    began = clock.now
    clock.now += seconds
    pace.taken(began, models)


def test_without_a_backlog_it_is_due_at_100_events_or_after_a_tenth_of_a_second(clock: Clock) -> None:
    pace = Pace(FoldSettings())
    clock.now += 0.05
    assert not pace.is_due(99, 50, idle=False)
    assert pace.is_due(100, 50, idle=False)
    assert pace.is_due(1, 1, idle=True)
    clock.now += 0.06
    assert pace.is_due(1, 1, idle=False)


def test_with_a_backlog_checkpoints_cost_under_five_percent(clock: Clock) -> None:
    pace = Pace(FoldSettings(checkpoint_seconds=1000))
    folding = spent = 0.0
    for _ in range(50):  # 20 µs a model, 100,000 models: 2 s a checkpoint, and 5 ms where there are few
        models = 0
        while not pace.is_due(10**6, models, idle=False):
            clock.now += 0.01
            folding += 0.01
            models = min(100_000, models + 3000)
        cost = 0.005 + models * 20e-6
        took(pace, clock, cost, models)
        spent += cost
    assert spent / (folding + spent) < 0.08  # the first ones have nothing to go by
    clock.now += 1.9 * 19
    assert not pace.is_due(10**6, 100_000, idle=True)
    clock.now += 0.3 * 19
    assert pace.is_due(10**6, 100_000, idle=True)


def test_what_was_just_written_is_seen_soon_also_where_the_disk_is_slow(clock: Clock) -> None:
    pace = Pace(FoldSettings())
    for _ in range(10):
        took(pace, clock, 0.04, 200)  # a sync of 40 ms
    clock.now += 0.09
    assert not pace.is_due(200, 200, idle=False, is_live=True)
    clock.now += 0.02
    assert pace.is_due(200, 200, idle=False, is_live=True)
    assert not pace.is_due(200, 200, idle=False)
    for _ in range(10):
        took(pace, clock, 0.4, 200)
    clock.now += 0.3
    assert not pace.is_due(200, 200, idle=False, is_live=True)  # at most half of the time
    clock.now += 0.15
    assert pace.is_due(200, 200, idle=False, is_live=True)


def test_it_is_never_later_than_the_seconds_that_a_crash_may_cost(clock: Clock) -> None:
    pace = Pace(FoldSettings(checkpoint_seconds=5))
    took(pace, clock, 10.0, 100_000)
    clock.now += 4.9
    assert not pace.is_due(10**6, 100_000, idle=False)
    clock.now += 0.2
    assert pace.is_due(1, 1, idle=False)


def test_a_number_given_is_kept_exactly(clock: Clock) -> None:
    pace = Pace(FoldSettings(checkpoint_events=250, checkpoint_seconds=5))
    clock.now += 1
    assert not pace.is_due(249, 10, idle=True)
    assert pace.is_due(250, 10, idle=False)
    assert (pace.room(0), pace.room(240)) == (250, 10)
    assert Pace(FoldSettings()).room(7) is None


def test_stamp_survives_the_trip_and_nothing_else_is_one() -> None:
    stamp = Stamp(
        generation="p.v1", build=3, directory="d", fingerprint="f", events=7, declined=2, last_event_id="e", time_ms=1
    )
    assert Stamp.parse(stamp.encode()) == stamp
    for other in ("", "{}", "null", "hello", '{"refold":1,"generation":"p","epoch":1,"fingerprint":"f"}'):
        assert Stamp.parse(other) is None


def test_stamp_stays_small_whatever_the_event_id() -> None:
    encoded = Stamp(
        generation="p" * 100,
        build=3,
        directory="d" * 12,
        fingerprint="f" * 16,
        last_event_id="é" * 10_000,
        halted="x" * 9999,
    ).encode()
    assert len(encoded.encode()) < 1000
    short = Stamp.parse(encoded)
    assert short is not None
    assert short.last_event_id is None


def test_generation_belongs_to_its_projection_alone() -> None:
    assert belongs(generation_id("orders", 2), "orders")
    assert not belongs(generation_id("orders", 2), "order")
    assert not belongs(generation_id("orders.v1", 2), "orders")
