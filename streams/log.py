"""Structured logs on standard error."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.tracebacks import ExceptionDictTransformer

__all__ = ["LEVELS", "configure", "configured", "get_logger", "is_debug", "parse_modules"]

LEVELS = ("debug", "info", "warning", "error")
_LEVEL_OF = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

get_logger = structlog.get_logger

if not structlog.is_configured():
    # In a program that says nothing of logs: warnings, on standard error. structlog's own default is everything, on
    # standard output, which is the program's.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
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
    return _configured is not None and _configured["level"] == "debug"


class _Named(structlog.WriteLogger):
    """A logger that knows whose it is."""

    def __init__(self, name: str) -> None:
        super().__init__(cast(TextIO, _StandardError()))
        self.name = name


def _logger(*names: Any) -> _Named:
    return _Named(str(names[0]) if names else "")


class _ByModule:
    """Drops what is below the level of its module, which is that of the longest name that it begins with.

    Args:
        levels: By module's name; "" for all others.
    """

    def __init__(self, levels: Mapping[str, int]) -> None:
        self._levels = sorted(levels.items(), key=lambda one: -len(one[0]))
        self._known: dict[str, int] = {}

    def __call__(self, logger: Any, method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        name: str = getattr(logger, "name", "")
        if name not in self._known:
            self._known[name] = next(
                level for prefix, level in self._levels if not prefix or f"{name}.".startswith(f"{prefix}.")
            )
        if _LEVEL_OF.get(method, logging.ERROR) < self._known[name]:
            raise structlog.DropEvent
        return entry


def parse_modules(text: str) -> dict[str, str]:
    """Read `MODULE=LEVEL,MODULE=LEVEL`.

    Raises:
        ValueError: It says nothing of the kind.
    """
    found = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        module, _, level = part.partition("=")
        if not re.fullmatch(r"\w+(\.\w+)*", module) or level not in LEVELS:
            raise ValueError(f"{part!r}: write MODULE=LEVEL, with one of {', '.join(LEVELS)}")
        found[module] = level
    return found


def configure(
    *,
    level: str = "info",
    style: Literal["console", "json"] | None = None,
    shown_elsewhere: Collection[str] = (),
    modules: Mapping[str, str] | None = None,
) -> None:
    """Send refold's logs, and those of the libraries below it, to standard error.

    Args:
        level: debug, info, warning or error.
        style: One JSON object a line, or columns for people; by default columns on a terminal.
        shown_elsewhere: Events that the user is told in another way.
        modules: Levels of single modules, and of those below them, whosever they are; such as
            `{"streams.control": "debug"}`.
    """

    def drop(_logger: object, _method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if entry["event"] in shown_elsewhere:
            raise structlog.DropEvent
        return entry

    global _configured
    modules = dict(modules or {})
    _configured = {"level": level, "style": style, "shown_elsewhere": tuple(shown_elsewhere), "modules": modules}
    numbers = {name: logging.getLevelNamesMapping()[one.upper()] for name, one in {"": level, **modules}.items()}
    number = numbers[""]
    json = style == "json" or (style is None and not sys.stderr.isatty())
    when = (
        structlog.processors.TimeStamper(fmt="iso", utc=True)
        if json
        else structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=False)
    )
    # No local variables in tracebacks: some are secrets.
    shown: list[structlog.typing.Processor] = (
        [
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
        if json
        else [
            structlog.dev.set_exc_info,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
    structlog.configure(
        processors=[
            *([_ByModule(numbers)] if modules else []),
            drop,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            when,
            *shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(min(numbers.values())),
        logger_factory=_logger,
        cache_logger_on_first_use=False,
    )
    theirs = logging.StreamHandler(cast(TextIO, _StandardError()))
    theirs.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.processors.add_log_level, when],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *shown],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[theirs])
    for name in modules:
        logging.getLogger(name).setLevel(numbers[name])
