"""Structured logs on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from typing import Any, Literal, TextIO, cast

import structlog

__all__ = ["configure", "configured", "get_logger", "is_debug"]

get_logger = structlog.get_logger

if not structlog.is_configured():
    # In a program that says nothing of logs: warnings, on standard error. structlog's own default is everything, on
    # standard output, which is the program's.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


class _StandardError:
    """Standard error as it is when something is written: whoever draws a bar there puts itself in its place."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


_configured: dict[str, Any] | None = None


def configured() -> dict[str, Any] | None:
    """Give what `configure` was called with last, for a process of ours to do the same; None where it was not."""
    return _configured


def is_debug() -> bool:
    """Say whether the whole story is to be told."""
    return bool(structlog.get_config()["wrapper_class"] is structlog.make_filtering_bound_logger(logging.DEBUG))


def configure(
    *, level: str = "info", style: Literal["console", "json"] | None = None, shown_elsewhere: Collection[str] = ()
) -> None:
    """Send refold's logs, and those of the libraries below it, to standard error.

    Args:
        level: debug, info, warning or error.
        style: One JSON object a line, or columns for people; by default columns on a terminal.
        shown_elsewhere: Events that the user is told in another way.
    """

    def drop(_logger: object, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if entry["event"] in shown_elsewhere:
            raise structlog.DropEvent
        return entry

    global _configured
    _configured = {"level": level, "style": style, "shown_elsewhere": tuple(shown_elsewhere)}
    number = logging.getLevelNamesMapping()[level.upper()]
    json = style == "json" or (style is None and not sys.stderr.isatty())
    structlog.configure(
        processors=[
            drop,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True)
            if json
            else structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False),
            structlog.processors.dict_tracebacks if json else structlog.dev.set_exc_info,
            structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, _StandardError())),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, format="%(name)s: %(message)s")
