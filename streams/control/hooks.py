"""Being told of what becomes of a rebuild (reference: Monitoring Hooks)."""

from __future__ import annotations

import asyncio

from streams.errors import RebuildCancelled
from streams.types import RebuildProgress

__all__ = ["HookReporter", "RebuildHook"]


class RebuildHook:
    """Derive from it, and override what you want to be told of.

    Everything is called on the event loop that the rebuild is awaited on, about when it happens, and never while an
    event is folded: it must not take long. What it raises is logged, and it is told no more; the rebuild goes on.
    """

    def started(self, progress: RebuildProgress) -> None:
        """The ends are pinned, and folding begins. Not called where a rebuild is refused before; `failed` is."""

    def progress(self, progress: RebuildProgress) -> None:
        """About ten times a second."""

    def checkpoint_saved(self, progress: RebuildProgress) -> None:
        """Models and positions were committed, once or more often since the last time; see `progress.checkpoints`."""

    def dead_letter(self, progress: RebuildProgress, count: int) -> None:
        """So many events could not be folded since the last time, or wait behind others; `DeadLetters` has them."""

    def cancelled(self, progress: RebuildProgress) -> None:
        """It was cancelled; in the library's coordinator, what was folded is kept."""

    def failed(self, progress: RebuildProgress, error: BaseException) -> None:
        """It ended before its end."""

    def completed(self, progress: RebuildProgress) -> None:
        """It came to its end; `progress.is_whole` says whether every event is in its model."""


class HookReporter:
    """Tells a hook, by figures that are looked at; see `ProgressReporter`."""

    def __init__(self, hook: RebuildHook) -> None:
        self._hook = hook
        self._is_started = False
        self._checkpoints = 0
        self._letters = 0

    def report(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""
        if not (progress.is_running and progress.partitions):
            return
        self._tell_what_came(progress)
        self._hook.progress(progress)

    def _tell_what_came(self, progress: RebuildProgress) -> None:
        if not self._is_started and progress.partitions:
            self._is_started = True
            self._hook.started(progress)
        if progress.checkpoints > self._checkpoints:
            self._checkpoints = progress.checkpoints
            self._hook.checkpoint_saved(progress)
        letters = progress.dead_letters + progress.events_skipped
        if letters > self._letters:
            self._hook.dead_letter(progress, letters - self._letters)
        self._letters = letters

    def ended(self, progress: RebuildProgress) -> None:
        """See ProgressReporter; `finished` says more."""

    def finished(self, progress: RebuildProgress, how: BaseException | str) -> None:
        """Tell how it ended.

        Args:
            progress: The last figures.
            how: What it raised; or completed, cancelled, or running, where it is left to others or to a person.
        """
        self._tell_what_came(progress)
        if how == "completed":
            self._hook.completed(progress)
        elif how == "cancelled" or isinstance(how, (RebuildCancelled, asyncio.CancelledError)):
            self._hook.cancelled(progress)
        elif isinstance(how, BaseException):
            self._hook.failed(progress, how)
