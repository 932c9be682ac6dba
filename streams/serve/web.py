"""The worker's HTTP interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from streams.errors import ConfigError
from streams.serve.standing import readiness, standing

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["Web"]


class Web:
    """Answers for one worker.

    Args:
        worker: Which.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, host: str, port: int) -> int:
        """Listen; give the port.

        Raises:
            ConfigError: It cannot be had.
        """
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be listened at: {error.strerror}. Name another one (--http-host, --http-port)."
            ) from error
        found: int = self._runner.addresses[0][1]
        return found

    async def stop(self) -> None:
        """Answer no more."""
        await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Whether the loops beat. That a broker is away, or a rebuild takes long, is no fault of theirs."""
        return _answer(self._worker.faults())

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Whether this worker's share of what is active is served."""
        return _answer(readiness(self._worker))

    async def _status(self, _request: web.Request) -> web.Response:
        """Everything that is known here."""
        return _json(standing(self._worker))


def _answer(faults: list[str]) -> web.Response:
    return _json({"ok": not faults, "why": faults}, status=503 if faults else 200)


def _json(what: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(what, default=str), status=status, content_type="application/json")
