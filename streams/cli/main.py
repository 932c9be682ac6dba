"""The `refold` command: parse, wire, print."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Literal

from cyclopts import App, Parameter

from projections.datasets import DatasetError
from projections.fingerprint import StaleSource
from projections.registry import ResolveError
from streams import errors, log
from streams.cli.broker import broker
from streams.cli.demo import demo
from streams.cli.get import get
from streams.cli.load import load
from streams.cli.rebuild import rebuild
from streams.cli.run import run

__all__ = ["app", "main"]

app = App(name="refold", help="Fold a Kafka event topic into read models, and rebuild them from history.")
for command in (demo, run, rebuild, get, load, broker):
    app.command(command)

OURS = (errors.CqrsError, ResolveError, StaleSource, DatasetError, KeyboardInterrupt)
"""Errors whose message is written for the user; any other is a fault of ours and keeps its stack trace."""

EXIT_CODES: list[tuple[type[BaseException], int]] = [
    (errors.ConfigError, 2),
    (errors.GroupActive, 3),
    (errors.StoreLocked, 3),
    (errors.RebuildRunning, 3),
    (errors.HistoryIncomplete, 4),
    (errors.TopicNotFound, 6),
    (errors.ModelNotFound, 6),
    (ResolveError, 6),
    (errors.BrokerUnavailable, 7),
    (errors.RebuildCancelled, 130),
    (KeyboardInterrupt, 130),
    (Exception, 1),
]
"""What a script can tell apart; the first that fits."""


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None, Parameter(env_var="REFOLD_LOG_LEVEL")
    ] = None,
    log_format: Annotated[Literal["console", "json"] | None, Parameter(env_var="REFOLD_LOG_FORMAT")] = None,
) -> None:
    """Set up logging, then run the command.

    Args:
        tokens: The command and its options.
        log_level: What to log, on standard error; by default info, and warning where a bar is drawn there.
        log_format: Columns, or one JSON object a line; by default columns on a terminal.
    """
    draws = tokens[:1] in (("demo",), ("rebuild",))
    log.configure(level=log_level or ("warning" if draws else "info"), style=log_format)
    app(tokens)


def main() -> None:
    """Run the command line. An error of ours is one message and an exit code, with no stack trace but the user's own.

    At log level debug, the whole one comes before the message.
    """
    try:
        app.meta()
    except OURS as error:
        if log.is_debug():
            traceback.print_exception(error)
        elif trace := getattr(error, "user_traceback", ""):
            print(trace, file=sys.stderr, end="")  # noqa: T201
        print(f"refold: {str(error) or 'interrupted'}", file=sys.stderr)  # noqa: T201
        sys.exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind)))
