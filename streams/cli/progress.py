"""A rebuild's progress on a terminal, or as lines where there is none."""

from __future__ import annotations

import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from streams.cli.output import duration
from streams.cli.view import drawn, percent
from streams.control.reporters import ProgressReporter
from streams.types import RebuildProgress

__all__ = ["RichReporter", "reporter_for", "said", "shown_as_bar"]

_LINE_S = 5.0


def reporter_for(console: Console) -> ProgressReporter:
    """Give a bar on a terminal, and lines elsewhere."""
    return RichReporter(console) if console.is_terminal else LineReporter(console)


class RichReporter:
    """Draws a bar on a terminal.

    Args:
        console: Where; by default standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._live = Live(console=console or Console(stderr=True, highlight=False, markup=False), auto_refresh=False)

    def report(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""
        if not self._live.is_started:
            self._live.start()
        self._live.update(shown_as_bar(progress), refresh=True)

    def ended(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""
        self.report(progress)
        self._live.stop()


class LineReporter:
    """Prints a line now and then.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told_s = time.monotonic()

    def report(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""
        if time.monotonic() - self._told_s >= _LINE_S:
            self._told_s = time.monotonic()
            self._console.print(f"rebuild {said(progress)}", soft_wrap=True)

    def ended(self, progress: RebuildProgress) -> None:
        """See ProgressReporter."""


def shown_as_bar(progress: RebuildProgress) -> RenderableType:
    """Draw a bar with its figures, and what is waited for."""
    if not progress.partitions:
        return Text("checking")
    bar = drawn(*progress.share, _figures(progress))
    return Group(bar, Text(f"waiting for {progress.waiting_for}", style="yellow")) if progress.waiting_for else bar


def _figures(progress: RebuildProgress) -> list[str]:
    figures = [f"{progress.events_processed:,} events", f"{progress.events_per_second:,.0f} events/s"]
    if progress.stages > 1 and progress.is_running:
        doing = "repartitioning" if progress.stage == 1 else "folding"
        figures.insert(0, f"stage {progress.stage} of {progress.stages}, {doing}")
    if progress.is_running:
        figures.append(f"ETA {duration(progress.estimated_seconds_left())}")
    else:
        figures.append(duration(progress.elapsed_seconds))
    return figures


def said(progress: RebuildProgress) -> str:
    """Write the figures in one line."""
    share = percent(*progress.share) if progress.partitions else "checking"
    line = f"{share}  {'  '.join(_figures(progress))}"
    return f"{line}  waiting for {progress.waiting_for}" if progress.waiting_for else line
