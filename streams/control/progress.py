"""A rebuild's progress, from its lag behind the ends pinned at its start."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from streams.data.partition import PartitionStatus
from streams.data.store import StoreState
from streams.types import Counts, Lag, RebuildProgress

__all__ = ["ProgressTracker"]

_WINDOW_S = 5.0
_SAMPLE_S = 0.25
_OBSERVE_S = 0.02


class ProgressTracker:
    """Turns positions into `RebuildProgress`. One thread feeds it; any thread reads `snapshot`.

    Args:
        pinned: Where each partition's fold begins, where it is, and its pinned end: the rebuild is complete when every
            position has reached that.
        before: What had been folded before the rebuild began, and is none of its figures.
        resumed: Its events that were folded by a process before this one.
    """

    def __init__(self, pinned: Mapping[int, Lag], before: Counts = Counts(), resumed: int = 0) -> None:  # noqa: B008
        self._began = time.monotonic()
        self._before = before
        self._resumed = resumed
        # (seconds, events, offsets left), over the last seconds: the rate that the estimate goes by
        self._observed_s = -1.0
        self._window: deque[tuple[float, int, int]] = deque()
        self.snapshot = RebuildProgress(
            started_at=datetime.now(UTC),
            is_running=True,
            partitions=dict(pinned),
            events_processed=resumed,
        )

    def observe(
        self, figures: Mapping[int, PartitionStatus], waiting_for: str = "", checkpoints: int | None = None
    ) -> None:
        """Take in newer figures, by partition; ones that come within milliseconds of the last are passed over.

        A position never goes back: what is folded again was counted before. And it reaches a target only once
        it is committed there: until then a model may turn out not to be storable.

        Args:
            figures: By partition.
            waiting_for: What keeps the rebuild from going on, or "".
            checkpoints: How many there were; None: nothing new is known.
        """
        elapsed = time.monotonic() - self._began
        at_end = all(figures[p].committed >= lag.target for p, lag in self.snapshot.partitions.items())
        if elapsed - self._observed_s < _OBSERVE_S and not at_end:
            return
        self._observed_s = elapsed
        partitions = {}
        for partition, lag in self.snapshot.partitions.items():
            position, committed = figures[partition].position, figures[partition].committed
            if committed < lag.target:
                position = min(position, max(lag.target - 1, lag.start))
            partitions[partition] = replace(lag, position=max(lag.position, position))
        events = max(self._events(figures), self.snapshot.events_processed)
        declined = self._declined(figures)
        left = sum(lag.remaining for lag in partitions.values())
        if not self._window or elapsed - self._window[-1][0] >= _SAMPLE_S:
            self._window.append((elapsed, events, left))
            while elapsed - self._window[0][0] > _WINDOW_S:
                self._window.popleft()
        since, events_then, left_then = self._window[0]
        seconds = elapsed - since
        rate = (events - events_then) / seconds if seconds > 0 else 0.0
        offsets_rate = (left_then - left) / seconds if seconds > 0 else 0.0
        self.snapshot = replace(
            self.snapshot,
            partitions=partitions,
            waiting_for=waiting_for,
            checkpoints=self.snapshot.checkpoints if checkpoints is None else checkpoints,
            events_processed=events,
            events_declined=max(declined, self.snapshot.events_declined),
            dead_letters=sum(one.dead_letters for one in figures.values()),
            events_skipped=sum(one.skipped for one in figures.values()),
            models_updated=max(events - declined - self._left_out(figures), self.snapshot.models_updated),
            events_per_second=rate,
            estimated_completion=(
                datetime.now(UTC) + timedelta(seconds=left / offsets_rate) if offsets_rate > 0 else None
            ),
            elapsed_seconds=elapsed,
        )

    def _events(self, figures: Mapping[int, PartitionStatus]) -> int:
        return sum(one.events for one in figures.values()) - self._before.events

    def _declined(self, figures: Mapping[int, PartitionStatus]) -> int:
        return sum(one.declined for one in figures.values()) - self._before.declined

    def _left_out(self, figures: Mapping[int, PartitionStatus]) -> int:
        return sum(one.dead_letters + one.skipped for one in figures.values()) - self._before.left_out

    def ended(
        self,
        figures: Mapping[int, PartitionStatus],
        error: BaseException | None = None,
        *,
        states: Mapping[int, StoreState] | None = None,
        checkpoints: int | None = None,
    ) -> RebuildProgress:
        """Close the books, by what is in the stores; the rate is now over all that this process did.

        Args:
            figures: By partition.
            error: What ended the rebuild before its end.
            states: What the stores say in the end, where it has come to its end.
            checkpoints: See `observe`.
        """
        elapsed = time.monotonic() - self._began
        events, declined = self._events(figures), self._declined(figures)
        deleted = sum(one.deleted for one in (figures if states is None else states).values()) - self._before.deleted
        self.snapshot = replace(
            self.snapshot,
            waiting_for="",
            checkpoints=self.snapshot.checkpoints if checkpoints is None else checkpoints,
            models=None if states is None else sum(one.models for one in states.values()),
            models_deleted=deleted,
            events_declined=declined,
            dead_letters=sum(one.dead_letters for one in figures.values()),
            events_skipped=sum(one.skipped for one in figures.values()),
            partitions={
                partition: replace(lag, position=max(lag.start, figures[partition].committed))
                for partition, lag in self.snapshot.partitions.items()
            },
            events_processed=events,
            models_updated=max(0, events - declined - self._left_out(figures)),
            is_running=False,
            error=None if error is None else str(error) or type(error).__name__,
            total_events=events if error is None else None,
            estimated_completion=None,
            events_per_second=(events - self._resumed) / elapsed if elapsed > 0 else 0.0,
            elapsed_seconds=elapsed,
        )
        return self.snapshot
