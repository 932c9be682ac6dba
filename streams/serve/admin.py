"""Commands over HTTP: given to the leader by Kafka, and answered once it has handled them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec
import orjson
from aiohttp import web

from streams.config import WorkerSettings
from streams.control.begin import default_policy
from streams.control.commands import VERBS, Command, Options, Verb, checked
from streams.control.planning import world_of
from streams.control.record import Done
from streams.control.strategies import FromBeginning
from streams.errors import ConfigError, CqrsError
from streams.log import get_logger
from streams.serve.auth import Door, Tokens
from streams.serve.problems import Problem
from streams.serve.tending import Tending

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["COMMAND", "ME", "OUTCOME", "PLAN", "Admin"]

log = get_logger(__name__)

COMMAND = "/v1/projections/{name}/{verb}"
OUTCOME = "/v1/projections/{name}/commands/{id}"
PLAN = "/v1/projections/{name}/plan"
ME = "/v1/me"
_WAIT_S = 20.0
_LOOK_S = 0.02
_STATUS = {"GenerationNotFound": 404, "RebuildRunning": 409, "NotReady": 409}


class Admin:
    """Takes commands.

    Args:
        worker: Of which it is the interface.
        settings: Who may give them, and from where.
        reader: Gives the name of one who may only read, or raises.
    """

    def __init__(self, worker: Worker, settings: WorkerSettings, reader: Callable[[web.Request], str]) -> None:
        self._worker = worker
        self._reader = reader
        tokens = self.tokens = Tokens(settings.admin_tokens)
        """Of those who may give them."""
        host = settings.http_host if settings.admin_port is None else settings.admin_host or settings.http_host
        self._is_guarded = tokens.are_needed or bool(settings.admin_names)
        self._is_private = host in ("127.0.0.1", "::1", "localhost")
        self._door = Door(tokens, names=settings.admin_names, is_open=not self._is_guarded)

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post(COMMAND, self.command)
        app.router.add_get(OUTCOME, self.outcome)
        app.router.add_get(PLAN, self.plan)
        app.router.add_get(ME, self.me)

    async def command(self, request: web.Request) -> web.Response:
        """Give a command to the leader, and wait for what it makes of it."""
        by = self._door.check(request)
        _check_origin(request)
        name, verb = request.match_info["name"], request.match_info["verb"]
        if not self._is_guarded and not self._is_private:
            raise Problem(
                403,
                "forbidden",
                "This worker can be reached from elsewhere and knows nobody who may give commands, so it takes none: "
                "give it a file of tokens (--admin-tokens), or names in certificates (--admin-names).",
            )
        if verb not in VERBS:
            raise Problem(404, "unknown-command", f"There is no command {verb!r}: there are {', '.join(VERBS)}.")
        tending = self._tending(name)
        try:
            body = orjson.loads(await request.read() or b"{}")
            options = _complete(tending, verb, checked(body))
            code = await asyncio.to_thread(tending.site.facts) if verb == "rebuild" else {}
        except (ValueError, ConfigError) as error:
            raise Problem(400, "bad-request", str(error)) from error
        except CqrsError as error:
            raise Problem(503, "not-ready", str(error), retry_after_s=1) from error
        command = Command.new(cast(Verb, verb), name, f"{by} at {request.remote}", options, code)
        log.info(
            "audit.command",
            id=command.id,
            verb=verb,
            projection=name,
            by=by,
            remote=request.remote,
            options=msgspec.to_builtins(options),
        )
        try:
            await asyncio.to_thread(self._worker.give, command)
        except CqrsError as error:
            raise Problem(503, "not-ready", f"The command could not be given: {error}", retry_after_s=1) from error
        deadline_s = time.monotonic() + _WAIT_S
        while (done := _done(tending, command.id)) is None:
            if time.monotonic() > deadline_s:
                return _json({"id": command.id, "verb": verb, "state": "given"}, 202)
            await asyncio.sleep(_LOOK_S)
        return _outcome(tending, done)

    async def me(self, request: web.Request) -> web.Response:
        """Say who asks, and whether he may give commands."""
        found = self.tokens.bearer(request)
        if found == "" and not self._worker.read_tokens.bearer(request):
            raise Problem(403, "forbidden", "This token is not known here.")
        return _json({"name": found or self._reader(request), "commands": bool(found)})

    async def plan(self, request: web.Request) -> web.Response:
        """Say what a rebuild beside the active generation would find, and of which revision of the record that is."""
        self._door.check(request)
        tending = self._tending(request.match_info["name"])
        record = tending.record
        if record is None:
            raise Problem(503, "not-ready", "The registry has not been read yet.", retry_after_s=1)
        try:
            world = await asyncio.to_thread(world_of, tending.site, tending.site.name, FromBeginning(), beside=True)
        except CqrsError as error:
            raise Problem(503, "not-ready", str(error), retry_after_s=1) from error
        policy = default_policy(tending.site, record)
        return _json(
            {"world": msgspec.to_builtins(world, str_keys=True), "policy": policy, "revision": record.revision}
        )

    async def outcome(self, request: web.Request) -> web.Response:
        """Say what has become of a command."""
        self._door.check(request)
        tending = self._tending(request.match_info["name"])
        done = _done(tending, request.match_info["id"])
        if done is None:
            raise Problem(
                404, "unknown-command", "No such command has been handled: it may still be on its way.", retry_after_s=1
            )
        return _outcome(tending, done)

    def _tending(self, name: str) -> Tending:
        tending = self._worker.tendings.get(name)
        if tending is None:
            raise Problem(404, "unknown-projection", f"This worker has no projection {name!r}.")
        return tending


def _check_origin(request: web.Request) -> None:
    """Refuse what a page of somebody else's has a browser send.

    A proxy says in X-Forwarded-Host by which name it was asked; no page can have a browser send that unasked.

    Raises:
        Problem: It does.
    """
    origin = request.headers.get("Origin")
    ours = (request.host, request.headers.get("X-Forwarded-Host"))
    if origin is not None and origin.rpartition("://")[2] not in ours:
        raise Problem(403, "forbidden", f"Commands are not taken from pages of {origin}.")


def _complete(tending: Tending, verb: str, options: Options) -> Options:
    """Say what a comparison must have found where that is not said, by the code that is to be folded."""
    record = tending.record
    if verb != "rebuild" or options.policy is not None or record is None:
        return options
    return msgspec.structs.replace(options, policy=default_policy(tending.site, record))


def _done(tending: Tending, id_: str) -> Done | None:
    record = tending.record
    return None if record is None else next((one for one in record.done if one.id == id_), None)


def _outcome(tending: Tending, done: Done) -> web.Response:
    record = tending.record
    assert record is not None, "the command is remembered in it"
    log.info("audit.outcome", id=done.id, verb=done.verb, projection=record.projection, refused=done.refused or "no")
    if done.refused:
        raise Problem(_STATUS.get(done.kind, 409), "refused", done.refused, error=done.kind, id=done.id)
    rebuild = record.rebuild
    return _json(
        {
            "id": done.id,
            "verb": done.verb,
            "state": "done",
            "active": record.active,
            "wanted": record.wanted,
            "rebuild": None if rebuild is None else msgspec.to_builtins(rebuild),
        }
    )


def _json(what: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(what), status=status, content_type="application/json")
