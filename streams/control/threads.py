"""Blocking calls on threads of their own, and awaited."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["on_own_thread", "on_thread", "stopped_with_its_task"]

T = TypeVar("T")


def on_thread(call: Callable[[], T], name: str, *, daemon: bool = False) -> concurrent.futures.Future[T]:
    """Make a blocking call on a thread of its own.

    Args:
        call: The call.
        name: The thread's.
        daemon: A process that ends does not wait for it.
    """
    outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001  (raised again where the outcome is asked for)
            outcome.set_exception(error)

    threading.Thread(target=run, name=name, daemon=daemon).start()
    return outcome


def on_own_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Make a blocking call on a thread of its own, and not on the loop's few, which are the user's."""
    return asyncio.wrap_future(on_thread(call, "refold-rebuild"))


async def stopped_with_its_task(call: Callable[[], T], stop: Callable[[], None]) -> T:
    """Make a blocking call; where the task is cancelled, ask for its end, wait for that, and be cancelled then.

    Args:
        call: The call.
        stop: Asks for its end; it must not wait for it.

    Raises:
        Whatever the call raises.
    """
    work = on_own_thread(call)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):  # another one hastens nothing
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # seen: the cancellation is what the caller is told
        raise
