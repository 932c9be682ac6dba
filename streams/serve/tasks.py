"""What becomes of tasks that nobody waits for any more, and that have failed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from streams.log import get_logger

__all__ = ["tell_of_failed_tasks"]

log = get_logger(__name__)

_LIBRARIES = {"aiokafka", "faust", "mode"}
"""Whose tasks may fail while their membership ends: it is joined again, or was to end."""


def tell_of_failed_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Have a loop tell of them in the log, each in a line: as an error where the task is ours."""
    loop.set_exception_handler(_tell)


def _tell(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    task = context.get("future") or context.get("task")
    coroutine = task.get_coro() if isinstance(task, asyncio.Task) else None
    code = getattr(coroutine, "cr_code", None)
    theirs = code is not None and bool(_LIBRARIES & set(Path(code.co_filename).parts))
    error = context.get("exception")
    (log.warning if theirs else log.error)(
        "task.failed",
        task=getattr(coroutine, "__qualname__", ""),
        what=context["message"],
        why=f"{type(error).__name__}: {error}",
        exc_info=None if theirs else error,
    )
