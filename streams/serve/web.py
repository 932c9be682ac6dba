"""The worker's HTTP interface."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from streams.errors import ConfigError
from streams.log import get_logger
from streams.serve.admin import COMMAND, ME, OUTCOME, PLAN, Admin
from streams.serve.auth import Door
from streams.serve.cut_service import CutService
from streams.serve.page import EVENTS, Page
from streams.serve.problems import Problem, answer
from streams.serve.reads import Reads
from streams.serve.standing import readiness, standing

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["Web"]

log = get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_BODY_BYTES = 64 << 10
_AT_ONCE = 512
"""Requests that are answered at the same time; further ones are told to come again."""
_LIMIT_S = 60.0
_INTERNAL = "/internal/"
_PAGE = "/page/"
_OPEN = ("/healthz", "/readyz", "/metrics")
"""What probes and Prometheus ask, who have no token."""


class Web:
    """Answers for one worker.

    Models are read, and other workers served, at one port; commands are taken there too, or at a port of their own.

    Args:
        worker: Which.

    Raises:
        ConfigError: Tokens cannot be read.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._requests = 0
        settings = worker.settings
        admin = Admin(worker, settings, self._me)
        self._door = Door(
            worker.read_tokens,
            names=None,
            is_open=not (worker.read_tokens.are_needed or settings.read_certificates),
            also=admin.tokens,
        )
        self._page = Page(worker)
        app = self._app()
        Reads(worker).add_to(app)
        worker.comparing.add_to(app)
        worker.serving.add_to(app)
        worker.copies.add_to(app)
        CutService(worker).add_to(app)
        self._runners = [web.AppRunner(app, access_log=None)]
        if settings.admin_port is not None:
            app = self._app()
            self._runners.append(web.AppRunner(app, access_log=None))
        admin.add_to(app)
        has_tokens = admin.tokens.are_needed
        self._elsewhere: dict[str, Any] = {"are_taken": False, "port": None}
        """What a page is told where commands are taken at another port."""
        for runner in self._runners:
            takes = has_tokens and runner.app is app
            self._page.add_to(runner.app, {"are_taken": True, "port": None} if takes else self._elsewhere)

    def _app(self) -> web.Application:
        """Give what is asked for at either port."""
        app = web.Application(middlewares=[self._guarded], client_max_size=_BODY_BYTES)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/status", self._status)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def start(self) -> int:
        """Listen; give the port at which models are read.

        Raises:
            ConfigError: It cannot be had.
        """
        settings = self._worker.settings
        port = await self._listen(self._runners[0], settings.http_host, settings.http_port, "--http-host, --http-port")
        if settings.admin_port is not None:
            host = settings.admin_host or settings.http_host
            at = await self._listen(self._runners[1], host, settings.admin_port, "--admin-host, --admin-port")
            self._elsewhere["port"] = at
            log.info("worker.takes_commands", host=host, port=at)
        self._page.start()
        return port

    async def _listen(self, runner: web.AppRunner, host: str, port: int, flags: str) -> int:
        await runner.setup()
        tls = self._worker.tls
        try:
            await web.TCPSite(runner, host, port, ssl_context=None if tls is None else tls.server).start()
        except OSError as error:
            raise ConfigError(
                f"{host}:{port} cannot be listened at: {error.strerror}. Name another one ({flags})."
            ) from error
        found: int = runner.addresses[0][1]
        return found

    async def stop(self) -> None:
        """Answer no more."""
        await self._page.stop()
        for runner in self._runners:
            await runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Keep to the limits, ask readers who they are, and say what goes wrong as a problem."""
        if request.path in _OPEN or request.path == "/" or request.path.startswith(_PAGE):
            return await handler(request)  # what a page is made of holds no data
        if request.path == EVENTS:
            return await self._answered(request, handler)  # it lasts, and counts for itself
        if self._requests >= _AT_ONCE:
            return answer(Problem(429, "busy", f"{_AT_ONCE} requests are being answered.", retry_after_s=1))
        self._requests += 1
        began_s = time.perf_counter()
        response = await self._answered(request, handler)
        self._requests -= 1
        self._worker.metrics.query(request, response.status, time.perf_counter() - began_s)
        return response

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            resource = request.match_info.route.resource
            if resource is None or resource.canonical not in (COMMAND, OUTCOME, PLAN, ME):  # which ask for more
                self._door.check(request)
            # What workers ask of each other may take as long as a comparison does, and a page is fed while it is open.
            is_long = request.path.startswith(_INTERNAL) or request.path == EVENTS
            async with asyncio.timeout(None if is_long else _LIMIT_S):
                return await handler(request)
        except Problem as problem:
            return answer(problem)
        except TimeoutError:
            return answer(Problem(504, "timeout", f"It took longer than {_LIMIT_S:g} s.", retry_after_s=1))
        except web.HTTPException as error:
            kinds = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}
            return answer(Problem(error.status, kinds.get(error.status, "bad-request"), error.text or error.reason))
        except asyncio.CancelledError:
            raise
        except Exception:  # a fault of ours: the client is told no more than that
            log.exception("request.fault", method=request.method, path=request.path)
            return answer(Problem(500, "fault", "The worker failed; its log says why."))

    def _me(self, request: web.Request) -> str:
        """Give the name of a reader.

        Raises:
            Problem: He may not read here.
        """
        return self._door.check(request)

    async def _healthz(self, _request: web.Request) -> web.Response:
        """Whether the loops beat. That a broker is away, or a rebuild takes long, is no fault of theirs."""
        return _answer(self._worker.faults())

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Whether this worker's share of what is active is served."""
        return _answer(readiness(self._worker))

    async def _metrics(self, _request: web.Request) -> web.Response:
        """The figures, for Prometheus."""
        text = await asyncio.to_thread(self._worker.metrics.text)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _status(self, _request: web.Request) -> web.Response:
        """Everything that is known here."""
        return _json(standing(self._worker))


def _answer(faults: list[str]) -> web.Response:
    return _json({"ok": not faults, "why": faults}, status=503 if faults else 200)


def _json(what: object, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(what, default=str), status=status, content_type="application/json")
