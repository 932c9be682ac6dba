"""One run of a rebuild: its figures, its cancellation, and its end. What it does is in `fold_run` and `streams_run`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import msgspec

from streams.control.progress import ProgressTracker
from streams.data.build import Build
from streams.errors import RebuildCancelled, StorageError
from streams.log import get_logger
from streams.types import RebuildProgress

__all__ = ["Run", "note_end"]

log = get_logger(__name__)


class Run(ABC):
    """One rebuild. `cancel` and `progress` may be used from any thread, also before and after.

    Args:
        name: The projection's.
        topic: What it folds.
    """

    def __init__(self, name: str, topic: str) -> None:
        self._name = name
        self._topic = topic
        self._cancelled = threading.Event()
        self._tracker: ProgressTracker | None = None
        self._before = RebuildProgress()
        self._follows: Run | None = None

    @property
    def progress(self) -> RebuildProgress:
        """The figures so far."""
        return self._before if self._tracker is None else self._tracker.snapshot

    def cancel(self) -> None:
        """Stop after the event at hand."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was asked to stop."""
        return self._cancelled.is_set()

    @property
    def has_begun(self) -> bool:
        """Whether the build of it, or of the run that it goes on with, has become current."""
        return self._tracker is not None or self._follows is not None

    def follows(self, before: Run, waiting_for: str) -> None:
        """Count as what goes on with another run that has ended, and is waiting to begin.

        Args:
            before: The other one.
            waiting_for: For what.
        """
        self._before = replace(before.progress, is_running=True, error=None, waiting_for=waiting_for)
        self._follows = before if before.has_begun else None

    def begin(self) -> None:
        """Count as running from now on; `rebuild` follows."""
        if not self._before.is_running:
            self._before = RebuildProgress(started_at=datetime.now(UTC), is_running=True)

    def ended(self, error: BaseException) -> None:
        """Close the books of a rebuild that never began."""
        if self._tracker is None and self._before.is_running:
            self._before = replace(self._before, is_running=False, error=str(error) or type(error).__name__)

    def rebuild(self) -> RebuildProgress:
        """Do all of it; see `RebuildCoordinator.rebuild`."""
        name = self._name
        try:
            progress = self._rebuild()
        except BaseException as error:
            self.ended(error)
            log.warning("rebuild.failed", projection=name, why=self.progress.error)
            raise
        (log.info if progress.is_whole else log.warning)(
            "rebuild.completed" if progress.is_whole else "rebuild.completed_with_dead_letters",
            projection=name,
            events=progress.events_processed,
            models=progress.models,
            **(
                {} if progress.is_whole else {"dead_letters": progress.dead_letters, "skipped": progress.events_skipped}
            ),
            seconds=round(progress.elapsed_seconds, 3),
        )
        return progress

    @abstractmethod
    def _rebuild(self) -> RebuildProgress:
        """Do it, and give the final figures. Everything in it blocks, on one thread."""

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise RebuildCancelled(
                f"The rebuild of {self._name!r} was cancelled before anything was changed.",
                projection=self._name,
                topic=self._topic,
            )


def note_end(build: Build, progress: RebuildProgress, error: BaseException | None = None) -> None:
    """Note how a rebuild ended, beside what it made; one that has ended already stays as it was noted.

    Args:
        build: What it made.
        progress: The last figures.
        error: What ended it before its end.
    """
    try:
        begun = build.rebuild()
        if begun is not None and begun.outcome != "completed":
            build.write_rebuild(
                msgspec.structs.replace(
                    begun,
                    ended_at=datetime.now(UTC),
                    outcome=_outcome(error),
                    error=progress.error,
                    events=progress.events_processed,
                    models=progress.models,
                    deleted=progress.models_deleted,
                    declined=progress.events_declined,
                    dead_letters=progress.dead_letters,
                    skipped=progress.events_skipped,
                    seconds=progress.elapsed_seconds,
                    events_per_second=progress.events_per_second,
                )
            )
    except StorageError as why:  # the models are there all the same, or another error is on its way
        log.warning("rebuild.not_noted", projection=build.manifest.projection, why=str(why))


def _outcome(error: BaseException | None) -> Literal["completed", "cancelled", "failed"]:
    if error is None:
        return "completed"
    return "cancelled" if isinstance(error, RebuildCancelled) else "failed"
