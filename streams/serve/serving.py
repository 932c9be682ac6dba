"""Before readers are switched: whoever is given a partition of the new generation says that he serves it.

What a group was told may be of a worker that is gone by then: the one that has the partition now has perhaps just begun
to fold it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from aiohttp import web

from streams.control.record import Generation
from streams.control.site import Site
from streams.errors import CqrsError
from streams.serve.problems import Problem
from streams.serve.tending import Tended

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["Serving"]

_ANSWER_S = 5.0


class Serving:
    """Asks, and is asked.

    Args:
        worker: Of which it is the interface.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def add_to(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get("/internal/v1/projections/{name}/serving/{generation}", self.asked)

    def why_not(self, site: Site, generation: Generation) -> str:
        """Say which partitions nobody serves yet; "" where all are served. On a thread.

        Where none of those who fold it serves models to anybody, they are all served as far as that goes.
        """
        try:
            members = site.events.cluster.members(generation.group)
        except CqrsError as error:
            return str(error)
        folded = {number for one in members for number in one.partitions}
        addresses = sorted({one.address for one in members if one.address})
        if not addresses:
            return ""
        served = {number for one in members if not one.address for number in one.partitions}
        asking = asyncio.run_coroutine_threadsafe(self._all(addresses, site.name, generation.id), self._worker.loop)
        try:
            answers = asking.result(2 * _ANSWER_S)
        except TimeoutError:
            return "this worker to ask the others: it is ending, or overloaded"
        why = []
        for address, (found, trouble) in zip(addresses, answers, strict=True):
            served |= found
            why += [f"{address}: {trouble}"] if trouble else []
        missing = sorted(set(range(generation.partitions)) - (served & folded))
        if not missing:
            return ""
        return f"partitions {', '.join(map(str, missing))} to be served" + (f" ({'; '.join(why)})" if why else "")

    async def asked(self, request: web.Request) -> web.Response:
        """Name the partitions of a generation that are served here, which are open by then; and why others are not.

        Only to who asks for that: workers of before `why` expect a list.
        """
        tending = self._worker.tendings.get(request.match_info["name"])
        tended = None if tending is None else tending.tended.get(request.match_info["generation"])
        if tended is None or tended.job is None:
            raise Problem(421, "misdirected", f"{request.match_info['generation']} is not folded here.")
        served, why_not = await asyncio.to_thread(self._served, tended)
        answer: Any = {"served": served, "why_not": why_not} if "why" in request.query else served
        return web.Response(body=orjson.dumps(answer), content_type="application/json")

    def _served(self, tended: Tended) -> tuple[list[int], list[str]]:
        assert tended.job is not None
        served, why_not = [], []
        for number, held in sorted(tended.status.partitions.items()):
            why = self._worker.served.why_not(tended.generation, number, held)
            if why:
                why_not.append(f"partition {number} is {why}")
                continue
            self._worker.shelf.warm(tended.job.build, number, held.committed)
            served.append(number)
        if why_not and self._worker.observing.why_not:
            why_not.append(self._worker.observing.why_not)
        return served, why_not

    async def _all(self, addresses: list[str], name: str, generation: str) -> list[tuple[set[int], str]]:
        return await asyncio.gather(*(self._ask(address, name, generation) for address in addresses))

    async def _ask(self, address: str, name: str, generation: str) -> tuple[set[int], str]:
        path = f"/internal/v1/projections/{name}/serving/{generation}?why"
        try:
            async with self._worker.peers.ask("GET", address, path, within_s=_ANSWER_S) as answer:
                body = await answer.read()
                if answer.status != 200:
                    return set(), f"it answered {answer.status}"
                told = orjson.loads(body)
                return (set(told["served"]), "; ".join(told["why_not"])) if isinstance(told, dict) else (set(told), "")
        except (
            aiohttp.ClientError,
            TimeoutError,
            ValueError,
            KeyError,
            RuntimeError,
        ) as error:  # the last one as it ends
            return set(), str(error) or type(error).__name__
