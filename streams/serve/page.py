"""The page: a dashboard for people, at `/`, fed by server-sent events. It holds no data itself.

Nothing on it runs that is not one of its own files, and it can send nothing anywhere else (Content-Security-Policy).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from streams.serve.lags import Lags
from streams.serve.problems import Problem
from streams.serve.standing import standing

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["EVENTS", "Page"]

EVENTS = "/events"
_EVERY_S = 1.0
_SELDOM_S = 10.0
_BYTES_A_SECOND = 256 << 10
"""What a page is fed at most: thousands of partitions are told of less often."""
_STREAMS = 64
"""Pages that are fed at the same time."""
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Page:
    """Serves the page and feeds it.

    Args:
        worker: Of which it is the interface.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lags = Lags(lambda: worker.observing.seen)
        self._looking: asyncio.Task[None] | None = None
        self._streams = 0
        self._is_ending = False
        self._known: tuple[float, dict[str, Any]] = (-_EVERY_S, {})
        self._files = {f"/page/{name}": _asset(name, body) for name, body in _read("").items()}

    def add_to(self, app: web.Application, commands: dict[str, Any]) -> None:
        """Add the routes.

        Args:
            app: What listens at a port.
            commands: What the page is to know of commands there: whether they `are_taken`, and otherwise at which
                `port`.
        """
        app.router.add_get("/", self._asset)
        app.router.add_get("/page/{name:.+}", self._asset)

        async def events(request: web.Request) -> web.StreamResponse:
            return await self._events(request, commands)

        app.router.add_get(EVENTS, events)

    def start(self) -> None:
        """Begin to keep lags."""
        self._looking = asyncio.create_task(self._lags.run())

    async def stop(self) -> None:
        """Keep none any more, and feed nobody."""
        self._is_ending = True
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def _asset(self, request: web.Request) -> web.Response:
        found = self._files.get("/page/index.html" if request.path == "/" else request.path)
        if found is None:
            raise web.HTTPNotFound(text=f"There is no {request.path}.")
        body, kind, tag = found
        headers = {**_HEADERS, "ETag": tag}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    async def _events(self, request: web.Request, commands: dict[str, Any]) -> web.StreamResponse:
        """Feed a page until it goes, or this worker is to end."""
        if self._streams >= _STREAMS:
            raise Problem(429, "busy", f"{_STREAMS} pages are being fed.", retry_after_s=10)
        # Proxies are not to collect what is to be seen at once.
        response = web.StreamResponse(headers={**_HEADERS, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        self._streams += 1
        try:
            await response.prepare(request)
            await response.write(_event("history", self._lags.document()))
            while not (self._is_ending or self._worker.is_draining):
                event = _event("standing", {**self._standing(), "commands": commands})
                await response.write(event)
                await asyncio.sleep(min(_SELDOM_S, max(_EVERY_S, len(event) / _BYTES_A_SECOND)))
        except ConnectionError:
            pass  # it has gone
        finally:
            self._streams -= 1
        return response

    def _standing(self) -> dict[str, Any]:
        """Give how the worker stands; asked once a second, however many look."""
        now_s = time.monotonic()
        if now_s - self._known[0] >= _EVERY_S / 2:
            self._known = (now_s, standing(self._worker))
        return self._known[1]


def _event(name: str, what: Any) -> bytes:
    """Write one event. JSON has no line break of its own, so that no text in it can end an event."""
    return b"event: %s\ndata: %s\n\n" % (
        name.encode(),
        orjson.dumps(what, default=str, option=orjson.OPT_NON_STR_KEYS),
    )


def _asset(name: str, body: bytes) -> tuple[bytes, str, str]:
    return body, _TYPES[name[name.rindex(".") :]], f'"{hashlib.sha256(body).hexdigest()[:16]}"'


def _read(below: str) -> dict[str, bytes]:
    """Read the page's files, which are part of the package."""
    found: dict[str, bytes] = {}
    for entry in files("streams.serve").joinpath("page", below).iterdir():
        name = f"{below}{entry.name}"
        if entry.is_dir():
            found |= _read(f"{name}/")
        elif entry.name[entry.name.rindex(".") :] in _TYPES:
            found[name] = entry.read_bytes()
    return found
