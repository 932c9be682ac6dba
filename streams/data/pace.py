"""When to take a checkpoint."""

from __future__ import annotations

import time

from streams.config import FoldSettings

__all__ = ["Pace"]

_COST = 0.05
"""The share of the time that checkpoints may take."""
_LIVE_COST = 0.5
"""The same where events are folded as they are written: there is time for it."""
_GUESSED_MODEL_S = 2e-6
"""What a model costs to write, before any was."""
_LARGE = 1000
_MIN_EVENTS = 100
_VISIBLE_S = 0.1


class Pace:
    """Decides when a checkpoint is due.

    With a number of events given: exactly then, or after `checkpoint_seconds`. Otherwise after at least 100
    events or 0.1 s, and not before 19 times as long as the checkpoint will take has been spent folding, so that
    checkpoints cost under 5 %: with a backlog the interval widens by itself, without one it is the reference's 100
    events. Where events are folded as they are written it is 0.1 s, or as long as a checkpoint takes on a disk that is
    slow to sync: then half of the time goes into them. Never later than `checkpoint_seconds`, which is what a crash
    costs to fold again.
    """

    def __init__(self, settings: FoldSettings) -> None:
        self.every = settings.checkpoint_events
        self._longest_s = settings.checkpoint_seconds
        self._ended = time.monotonic()
        self._fixed_s = 0.0
        self._per_model_s = _GUESSED_MODEL_S

    def is_due(self, pending: int, models: int, *, idle: bool, is_live: bool = False) -> bool:
        """Say whether to take a checkpoint now.

        Args:
            pending: Events folded since the last one.
            models: Models that it would write.
            idle: Nothing is waiting to be folded.
            is_live: What was folded last has only just been written: who reads is to see it soon.
        """
        since = time.monotonic() - self._ended
        if since >= self._longest_s:
            return True
        if self.every is not None:
            return pending >= self.every
        will_take_s = self._fixed_s + self._per_model_s * models
        if is_live and since >= max(_VISIBLE_S, will_take_s * (1 / _LIVE_COST - 1)):
            return True
        if since < will_take_s * (1 / _COST - 1):
            return False
        return idle or pending >= _MIN_EVENTS or since >= _VISIBLE_S

    def room(self, pending: int) -> int | None:
        """Give how many events may be folded before a checkpoint must be taken; None for any number."""
        return None if self.every is None else max(1, self.every - pending)

    def taken(self, began: float, models: int) -> None:
        """Note that a checkpoint has just ended.

        Args:
            began: When, by time.monotonic.
            models: How many models it wrote.
        """
        self._ended = time.monotonic()
        took_s = self._ended - began
        if models < _LARGE:  # the sync to disk outweighs the models
            self._fixed_s += 0.5 * (took_s - self._fixed_s)
        else:
            self._per_model_s += 0.5 * (max(0.0, took_s - self._fixed_s) / models - self._per_model_s)
