"""A rebuild's progress on a terminal, or as lines where there is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from streams.cli.output import duration
from streams.cli.view import drawn, percent
from streams.control.rebuild import RebuildCoordinator
from streams.types import RebuildProgress

__all__ = ["watch"]

_REDRAW_S = 0.1
_LINE_S = 5.0


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
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):  # another one hastens nothing
                await asyncio.wait([work])
        raise
    return await work


async def _draw(coordinator: RebuildCoordinator, work: asyncio.Future[RebuildProgress], console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        running = True
        while running:
            running = not (await asyncio.wait([work], timeout=_REDRAW_S))[0]
            live.update(_drawn(coordinator.get_progress()), refresh=True)


def _drawn(progress: RebuildProgress) -> RenderableType:
    if not progress.partitions:
        return Text("checking")
    total = progress.total_offsets
    bar = drawn(total - progress.remaining_offsets, total, _figures(progress))
    return Group(bar, Text(f"waiting for {progress.waiting_for}", style="yellow")) if progress.waiting_for else bar


def _figures(progress: RebuildProgress) -> list[str]:
    figures = [f"{progress.events_processed:,} events", f"{progress.events_per_second:,.0f} events/s"]
    if progress.is_running:
        figures.append(f"ETA {duration(progress.estimated_seconds_left())}")
    else:
        figures.append(duration(progress.elapsed_seconds))
    return figures


async def _lines(coordinator: RebuildCoordinator, work: asyncio.Future[RebuildProgress], console: Console) -> None:
    while not (await asyncio.wait([work], timeout=_LINE_S))[0]:
        progress = coordinator.get_progress()
        total = progress.total_offsets
        share = percent(total - progress.remaining_offsets, total) if progress.partitions else "checking"
        line = f"rebuild {share}  {'  '.join(_figures(progress))}"
        console.print(f"{line}  waiting for {progress.waiting_for}" if progress.waiting_for else line, soft_wrap=True)
