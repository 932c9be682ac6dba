"""Telling of a rebuild while it runs (reference: Progress Reporters)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from streams.control.hooks import HookReporter, RebuildHook
from streams.control.record import Record
from streams.log import get_logger
from streams.types import RebuildProgress

__all__ = ["CallbackReporter", "LogReporter", "ProgressReporter", "reported"]

log = get_logger(__name__)

T = TypeVar("T")

_EVERY_S = 0.1


@runtime_checkable
class ProgressReporter(Protocol):
    """Is told of a rebuild's progress, about ten times a second, on the event loop: it must not take long.

    What it raises is logged, and it is told no more; the rebuild goes on.
    """

    def report(self, progress: RebuildProgress) -> None:
        """Take the figures as they are now."""
        ...

    def ended(self, progress: RebuildProgress) -> None:
        """Take the last figures, whatever the end; `error` says what ended it before its own."""
        ...


class CallbackReporter:
    """Calls a function with the figures, and with the last ones too.

    Args:
        callback: The function.
        every_s: Not before so many seconds have passed since the last call, but for the last figures.
    """

    def __init__(self, callback: Callable[[RebuildProgress], object], *, every_s: float = 1.0) -> None:
        self._callback = callback
        self._every_s = every_s
        self._told_s = -every_s

    def report(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""
        if time.monotonic() - self._told_s >= self._every_s:
            self._told_s = time.monotonic()
            self._callback(progress)

    def ended(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""
        self._callback(progress)


class LogReporter:
    """Writes a line to the log at level info, now and then; the rebuild itself logs how it ended.

    A program that does not set up structlog sees warnings only; `streams.log.configure()` shows these.

    Args:
        projection: What the lines call it.
        every_s: Seconds between two lines.
    """

    def __init__(self, projection: str, *, every_s: float = 5.0) -> None:
        self._projection = projection
        self._every_s = every_s
        self._told_s = time.monotonic()

    def report(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""
        if time.monotonic() - self._told_s < self._every_s:
            return
        self._told_s = time.monotonic()
        percentage, left_s = progress.completion_percentage(), progress.estimated_seconds_left()
        log.info(
            "rebuild.progress",
            projection=self._projection,
            percentage=None if percentage is None else round(percentage, 1),
            events=progress.events_processed,
            events_per_second=round(progress.events_per_second),
            seconds_left=None if left_s is None else round(left_s),
            **({"waiting_for": progress.waiting_for} if progress.waiting_for else {}),
        )

    def ended(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""


async def reported(
    reporters: Sequence[ProgressReporter],
    progress: Callable[[], RebuildProgress],
    rebuild: Coroutine[Any, Any, T],
    hooks: Sequence[RebuildHook] = (),
) -> T:
    """Run a rebuild and tell of it.

    Args:
        reporters: Whom.
        progress: Gives the figures.
        rebuild: What is run.
        hooks: Who else is told, of what happens.

    Raises:
        Whatever the rebuild raises.
    """
    told = [HookReporter(hook) for hook in hooks]
    listening: list[ProgressReporter] = [*reporters, *told]

    def tell(what: Callable[[ProgressReporter], None]) -> None:
        for one in list(listening):
            try:
                what(one)
            except Exception as error:  # noqa: BLE001  (a figure that is not shown must not end a rebuild of hours)
                listening.remove(one)
                log.warning("reporter.failed", reporter=type(one).__qualname__, why=f"{type(error).__name__}: {error}")

    work = asyncio.ensure_future(rebuild)
    try:
        while not (await asyncio.wait([work], timeout=_EVERY_S))[0]:
            figures = progress()
            tell(lambda one, figures=figures: one.report(figures))  # type: ignore[misc]
    except asyncio.CancelledError:
        work.cancel()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):  # another one hastens nothing
                await asyncio.wait([work])
        raise
    finally:
        how = _outcome(work)
        tell(lambda one: one.finished(progress(), how) if isinstance(one, HookReporter) else one.ended(progress()))
    return work.result()


def _outcome(work: asyncio.Future[Any]) -> BaseException | str:
    """Say how a rebuild ended: what it raised, or in the registry's word."""
    if not work.done() or work.cancelled():
        return asyncio.CancelledError()
    result = None if work.exception() is not None else work.result()
    rebuild = result.rebuild if isinstance(result, Record) else None
    return work.exception() or ("completed" if rebuild is None else rebuild.outcome)
