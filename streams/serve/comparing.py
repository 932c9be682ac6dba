"""Comparing two generations of a fleet, wherever their partitions are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING

import aiohttp
import msgspec
import orjson
from aiohttp import web

from streams.control.compare import Report
from streams.control.record import Generation, Record
from streams.control.site import Site
from streams.control.verdict import aligning
from streams.control.verify import verify
from streams.data.build import read_record, write_record
from streams.errors import NotReady, StorageError, StoreLocked
from streams.log import get_logger
from streams.serve.fleet_side import FleetSide
from streams.serve.paths import report_path
from streams.serve.problems import Problem

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["Comparing"]

log = get_logger(__name__)

_LONGEST_S = 3600.0
_ASK_S = 5.0
_LOOK_S = 1.0


class Comparing:
    """Compares, and knows what was found.

    Args:
        worker: Of which it is the interface.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post("/internal/v1/projections/{name}/compare/{generation}", self.asked_to)
        app.router.add_get("/v1/projections/{name}/report", self.report)

    def compare(self, site: Site, record: Record, green: Generation, check_cancelled: Callable[[], None]) -> Report:
        """Compare a generation with the active one; on a thread.

        Where the new code is to say which differences it expects, a worker that has it compares.

        Raises:
            StoreLocked: A worker does not answer.
            NotReady, ProjectionError, StorageError: See `verify`.
        """
        running = record.running
        if running is not None and running.policy == "validate" and not site.can_fold(green):
            return self._delegated(site, green, check_cancelled)
        live = record.live
        validate = site.projection if site.validates and site.can_fold(green) else None
        before, after = (self._side(site, one) for one in (live, green))
        align = aligning(site, live, green, check_cancelled)
        return verify(before, after, validate=validate, align=align, check_cancelled=check_cancelled)

    async def asked_to(self, request: web.Request) -> web.Response:
        """Compare a generation on behalf of a leader that does not have its code."""
        tending = self._worker.tendings.get(request.match_info["name"])
        record = None if tending is None else tending.record
        green = None if record is None else record.find(request.match_info["generation"])
        if tending is None or record is None or green is None or not tending.site.can_fold(green):
            raise Problem(421, "misdirected", f"{request.match_info['generation']} is not of the code here.")
        try:
            report = await asyncio.to_thread(self.compare, tending.site, record, green, lambda: None)
        except (NotReady, StorageError) as error:
            raise Problem(409, "refused", str(error), error=type(error).__name__) from error
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")

    async def report(self, request: web.Request) -> web.Response:
        """Give what the last comparison of a generation found: of the one that is named, or is being rebuilt."""
        tending = self._worker.tendings.get(request.match_info["name"])
        record = None if tending is None else tending.record
        if tending is None or record is None or record.rebuild is None:
            raise Problem(404, "unknown-report", "Nothing was compared.")
        generation = record.find(request.query.get("generation") or record.rebuild.generation)
        if generation is None:
            raise Problem(404, "unknown-generation", "There is no such generation any more.")
        found = read_record(report_path(tending.site, generation.id), Report)
        if found is not None:
            return web.Response(body=msgspec.json.encode(found), content_type="application/json")
        if request.query.get("local") != "true":
            members = await asyncio.to_thread(self._worker.addresses)
            for address in members - {self._worker.address}:
                query = {"local": "true", "generation": generation.id}
                try:
                    async with self._worker.peers.ask(
                        "GET", address, request.rel_url.raw_path, params=query, within_s=_ASK_S
                    ) as answer:
                        if answer.status == 200:
                            return web.Response(body=await answer.read(), content_type="application/json")
                except (aiohttp.ClientError, TimeoutError) as error:
                    log.debug("report.not_asked", address=address, why=str(error))
        raise Problem(404, "unknown-report", f"{generation.id} was not compared, or whoever did is gone.")

    def _side(self, site: Site, generation: Generation) -> FleetSide:
        return FleetSide(
            of=generation,
            projection=site.name,
            owners=partial(self._owners, site, generation),
            loop=self._worker.loop,
            peers=self._worker.peers,
            kept=partial(self._keep, site, generation),
        )

    def _owners(self, site: Site, generation: Generation) -> Mapping[int, str]:
        owning = self._worker.owners.ask(site, generation)
        missing = [number for number in range(generation.partitions) if number not in owning.addresses]
        if missing:
            raise StoreLocked(
                f"Nobody serves partitions {', '.join(map(str, missing))} of {generation.id} just now. Nothing was "
                "compared.",
                projection=site.name,
            )
        return owning.addresses

    def _keep(self, site: Site, generation: Generation, report: Report) -> None:
        """Keep a report on this worker, which may have no copy of the generation."""
        site.state_dir.mkdir(parents=True, exist_ok=True)
        write_record(report_path(site, generation.id), report)

    def _delegated(self, site: Site, green: Generation, check_cancelled: Callable[[], None]) -> Report:
        """Have a worker compare that has the new code: it serves partitions of it."""
        address = next(iter(self._owners(site, green).values()))
        worker = self._worker

        async def ask() -> Report:
            path = f"/internal/v1/projections/{site.name}/compare/{green.id}"
            async with worker.peers.ask("POST", address, path, within_s=_LONGEST_S) as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise StoreLocked(f"{address} could not compare: {orjson.loads(body).get('detail', body[:200])}")
                return msgspec.json.decode(body, type=Report, strict=False)

        try:
            answer = asyncio.run_coroutine_threadsafe(ask(), worker.loop)
            try:
                while not wait([answer], _LOOK_S).done:
                    check_cancelled()
            except BaseException:
                answer.cancel()
                raise
            return answer.result()
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            raise StoreLocked(
                f"{address} was to compare, and did not: {str(error) or type(error).__name__}."
            ) from error
