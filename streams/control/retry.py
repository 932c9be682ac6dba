"""Trying a rebuild again where what ended it may pass (reference: Automatic Retry)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_exponential_jitter,
)

from streams.control.run import Run
from streams.control.strategies import FromCheckpoint, RebuildStrategy
from streams.errors import BrokerUnavailable, ProjectionError, StorageError
from streams.log import get_logger
from streams.types import RebuildProgress

__all__ = ["Retry", "is_transient", "retried"]

log = get_logger(__name__)

_LOOK_S = 0.1
_FULL = "No space left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and how long, a rebuild is tried again.

    The waits double from the first on, each with up to a tenth more at random, so that many do not come back at once.
    """

    attempts: int = 5
    """All of them, the first included."""
    first_wait_s: float = 1.0
    ceiling_s: float = 60.0
    """The longest wait."""
    total_s: float = 3600.0
    """No attempt begins later than this after the first."""


def is_transient(error: BaseException) -> bool:
    """Say whether what ended a rebuild may have passed at the next attempt.

    So it may where no broker answers, where the disk is full, and where the projection says so by raising
    `TransientError`. Everything else is the same at each attempt, and is not tried again.
    """
    if isinstance(error, ProjectionError):
        return error.is_transient
    if isinstance(error, StorageError):
        return _FULL in f"{error} {error.__cause__}"
    return isinstance(error, BrokerUnavailable)


async def retried(
    retry: Retry,
    strategy: RebuildStrategy,
    new_run: Callable[[RebuildStrategy], Run],
    attempt: Callable[[Run], Awaitable[RebuildProgress]],
    first: Run,
) -> RebuildProgress:
    """Rebuild, again where that may help; once a rebuild has begun, the next attempt goes on with it.

    Args:
        retry: How often.
        strategy: Where the rebuild begins.
        new_run: Makes what one attempt runs.
        attempt: Runs it.
        first: What the first attempt runs.

    Raises:
        What the last attempt raised.
    """
    run = first

    async def once() -> RebuildProgress:
        return await attempt(run)

    def prepare(state: RetryCallState) -> None:
        nonlocal run
        assert state.outcome is not None
        assert state.next_action is not None
        error, wait_s = state.outcome.exception(), state.next_action.sleep
        before = run
        run = new_run(FromCheckpoint() if before.has_begun else strategy)
        run.follows(before, f"attempt {state.attempt_number + 1} of {retry.attempts}, after: {error}")
        log.warning(
            "rebuild.tried_again",
            attempt=state.attempt_number + 1,
            of=retry.attempts,
            in_s=round(wait_s, 1),
            why=str(error),
        )

    async def sleep(seconds: float) -> None:
        while seconds > 0 and not run.is_cancelled:  # the next attempt then says so
            await asyncio.sleep(min(seconds, _LOOK_S))
            seconds -= _LOOK_S

    retrying = AsyncRetrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(retry.attempts) | stop_after_delay(retry.total_s),
        wait=wait_exponential_jitter(
            multiplier=retry.first_wait_s, max=retry.ceiling_s, jitter=retry.first_wait_s / 10
        ),
        before_sleep=prepare,
        sleep=sleep,
        reraise=True,
    )
    try:
        return await retrying(once)
    except BaseException as error:
        run.ended(error)  # where it was to begin yet
        raise
