"""What commands print: JSON, and figures as people read them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ago", "document", "duration", "local_time", "named", "printer", "shown", "size"]

_FILE_COLUMNS = 200


def printer() -> Console:
    """Give what prints tables to standard output: as wide as the terminal, and wide where there is none."""
    from rich.console import Console

    is_told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, width=None if is_told else _FILE_COLUMNS)


def named(model_id: str, raw: bytes) -> bytes:
    """Give the line of a model with its id, as NDJSON has it."""
    return b'{"id":' + orjson.dumps(model_id) + b',"model":' + raw + b"}"


def shown(document: Any, *, pretty: bool = False) -> str:
    """Write a document, or JSON that is there already, on one line or over several.

    Args:
        document: What orjson can write; bytes are JSON, and stay as they are on one line.
        pretty: Over several lines.
    """
    if isinstance(document, bytes):
        if not pretty:
            return document.decode()
        document = orjson.loads(document)
    options = orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 if pretty else 0)
    return orjson.dumps(document, option=options, default=str).decode()


def document(kind: str, facts: Mapping[str, Any], version: int = 1) -> dict[str, Any]:
    """Give what `--json` prints: facts, under the name and the version of what they are told by.

    A version's fields keep their names and meanings; further ones may be added. See docs/cli.md.
    """
    return {"schema": f"refold.{kind}/{version}", **facts}


def local_time(time: datetime | str | int | None) -> str:
    """Write a time in this machine's zone, to the second; text that is no time as it is.

    Args:
        time: Aware, or ISO 8601 text, or milliseconds since 1970.
    """
    if time is None:
        return "-"
    try:
        if isinstance(time, str):
            time = datetime.fromisoformat(time)
        elif isinstance(time, int):
            time = datetime.fromtimestamp(time / 1000, UTC)
        aware = time if time.tzinfo else time.replace(tzinfo=UTC)
        return aware.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(time)


def duration(seconds: float | None) -> str:
    """Write a number of seconds: `0.4 s`, `12 s`, `3:05`, `2:03:05`, `4 days 2:03:05`; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s" if 0 < seconds < 10 else f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if not days and not hours:
        return f"{minutes}:{left:02d}"
    text = f"{hours}:{minutes:02d}:{left:02d}"
    return f"{days} day{'s' if days > 1 else ''} {text}" if days else text


def ago(time: datetime) -> str:
    """Write how long ago something was."""
    return f"{duration(max(0.0, (datetime.now(UTC) - time).total_seconds()))} ago"


def size(count: int) -> str:
    """Write a number of bytes: `912 B`, `1.2 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
