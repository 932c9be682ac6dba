"""Finding models in a fleet: here, or at the worker that serves them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from streams.control.place import filling_group
from streams.control.record import Generation
from streams.data.build import Build
from streams.data.partition import Phase
from streams.data.query import Keep
from streams.data.store import StoreState
from streams.errors import BrokerError, StorageError
from streams.serve.observing import Observing
from streams.serve.owners import Owners, Owning
from streams.serve.problems import Problem
from streams.serve.served import Served
from streams.serve.shelf import Found, Page, Shelf
from streams.serve.tending import Tending

__all__ = ["Answer", "Elsewhere", "Finding", "MinPosition"]

T = TypeVar("T")

_THREADS = 4
_LOOK_S = 0.01
_ASK_S = 3.0
_SETTLE_S = 0.2
_AWAY = (Phase.OPENING, Phase.RESTORING)


@dataclass(frozen=True, slots=True)
class MinPosition:
    """What a reader has written, and is to see: a partition, and the position behind it."""

    partition: int
    position: int


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A partition that another worker serves."""

    address: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Of what an answer is."""

    generation: Generation
    partition: int
    state: StoreState
    staleness_s: float | None
    """For how long it may be out of date, at most, as far as that is known."""
    is_confirmed: bool
    """Whether the group said lately that this worker is the one to ask; False while no broker answers."""


class Finding:
    """Reads models on behalf of one worker's HTTP interface.

    Args:
        address: This worker's, as its agents tell the groups.
        shelf: The models here.
        owners: Who serves which partition.
        observing: Where topics end.
        served: Which partitions here may be served.
    """

    def __init__(self, address: str, shelf: Shelf, owners: Owners, observing: Observing, served: Served) -> None:
        self._address = address
        self._shelf = shelf
        self._owners = owners
        self._observing = observing
        self._served = served
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="refold-read")

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def locate(self, tending: Tending, generation: Generation) -> dict[int, Elsewhere | Build | str]:
        """Say of each partition where it is served: by this build here, at another worker, or why nowhere."""
        owning = await self._owning(tending, generation)
        held = self._held(tending, generation)
        doubtful = any(
            (owning.addresses.get(number) == self._address) != (number in held)
            for number in range(generation.partitions)
            if number in held or owning.addresses.get(number) == self._address
        )
        if doubtful and owning.is_fresh:
            # One of the two is a moment behind; the group knows.
            owning = await self._run(lambda: self._owners.ask(tending.site, generation))
        return {number: self._place(number, owning, held) for number in range(generation.partitions)}

    def _place(self, number: int, owning: Owning, held: Mapping[int, Build]) -> Elsewhere | Build | str:
        address = owning.addresses.get(number)
        if owning.is_fresh and address != self._address:
            return "no worker that has its code has been given it" if address is None else Elsewhere(address)
        if number in held:
            # By the group it is ours; or nobody can be asked, and it was ours when we last heard.
            return held[number]
        if address is not None and address != self._address:
            return Elsewhere(address)
        return "it is being handed over" if owning.is_fresh else "no broker answers, and nothing is known of it"

    def why_not(self, tending: Tending, generation: Generation, number: int) -> str:
        """Say why a partition that is held here is not served yet; "" where it is."""
        tended = tending.tended.get(generation.id)
        one = None if tended is None else tended.status.partitions.get(number)
        return "it is being handed over" if one is None else self._served.why_not(generation, number, one)

    async def find(
        self,
        tending: Tending,
        generation: Generation,
        number: int,
        build: Build,
        model_id: str,
        at_least: int,
        deadline_s: float,
    ) -> tuple[Found, Answer]:
        """Look for a model in a partition that is served here.

        Args:
            tending: The projection.
            generation: Which.
            number: The partition.
            build: As `locate` gave it.
            model_id: The model's id.
            at_least: The position that is waited for.
            deadline_s: Until when, by the monotonic clock.

        Raises:
            Problem: It is not served just now, or here any more, or does not come to that position in time.
        """
        while True:
            known = self._committed(tending, generation, number)
            found = await self._read(number, partial(self._shelf.find, build, number, model_id, known))
            if found.state.position >= at_least:
                return found, self._answer(generation, number, found.state)
            if known < 0:
                raise Problem(
                    503,
                    "not-ready",
                    f"Partition {number} of {generation.id} is being handed over to another worker.",
                    retry_after_s=1,
                    generation=generation.id,
                    partitions=[number],
                )
            if time.monotonic() > deadline_s:
                raise Problem(
                    504,
                    "position-not-reached",
                    f"Partition {number} of {generation.id} is at {found.state.position}, and did not come to "
                    f"{at_least} in time.",
                    retry_after_s=1,
                    generation=generation.id,
                    partition=number,
                    position=found.state.position,
                )
            await asyncio.sleep(_LOOK_S)

    async def own_position(
        self, tending: Tending, generation: Generation, number: int, least: MinPosition, deadline_s: float
    ) -> int:
        """Give where a partition of a generation's own topic has all up to a position of the event topic.

        Args:
            tending: The projection.
            generation: Which.
            number: The partition of its own topic.
            least: The position in the event topic.
            deadline_s: Until when, by the monotonic clock.

        Raises:
            Problem: What fills its topic does not come to that position in time, or no broker answers.
        """
        cluster = tending.site.events.cluster.within(_ASK_S)
        filling = filling_group(generation)
        assert filling is not None
        source, group = filling
        while True:
            try:
                # First how far it is filled, then where it ends: what was written by then lies in front of that.
                committed = (await self._run(lambda: cluster.committed(group, source))).get(least.partition)
                if committed is not None and committed.position >= least.position:
                    return await self._run(lambda: cluster.high_watermark(generation.topic, number))
            except BrokerError as error:
                raise Problem(503, "not-ready", str(error), retry_after_s=1, generation=generation.id) from error
            if time.monotonic() > deadline_s:
                at_ = 0 if committed is None else committed.position
                raise Problem(
                    504,
                    "position-not-reached",
                    f"Partition {least.partition} of {source.name} is read up to {at_} for {generation.id}, and not to "
                    f"{least.position} in time.",
                    retry_after_s=1,
                    generation=generation.id,
                    partition=least.partition,
                    position=at_,
                )
            await asyncio.sleep(_LOOK_S)

    async def page(
        self,
        tending: Tending,
        generation: Generation,
        number: int,
        build: Build,
        after: bytes | None,
        limit: int,
        keep: Keep | None = None,
    ) -> tuple[Page, Answer]:
        """Give models of a partition that is served here; see `Shelf.page`."""
        known = self._committed(tending, generation, number)
        page = await self._read(number, partial(self._shelf.page, build, number, after, limit, keep, known))
        return page, self._answer(generation, number, page.state)

    async def settle(self) -> None:
        """Wait for a moment, for a partition to arrive where it is going."""
        await asyncio.sleep(_SETTLE_S)

    def is_still_ours(self, answer: Answer) -> bool:
        """Say whether what was read may be answered: the group's word may have become old while it was read."""
        return answer.is_confirmed == self._owners.known(answer.generation.id).is_fresh

    async def _owning(self, tending: Tending, generation: Generation) -> Owning:
        owning = self._owners.known(generation.id)
        return owning if owning.is_fresh else await self._run(lambda: self._owners.ask(tending.site, generation))

    def _committed(self, tending: Tending, generation: Generation, number: int) -> int:
        """Give how far a partition is for certain, as its agent here says; -1 where none does."""
        tended = tending.tended.get(generation.id)
        one = None if tended is None else tended.status.partitions.get(number)
        return -1 if one is None else one.committed

    def _held(self, tending: Tending, generation: Generation) -> dict[int, Build]:
        tended = tending.tended.get(generation.id)
        if tended is None or tended.job is None:
            return {}
        build = tended.job.build
        return {number: build for number, one in tended.status.partitions.items() if one.phase not in _AWAY}

    def _answer(self, generation: Generation, number: int, state: StoreState) -> Answer:
        return Answer(
            generation=generation,
            partition=number,
            state=state,
            staleness_s=self.staleness(generation, number, state),
            is_confirmed=self._owners.known(generation.id).is_fresh,
        )

    def staleness(self, generation: Generation, number: int, state: StoreState) -> float | None:
        """Give how far out of date a store may be, in seconds, at most; None where that is not known."""
        seen = self._observing.seen.get(generation.id)
        end = None if seen is None else next((one.end for one in seen.view.partitions if one.partition == number), None)
        if seen is not None and end is not None and state.position >= end:
            return round(seen.age_s, 3)
        return None if state.record_ms is None else round(max(0.0, time.time() - state.record_ms / 1000), 3)

    async def _read(self, number: int, read: Callable[[], T]) -> T:
        try:
            return await self._run(read)
        except StorageError as error:
            raise Problem(
                503,
                "not-ready",
                f"Partition {number} cannot be read just now: {error}",
                retry_after_s=1,
                partitions=[number],
            ) from error

    async def _run(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, what)
