"""JSON on standard output."""

from __future__ import annotations

from typing import Any

import orjson

__all__ = ["named", "shown"]


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
    return orjson.dumps(document, option=options).decode()
