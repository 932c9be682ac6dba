"""Copies of partitions that nobody folds just now: what they hold is old, and is served as that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import orjson
from aiohttp import web

from streams.control.record import Generation
from streams.data.build import Build
from streams.data.partition import Phase
from streams.errors import CqrsError
from streams.log import get_logger
from streams.serve.owners import LEFT_ALONE_S
from streams.serve.problems import Problem
from streams.serve.tending import Tending

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["Copies"]

log = get_logger(__name__)

_KNOWN_S = 3.0
_ASK_S = 5.0


class Copies:
    """Finds the newest copy of a partition among all workers of the fleet, and serves those of this one.

    Args:
        worker: Of which it is the interface.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._best: dict[str, tuple[float, _Best]] = {}
        self._used: dict[Path, tuple[Tending, str]] = {}
        self._fleet: set[str] = set()
        """Where workers listened, when that was last known."""

    def add_to(self, app: web.Application) -> None:
        """Add the routes, which other workers ask."""
        place = "/internal/v1/projections/{name}/copies/{generation}"
        app.router.add_get(place, self.positions)
        app.router.add_get(place + "/{partition}/model", self.model)
        app.router.add_get(place + "/{partition}/models", self.models)

    def may_serve(self, request: web.Request, generation: Generation) -> bool:
        """Say whether what is old may be answered: where nobody folds it for a while by now, or no broker says who
        does, or the client says so.
        """
        if request.query.get("stale") == "ok":
            return True
        owners = self._worker.owners
        for_s = max(owners.alone_s(generation.id), owners.unheard_s(generation.id))
        return bool(generation.halted) or for_s >= LEFT_ALONE_S

    def builds(self) -> list[Path]:
        """Name the builds that copies are read from, of generations that there still are."""
        kept = {}
        for path, (tending, id_) in self._used.items():
            record = tending.record
            found = None if record is None else record.find(id_)
            if found is not None and found.phase != "retiring":
                kept[path] = (tending, id_)
        self._used = kept
        return list(kept)

    # As others ask

    async def positions(self, request: web.Request) -> web.Response:
        """Say how far this worker's copies are."""
        tending, generation = self._named(request)
        positions = {str(number): at for number, at in (await self._local(tending, generation)).items()}
        return _json({"positions": positions, "standing_by": sorted(_standing_by(tending, generation))})

    async def model(self, request: web.Request) -> web.Response:
        """Give a model of a copy here."""
        tending, generation = self._named(request)
        number, build = int(request.match_info["partition"]), self._build(tending, generation)
        model_id = request.query.get("id", "")
        found = await asyncio.to_thread(self._worker.shelf.find, build, number, model_id)
        raw = None if found.raw is None else orjson.Fragment(found.raw)
        state = found.state
        return _json(
            {
                "id": model_id,
                "model": raw,
                "generation": generation.id,
                "partition": number,
                "position": state.position,
                "staleness_seconds": self._worker.finding.staleness(generation, number, state),
                "confirmed": False,
                "stale": True,
            }
        )

    async def models(self, request: web.Request) -> web.Response:
        """Give models of a copy here."""
        tending, generation = self._named(request)
        number, build = int(request.match_info["partition"]), self._build(tending, generation)
        after, limit = request.query.get("after"), int(request.query.get("limit", "100"))
        behind = None if after is None else after.encode()
        page = await asyncio.to_thread(self._worker.shelf.page, build, number, behind, limit)
        return _json(
            {
                "models": [{"id": key.decode(), "model": orjson.Fragment(raw)} for key, raw in page.models],
                "positions": {str(number): page.state.position},
                "next": None if page.last is None else page.last.decode(),
            }
        )

    # As clients ask

    async def find(
        self, tending: Tending, generation: Generation, partitions: list[int], model_id: str, *, any_age: bool
    ) -> dict[str, Any] | None:
        """Look for a model in the newest copies of some partitions; None where one of them has no copy anywhere.

        Args:
            tending: The projection.
            generation: Which.
            partitions: Which.
            model_id: The model's id.
            any_age: However old they are; otherwise, only such as a worker stands by with.

        Returns:
            A document as `model` gives it, whose model is None where none of them has it.
        """
        best = await self._newest(tending, generation, any_age=any_age)
        if any(number not in best for number in partitions):
            return None
        found: dict[str, Any] | None = None
        for number in partitions:
            path = f"{number}/model?id={quote(model_id, safe='')}"
            found = await self._asked(best[number][1], tending, generation, path)
            if found is None or found["model"] is not None:
                return found
        return found

    async def page(
        self, tending: Tending, generation: Generation, number: int, after: str | None, limit: int, *, any_age: bool
    ) -> dict[str, Any] | None:
        """Give models of the newest copy of a partition; None where there is none anywhere. See `find`."""
        best = await self._newest(tending, generation, any_age=any_age)
        if number not in best:
            return None
        behind = "" if after is None else f"&after={quote(after, safe='')}"
        return await self._asked(best[number][1], tending, generation, f"{number}/models?limit={limit}{behind}")

    async def _newest(
        self, tending: Tending, generation: Generation, *, any_age: bool
    ) -> Mapping[int, tuple[int, str]]:
        """Give by partition the position of the newest copy, and where it is."""
        known = self._best.get(generation.id)
        if known is not None and time.monotonic() - known[0] < _KNOWN_S:
            return known[1].of(any_age=any_age)
        owners = self._worker.owners
        addresses = {self._worker.address, *self._fleet, *owners.known(generation.id).addresses.values()}
        if not owners.are_silent:
            try:
                addresses = self._fleet = await asyncio.to_thread(self._worker.addresses)
            except CqrsError as error:
                log.debug("copies.peers_unknown", why=str(error))
        told = await asyncio.gather(*(self._asked(one, tending, generation, "") for one in sorted(addresses)))
        best = _Best({}, {})
        for address, answer in zip(sorted(addresses), told, strict=True):
            said = answer or {"positions": {}}
            for number, position in said["positions"].items():
                best.add(int(number), position, address, stands_by=int(number) in said.get("standing_by", ()))
        self._best[generation.id] = (time.monotonic(), best)
        return best.of(any_age=any_age)

    async def _asked(self, address: str, tending: Tending, generation: Generation, path: str) -> dict[str, Any] | None:
        """Ask a worker, be it this one; None where it does not answer."""
        of = f"/internal/v1/projections/{tending.site.name}/copies/{generation.id}"
        try:
            async with self._worker.peers.ask(
                "GET", address, f"{of}/{path}" if path else of, within_s=_ASK_S
            ) as answer:
                return orjson.loads(await answer.read()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.debug("copies.not_asked", address=address, why=str(error))
            return None

    # What is here

    async def _local(self, tending: Tending, generation: Generation) -> dict[int, int]:
        build = self._build(tending, generation)
        found = {}
        for number in build.partitions():
            found[number] = (await asyncio.to_thread(self._worker.shelf.find, build, number, "")).state.position
        return found

    def _build(self, tending: Tending, generation: Generation) -> Build:
        """Give this worker's copy of a generation.

        Raises:
            Problem: It has none.
        """
        try:
            build = tending.site.place(generation).store.current()
        except CqrsError as error:
            raise Problem(404, "unknown-generation", f"The copy here cannot be read: {error}") from error
        if build is None or (build.manifest.directory, build.manifest.build) != (generation.state, generation.epoch):
            raise Problem(404, "unknown-generation", f"There is no copy of {generation.id} here.")
        self._used[build.path] = (tending, generation.id)
        return build

    def _named(self, request: web.Request) -> tuple[Tending, Generation]:
        tending = self._worker.tendings.get(request.match_info["name"])
        record = None if tending is None else tending.record
        found = None if record is None else record.find(request.match_info["generation"])
        if tending is None or found is None:
            raise Problem(404, "unknown-generation", "It is not known here.")
        return tending, found


@dataclass(frozen=True, slots=True)
class _Best:
    """By partition, the position of the newest copy, and where it is."""

    all: dict[int, tuple[int, str]]
    standing_by: dict[int, tuple[int, str]]
    """Of those that somebody stands by with."""

    def add(self, number: int, position: int, address: str, *, stands_by: bool) -> None:
        for best in (self.all, self.standing_by) if stands_by else (self.all,):
            best[number] = max(best.get(number, (-1, "")), (position, address))

    def of(self, *, any_age: bool) -> dict[int, tuple[int, str]]:
        return self.all if any_age else self.standing_by


def _standing_by(tending: Tending, generation: Generation) -> set[int]:
    """Name the partitions of which this worker keeps a copy that is near the topic's end."""
    tended = tending.tended.get(generation.id)
    partitions = {} if tended is None else tended.standing_by.partitions
    return {number for number, one in partitions.items() if one.phase is Phase.READY}


def _json(what: object) -> web.Response:
    return web.Response(body=orjson.dumps(what), content_type="application/json")
