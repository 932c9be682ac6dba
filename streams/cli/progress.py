"""A rebuild's progress on a terminal, or as lines where there is none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from streams.control.rebuild import RebuildCoordinator
from streams.types import RebuildProgress

__all__ = ["percent", "watch"]

_REDRAW_S = 0.1
_LINE_S = 5.0


def percent(progress: RebuildProgress) -> str:
    """Write the percentage, rounded down: 100.0 % is written only when it is true."""
    value = progress.completion_percentage()
    return "  -  " if value is None else f"{math.floor(value * 10) / 10:5.1f} %"


def _left(progress: RebuildProgress) -> str:
    seconds = progress.estimated_seconds_left()
    return "-" if seconds is None else f"{int(seconds // 60)}:{int(seconds % 60):02d}"


async def watch(
    coordinator: RebuildCoordinator, rebuild: Awaitable[RebuildProgress], console: Console
) -> RebuildProgress:
    """Run a rebuild and show its progress until it ends.

    Args:
        coordinator: Whose progress to show.
        rebuild: The rebuild, not yet awaited.
        console: Where to show it.

    Returns:
        The final figures.

    Raises:
        Whatever the rebuild raises.
    """
    work = asyncio.ensure_future(rebuild)
    try:
        if console.is_terminal:
            await _draw(coordinator, work, console)
        else:
            await _lines(coordinator, work, console)
    except asyncio.CancelledError:
        work.cancel()
        await asyncio.wait([work])
        raise
    return await work


async def _draw(coordinator: RebuildCoordinator, work: asyncio.Future[RebuildProgress], console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=40),
        TextColumn("{task.fields[percent]}  {task.fields[rate]:>9,.0f} events/s  ETA {task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("rebuild", total=None, percent="", rate=0.0, left="-")
        running = True
        while running:
            running = not (await asyncio.wait([work], timeout=_REDRAW_S))[0]
            progress = coordinator.get_progress()
            bar.update(
                task,
                description=f"rebuild waits for {progress.waiting_for}\n" if progress.waiting_for else "rebuild",
                total=progress.total_offsets or None,
                completed=progress.total_offsets - progress.remaining_offsets,
                percent=percent(progress),
                rate=progress.events_per_second,
                left=_left(progress),
            )


async def _lines(coordinator: RebuildCoordinator, work: asyncio.Future[RebuildProgress], console: Console) -> None:
    while not (await asyncio.wait([work], timeout=_LINE_S))[0]:
        progress = coordinator.get_progress()
        console.print(
            f"rebuild {percent(progress)}  {progress.events_processed:,} events  "
            f"{progress.events_per_second:,.0f} events/s  ETA {_left(progress)}"
            + (f"  waits for {progress.waiting_for}" if progress.waiting_for else "")
        )
