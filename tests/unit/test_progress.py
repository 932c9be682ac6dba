"""Progress: monotone, 100 % exactly when everything is committed, and honest after a failure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from streams.cli.view import percent
from streams.control.progress import ProgressTracker
from streams.data.partition import PartitionStatus
from streams.types import Lag, RebuildProgress


def status(position: int, committed: int | None = None, events: int = 0, declined: int = 0) -> PartitionStatus:
    return PartitionStatus(
        position=position,
        committed=position if committed is None else committed,
        events=events,
        declined=declined,
    )


def pinned(start: int, target: int) -> Lag:
    return Lag(start=start, position=start, target=target)


def at_once(tracker: ProgressTracker) -> ProgressTracker:
    """Take in every figure, however soon after the last."""
    tracker._observed_s = -1.0
    return tracker


def test_target_is_reached_only_once_it_is_committed() -> None:
    tracker = ProgressTracker({0: pinned(0, 10)})
    tracker.observe({0: status(10, committed=4, events=10)})
    assert tracker.snapshot.completion_percentage() == 90.0
    tracker.observe({0: status(10, committed=10, events=10)})
    assert tracker.snapshot.completion_percentage() == 100.0


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=20))
def test_percentage_never_goes_back_and_is_100_exactly_at_the_end(steps: list[tuple[int, int]]) -> None:
    tracker = ProgressTracker({0: pinned(5, 20), 1: pinned(0, 10)})
    before = 0.0
    reached: dict[int, int] = {0: 5, 1: 0}
    for position, committed in steps:
        figures = {p: status(position, min(position, committed)) for p in (0, 1)}
        at_once(tracker).observe(figures)
        reached = {p: max(reached[p], min(position, committed)) for p in reached}
        now = tracker.snapshot.completion_percentage()
        assert now is not None
        assert now >= before
        assert (now == 100.0) == (reached[0] >= 20 and reached[1] >= 10)
        before = now


def test_after_a_failure_the_figures_are_those_of_the_store() -> None:
    tracker = ProgressTracker({0: pinned(0, 10)})
    tracker.observe({0: status(9, committed=4, events=9)})
    progress = tracker.ended({0: status(4, events=4, declined=1)}, ValueError("why"))
    assert (progress.events_processed, progress.models_updated, progress.completion_percentage()) == (4, 3, 40.0)
    assert (progress.error, progress.is_running, progress.total_events) == ("why", False, None)


def test_huge_topics_do_not_round_up_to_100() -> None:
    lag = Lag(start=0, position=10**18 - 1, target=10**18)
    progress = RebuildProgress(started_at=datetime.now(UTC), is_running=True, partitions={0: lag})
    value = progress.completion_percentage()
    assert value is not None
    assert value < 100.0
    assert percent(10**18 - 1, 10**18) == " 99.9 %"
    assert percent(0, 0) == percent(3, 3) == "100.0 %"


def test_estimate_is_what_is_left_and_never_negative() -> None:
    now = datetime.now(UTC)
    assert RebuildProgress().estimated_seconds_left() is None
    assert RebuildProgress(estimated_completion=now + timedelta(seconds=9)).estimated_seconds_left(now) == 9
    assert RebuildProgress(estimated_completion=now - timedelta(seconds=9)).estimated_seconds_left(now) == 0


def test_of_two_stages_each_is_half_of_it() -> None:
    one = RebuildProgress(
        started_at=datetime.now(UTC), is_running=True, partitions={0: Lag(start=0, position=5, target=10)}
    )
    assert replace(one, stage=1, stages=2).completion_percentage() == 25.0
    assert replace(one, stage=2, stages=2).completion_percentage() == 75.0
    done = replace(one, partitions={0: Lag(start=0, position=10, target=10)})
    assert replace(done, stage=1, stages=2).completion_percentage() == 50.0
    assert replace(done, stage=2, stages=2).completion_percentage() == 100.0
    empty = replace(one, partitions={0: Lag(start=0, position=0, target=0)})
    assert replace(empty, stage=1, stages=2).completion_percentage() == 50.0
    assert replace(empty, stage=2, stages=2).completion_percentage() == 100.0
