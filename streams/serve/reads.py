"""Reading models over HTTP: one by its id, and all of them by pages."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from aiohttp import web

from streams.control.record import Generation
from streams.data.build import Build
from streams.data.query import fields_of
from streams.data.store import StoreState
from streams.errors import ProjectionError
from streams.serve.asked import Selection, cursor_of, cursor_read, cursor_to, min_position, seconds, whole_number
from streams.serve.finding import Answer, Elsewhere, MinPosition
from streams.serve.partitioners import likely
from streams.serve.problems import Problem
from streams.serve.tending import Tending

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["Reads"]

_WAIT_S = 5.0
_LONGEST_WAIT_S = 30.0
_TRIES = 5
_OWNERS_TRIES = 2
"""After so many, whoever stands by may answer."""
_PAGE = 100
_LARGEST_PAGE = 1000
_SEARCH_S = 1.0
"""How long models are looked for that a query asks for; then what was found is given, and where to go on."""


class Reads:
    """Answers reading requests, here or by those who can.

    Args:
        worker: Of which it is the interface.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/v1/projections", self.projections)
        app.router.add_get("/v1/projections/{name}/models", self.page)
        app.router.add_get("/v1/projections/{name}/models/{id:.+}", self.model)
        app.router.add_get("/v1/projections/{name}/model", self.model)

    async def projections(self, _request: web.Request) -> web.Response:
        """Name the projections, each with its active generation and what lists may be asked for."""
        named = {name: tending.record for name, tending in sorted(self._worker.tendings.items())}
        return _json(
            {
                name: {
                    "active": None if record is None else record.active,
                    "query": fields_of(self._worker.tendings[name].site.projection),
                }
                for name, record in named.items()
            }
        )

    async def model(self, request: web.Request) -> web.Response:
        """Give one model."""
        model_id = request.match_info.get("id") or request.query.get("id", "")
        if not model_id:
            raise Problem(400, "bad-request", "Name the model: /models/ID, or /model?id=ID for any text.")
        tending, generation = self._generation(request)
        least = min_position(request, generation)
        deadline_s = time.monotonic() + seconds(request, "wait", _WAIT_S, _LONGEST_WAIT_S)
        is_local = request.query.get("local") == "true"
        for tried in range(_TRIES):
            try:
                copies = None if is_local or least is not None else self._copies(request, generation, tried)
                return await self._model(
                    request, tending, generation, model_id, least, deadline_s, copies, is_local=is_local
                )
            except _Moved as moved:
                if tried == _TRIES - 1 or is_local:
                    raise moved.problem from None
            await self._worker.finding.settle()
        raise AssertionError("unreachable")

    async def _model(
        self,
        request: web.Request,
        tending: Tending,
        generation: Generation,
        model_id: str,
        least: MinPosition | None,
        deadline_s: float,
        copies: bool | None,
        *,
        is_local: bool,
    ) -> web.Response:
        """Look where it is likely first; say that there is none only once every partition was asked."""
        finding = self._worker.finding
        places = await finding.locate(tending, generation)
        if least is None:
            numbers = _ordered(model_id, places)
        else:  # to a topic of its own, refold itself has written
            numbers = [least.partition] if generation.source is None else likely(model_id, len(places))[:1]
        unknown: dict[int, str] = {}
        asked: set[str] = set()
        looked_at: list[int] = []
        for number in numbers:
            place = places[number]
            if isinstance(place, str):
                unknown[number] = place
            elif isinstance(place, Elsewhere):
                if is_local:
                    unknown[number] = f"it is served at {place.address}"
                elif place.address not in asked:
                    asked.add(place.address)
                    found = await self._forwarded(request, place.address, generation)
                    if found.status == 200:
                        return found
                    if found.status in (400, 401, 403, 504):
                        return found
                    # It says of which partitions it knows that they do not have it: one may have moved meanwhile.
                    mine = [one for one in numbers if places[one] == place]
                    looked = _looked_at(found)
                    unknown |= {one: f"{place.address} answered {found.status}" for one in mine if one not in looked}
            elif why := finding.why_not(tending, generation, number):
                unknown[number] = why
            else:
                at_least = 0 if least is None else least.position
                if least is not None and generation.source is not None:
                    at_least = await finding.own_position(tending, generation, number, least, deadline_s)
                raw, answer = await finding.find(tending, generation, number, place, model_id, at_least, deadline_s)
                if not finding.is_still_ours(answer):
                    raise _Moved(_not_ready(generation, {number: "it is being looked at who serves it"}))
                looked_at.append(number)
                if raw.raw is not None:
                    return _json({"id": model_id, "model": orjson.Fragment(raw.raw)} | _document(answer))
        if is_local:
            # Whoever forwarded this asks the others itself.
            foreign = {one: why for one, why in unknown.items() if not isinstance(places[one], Elsewhere)}
            if len(foreign) < len(unknown) and len(unknown) == len(numbers):
                raise Problem(
                    421,
                    "misdirected",
                    f"None of the partitions {', '.join(map(str, numbers))} of {generation.id} is served here.",
                    generation=generation.id,
                )
            unknown = foreign
        if unknown and copies is not None:
            stale = await self._worker.copies.find(tending, generation, sorted(unknown), model_id, any_age=copies)
            if stale is not None and stale["model"] is not None:
                return _json(stale)
            unknown = {} if stale is not None else unknown
        if unknown:
            raise _Moved(_not_ready(generation, unknown))
        raise Problem(
            404,
            "unknown-model",
            f"{tending.site.name!r} has no model {model_id!r}.",
            generation=generation.id,
            model_id=model_id,
            partitions=sorted(looked_at),
        )

    async def page(self, request: web.Request) -> web.Response:
        """Give models by partition and then by id, of one generation throughout."""
        cursor = cursor_of(request)
        tending, generation = self._generation(request, cursor.get("generation"))
        limit = whole_number(request, "limit", _PAGE, _LARGEST_PAGE)
        first, after = int(cursor.get("partition", 0)), cursor.get("after")
        only = request.query.get("partition")
        if only is not None and not (only.isdecimal() and int(only) < generation.partitions):
            raise Problem(400, "bad-request", f"partition is one below {generation.partitions}; it was {only!r}.")
        numbers = range(first, generation.partitions) if only is None else [int(only)]
        selection = Selection.of(request, tending.site, generation)
        models: list[Any] = []
        positions: dict[str, int] = {}
        stale: set[int] = set()
        following: str | None = None
        until_s = time.monotonic() + _SEARCH_S
        for number in numbers:
            behind = after if number == first else None
            while True:
                wanted = limit - len(models)
                found = await self._part(request, tending, generation, number, behind, wanted, selection)
                stale |= {number} if found.get("stale") else set()
                models += found["models"]
                positions |= found["positions"]
                behind = found["next"]
                is_over = len(models) >= limit or time.monotonic() > until_s
                if behind is None or is_over:
                    break
            if behind is not None:
                following = cursor_to(generation.id, number, behind)
                break
            if is_over and number != numbers[-1]:
                following = cursor_to(generation.id, number + 1, None)
                break
        return _json(
            {"generation": generation.id, "models": models, "positions": positions, "next": following}
            | ({"stale": sorted(stale)} if stale else {})
        )

    def _copies(self, request: web.Request, generation: Generation, tried: int) -> bool | None:
        """Say whether copies of any age may be answered where nobody serves; False: only those that somebody stands by
        with; None: none.
        """
        if self._worker.copies.may_serve(request, generation):
            return True
        return False if tried >= _OWNERS_TRIES and self._worker.settings.standbys else None

    async def _part(
        self,
        request: web.Request,
        tending: Tending,
        generation: Generation,
        number: int,
        after: str | None,
        limit: int,
        selection: Selection,
    ) -> dict[str, Any]:
        """Give models of one partition, from whoever serves it; `next` is the id behind which there are more."""
        finding, is_local = self._worker.finding, request.query.get("local") == "true"
        for tried in range(_TRIES):
            place = (await finding.locate(tending, generation))[number]
            why = place if isinstance(place, str) else ""
            if isinstance(place, Build) and not (why := finding.why_not(tending, generation, number)):
                behind = None if after is None else after.encode()
                try:
                    page, answer = await finding.page(tending, generation, number, place, behind, limit, selection.keep)
                except ProjectionError as error:
                    raise Problem(500, "query-failed", str(error)) from error
                if finding.is_still_ours(answer):
                    return {
                        "models": [{"id": key.decode(), "model": orjson.Fragment(raw)} for key, raw in page.models],
                        "positions": {str(number): page.state.position},
                        "next": None if page.last is None else page.last.decode(),
                    }
            if isinstance(place, Elsewhere):
                if is_local:
                    raise Problem(421, "misdirected", f"Partition {number} is served at {place.address}.")
                found = await self._asked(request, place.address, generation, number, after, limit, selection)
                if found is not None:
                    return found
                why = f"{place.address} does not answer for it"
            # What is stale may be of code that is nowhere any more, and then nobody can select from it.
            copies = None if is_local or selection.given else self._copies(request, generation, tried)
            if why and copies is not None:
                stale = await self._worker.copies.page(tending, generation, number, after, limit, any_age=copies)
                if stale is not None:
                    return stale | {"stale": True}
            if tried == _TRIES - 1:
                raise _not_ready(generation, {number: why or "it is being handed over"})
            await finding.settle()
        raise AssertionError("unreachable")

    async def _asked(
        self,
        request: web.Request,
        address: str,
        generation: Generation,
        number: int,
        after: str | None,
        limit: int,
        selection: Selection,
    ) -> dict[str, Any] | None:
        cursor = cursor_to(generation.id, number, after)
        query = [("local", "true"), ("partition", str(number)), ("limit", str(limit)), ("cursor", cursor)]
        query += selection.parameters()
        path = f"/v1/projections/{request.match_info['name']}/models"
        try:
            async with self._worker.peers.ask("GET", address, path, params=query) as answer:
                found: dict[str, Any] = orjson.loads(await answer.read())
                if answer.status in (400, 500) and selection.given:
                    raise Problem(answer.status, found["type"].rpartition(":")[2], found["detail"])
                if answer.status != 200:
                    return None
                following = found["next"]
                return found | {"next": None if following is None else cursor_read(following)["after"]}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _forwarded(self, request: web.Request, address: str, generation: Generation) -> web.Response:
        """Have the worker that serves it answer."""
        query = {**request.query, "local": "true", "generation": generation.id}
        try:
            async with self._worker.peers.ask("GET", address, request.rel_url.raw_path, params=query) as answer:
                return web.Response(
                    body=await answer.read(), status=answer.status, content_type=answer.content_type, charset=None
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            return web.Response(status=502, text=f"{address}: {error}")

    def _generation(self, request: web.Request, pinned: str | None = None) -> tuple[Tending, Generation]:
        """Give the projection, and the generation that is to answer: the active one, or the one that was named."""
        name = request.match_info["name"]
        tending = self._worker.tendings.get(name)
        if tending is None:
            known = ", ".join(sorted(self._worker.tendings))
            raise Problem(404, "unknown-projection", f"This worker has no projection {name!r}; it has {known}.")
        record = tending.record
        if record is None:
            raise Problem(503, "not-ready", tending.error or "The registry has not been read yet.", retry_after_s=1)
        named = pinned or request.query.get("generation")
        found = record.find(named or record.active)
        if found is not None:
            return tending, found
        if any(one.id == named for one in record.gone):
            raise Problem(410, "generation-gone", f"Generation {named} is no more; {record.active} is active.")
        raise Problem(404, "unknown-generation", f"{name!r} has no generation {named!r}.")


class _Moved(Exception):
    """A partition is not where it was a moment ago; after a while, `problem` is the answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def _not_ready(generation: Generation, why: Mapping[int, str]) -> Problem:
    parts = "; ".join(f"partition {number}: {one}" for number, one in sorted(why.items()))
    return Problem(
        503,
        "not-ready",
        f"Not all of {generation.id} is served just now: {parts}.",
        retry_after_s=1,
        generation=generation.id,
        partitions=sorted(why),
    )


def _document(answer: Answer) -> dict[str, Any]:
    state: StoreState = answer.state
    return {
        "generation": answer.generation.id,
        "partition": answer.partition,
        "position": state.position,
        "staleness_seconds": answer.staleness_s,
        "confirmed": answer.is_confirmed,
    }


def _ordered(model_id: str, places: Mapping[int, Elsewhere | Build | str]) -> list[int]:
    """Give the partitions in the order in which to look: where producers are likely to put it, and then the others.

    Of both, those that are here come first: that costs next to nothing.
    """
    first = sorted(likely(model_id, len(places)), key=lambda number: isinstance(places[number], Elsewhere))
    rest = [number for number in places if number not in first]
    here = [number for number in rest if not isinstance(places[number], Elsewhere)]
    return [*first, *here, *(number for number in rest if number not in here)]


def _looked_at(found: web.Response) -> list[int]:
    """Give the partitions of which another worker has said that they do not have a model."""
    if found.status != 404 or not isinstance(found.body, bytes):
        return []
    try:
        told = orjson.loads(found.body)
    except ValueError:
        return []
    return list(told.get("partitions", ())) if told.get("type") == "urn:refold:unknown-model" else []


def _json(what: object) -> web.Response:
    return web.Response(body=orjson.dumps(what), content_type="application/json")
