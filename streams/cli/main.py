"""The `refold` command: parse, wire, print."""

from __future__ import annotations

import sys

from cyclopts import App

from streams import errors
from streams.cli.broker import broker
from streams.cli.load import load

__all__ = ["app", "main"]

app = App(name="refold", help="Fold a Kafka event topic into read models, and rebuild them from history.")
app.command(broker)
app.command(load)

EXIT_CODES: list[tuple[type[BaseException], int]] = [
    (errors.ConfigError, 2),
    (errors.GroupActive, 3),
    (errors.HistoryIncomplete, 4),
    (errors.TopicNotFound, 6),
    (errors.BrokerUnavailable, 7),
    (errors.RebuildCancelled, 130),
    (KeyboardInterrupt, 130),
    (errors.CqrsError, 1),
]
"""What a script can tell apart; the first that fits."""


def main() -> None:
    """Run the command line. An error of ours is one message and an exit code, never a stack trace."""
    try:
        app()
    except (errors.CqrsError, KeyboardInterrupt) as error:
        text = str(error) or "interrupted"
        print(f"refold: {text}", file=sys.stderr)  # noqa: T201
        sys.exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
