"""Looking again and again: drawn in place on a terminal, a line or a JSON object for each look elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from rich.console import RenderableType
from rich.live import Live

from streams.cli.output import printer
from streams.cli.signals import interrupted_by_signals
from streams.errors import BrokerUnavailable

__all__ = ["watch"]

T = TypeVar("T")


def watch(
    look: Callable[[], T],
    draw: Callable[[T], RenderableType],
    tell: Callable[[T], None],
    *,
    every_s: float,
    for_s: float | None = None,
    lines: bool = False,
) -> None:
    """Look and show until interrupted, which is the normal end.

    Where no broker answers, that is shown, and it goes on.

    Args:
        look: Gives what is to be shown.
        draw: Draws it, on a terminal.
        tell: Prints it, elsewhere.
        every_s: The time from one look to the next, in seconds.
        for_s: End by itself after so long.
        lines: Print also on a terminal.
    """
    console = printer()
    drawn = console.is_terminal and not lines
    deadline = None if for_s is None else time.monotonic() + for_s
    with (
        contextlib.suppress(KeyboardInterrupt),
        interrupted_by_signals(exit_code=0),
        Live(console=console, auto_refresh=False) if drawn else contextlib.nullcontext() as live,
    ):
        while True:
            began_s = time.monotonic()
            try:
                seen = look()
            except BrokerUnavailable as error:
                print(f"refold: {error}", file=sys.stderr, flush=True)  # noqa: T201
            else:
                if live is None:
                    tell(seen)
                    sys.stdout.flush()
                else:
                    live.update(draw(seen), refresh=True)
            now_s = time.monotonic()
            if deadline is not None and now_s + every_s > deadline:
                return
            time.sleep(max(0.0, began_s + every_s - now_s))
