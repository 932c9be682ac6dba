"""What becomes of tasks and threads that nobody waits for any more, and that have failed."""

from __future__ import annotations

import asyncio
import threading
import traceback
from pathlib import Path
from typing import Any

from streams.log import get_logger

__all__ = ["tell_of_failed_tasks"]

log = get_logger(__name__)

_LIBRARIES = {"aiokafka", "faust", "mode"}
"""Whose tasks and threads may fail while their membership ends: it is joined again, or was to end."""


def tell_of_failed_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Have them told of in the log, each in a line: as an error where it is ours.

    Args:
        loop: Whose tasks; threads are those of the process.
    """
    loop.set_exception_handler(_tell_of_task)
    threading.excepthook = _tell_of_thread


def _tell_of_task(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    task = context.get("future") or context.get("task")
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    code = getattr(coroutine, "cr_code", None)
    theirs = code is not None and _is_theirs(code.co_filename)
    error = context.get("exception")
    (log.warning if theirs else log.error)(
        "task.failed",
        task=getattr(coroutine, "__qualname__", ""),
        what=context["message"],
        why=f"{type(error).__name__}: {error}",
        exc_info=None if theirs else error,
    )


def _tell_of_thread(failed: threading.ExceptHookArgs) -> None:
    theirs = any(_is_theirs(frame.filename) for frame in traceback.extract_tb(failed.exc_traceback))
    (log.warning if theirs else log.error)(
        "thread.failed",
        thread=None if failed.thread is None else failed.thread.name,
        why=f"{failed.exc_type.__name__}: {failed.exc_value}",
        exc_info=None if theirs else failed.exc_value,
    )


def _is_theirs(file: str) -> bool:
    return bool(_LIBRARIES & set(Path(file).parts))
