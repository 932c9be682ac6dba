"""A generation whose partitions are on several workers, as one side of a comparison."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec

from streams.control.compare import Report
from streams.control.record import Generation
from streams.control.runs import Models, Run
from streams.data.cut import Held
from streams.errors import StoreLocked
from streams.serve.cut_service import RUNS_AT_ONCE, Answer, Question
from streams.serve.peers import Peers
from streams.types import TopicInfo

__all__ = ["FleetSide"]

T = TypeVar("T")

_ANSWER_S = 60.0
_MESSAGE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSide:
    """See Side. It is used on a thread, and talks to workers on an event loop."""

    of: Generation
    projection: str
    owners: Callable[[], Mapping[int, str]]
    """Asks who serves which partition now, as host:port."""
    loop: asyncio.AbstractEventLoop
    peers: Peers
    kept: Callable[[Report], None]
    """Keeps what was found."""

    @property
    def generation(self) -> str:
        """See Side."""
        return self.of.id

    @property
    def topic(self) -> TopicInfo:
        """See Side."""
        return TopicInfo(name=self.of.topic, id=self.of.topic_id, partitions=self.of.partitions)

    @contextmanager
    def cut(self) -> Iterator[FleetCut]:
        """See Side.

        Raises:
            StoreLocked: A worker does not answer.
        """
        owners = self.owners()
        sockets: dict[str, aiohttp.ClientWebSocketResponse] = {}
        try:
            for address in sorted(set(owners.values())):
                sockets[address] = self._wait(self._connected(address), address)
            yield FleetCut(self, owners, sockets)
        finally:
            for address, socket in sockets.items():
                self._wait(socket.close(), address)

    def keep(self, report: Report) -> None:
        """See Side."""
        self.kept(report)

    def ask(self, address: str, socket: aiohttp.ClientWebSocketResponse, question: Question) -> Answer:
        """Ask one worker.

        Raises:
            StoreLocked: It does not answer, or could not do it.
        """

        async def asked() -> Answer:
            await socket.send_bytes(msgspec.msgpack.encode(question))
            return msgspec.msgpack.decode(await socket.receive_bytes(), type=Answer)

        answer = self._wait(asked(), address)
        if answer.error:
            raise StoreLocked(f"{self.generation} at {address}: {answer.error}", projection=self.projection)
        return answer

    async def _connected(self, address: str) -> aiohttp.ClientWebSocketResponse:
        path = f"/internal/v1/projections/{self.projection}/cuts/{self.generation}"
        return await self.peers.connect(address, path, max_bytes=_MESSAGE_BYTES)

    def _wait(self, what: Coroutine[Any, Any, T], address: str) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(asyncio.wait_for(what, _ANSWER_S), self.loop).result()
        except (aiohttp.ClientError, OSError, TypeError, TimeoutError, RuntimeError) as error:
            why = str(error) or type(error).__name__  # TypeError: the connection was closed in place of an answer
            raise StoreLocked(
                f"{self.generation} at {address} could not be asked: {why}. Is that worker gone? Nothing was compared.",
                projection=self.projection,
            ) from error


class FleetCut:
    """See SideCut."""

    def __init__(
        self, side: FleetSide, owners: Mapping[int, str], sockets: Mapping[str, aiohttp.ClientWebSocketResponse]
    ) -> None:
        self._side = side
        self._owners = owners
        self._sockets = sockets

    def partitions(self) -> Iterable[int]:
        """See SideCut."""
        return range(self._side.of.partitions)

    def held(self) -> Mapping[int, Held]:
        """See SideCut. A partition that nobody serves is told as one that goes no further."""
        found: dict[int, Held] = {}
        for answer in self._all(Question(do="held")):
            found |= answer.held
        return found

    def set_barrier(self, positions: Mapping[int, int]) -> None:
        """See SideCut."""
        self._all(Question(do="barrier", positions=dict(positions)))

    def copied(self, positions: Mapping[int, int]) -> set[int]:
        """See SideCut."""
        answers = self._all(Question(do="copied", positions=dict(positions)))
        return {number for answer in answers for number in answer.copied}

    def models(self, partition: int) -> Models:
        """See SideCut."""
        return _RemoteModels(self, partition)

    def ask(self, partition: int, question: Question) -> Answer:
        """Ask the worker that serves a partition."""
        address = self._owners[partition]
        return self._side.ask(address, self._sockets[address], question)

    def _all(self, question: Question) -> list[Answer]:
        return [self._side.ask(address, socket, question) for address, socket in self._sockets.items()]


class _RemoteModels:
    """See Models."""

    def __init__(self, cut: FleetCut, partition: int) -> None:
        self._cut = cut
        self._partition = partition

    def runs(
        self,
        firsts: list[bytes] | None,
        check_cancelled: Callable[[], None],
        first: bytes = b"",
        end: bytes | None = None,
    ) -> Iterable[Run]:
        if firsts is None:
            at: bytes | None = first
            while at is not None:
                check_cancelled()
                answer = self._ask("runs", at, end)
                yield from answer.runs
                at = answer.more
            return
        for number in range(0, len(firsts), RUNS_AT_ONCE):
            check_cancelled()
            part, behind = firsts[number : number + RUNS_AT_ONCE], firsts[number + RUNS_AT_ONCE :]
            yield from self._ask("runs", part[0], behind[0] if behind else end, part).runs

    def within(self, first: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        at: bytes | None = first
        while at is not None:
            answer = self._ask("within", at, end)
            yield from answer.models
            at = answer.more

    def _ask(self, do: str, first: bytes, end: bytes | None, firsts: list[bytes] | None = None) -> Answer:
        question = Question(do=do, partition=self._partition, first=first, end=end, firsts=firsts)
        return self._cut.ask(self._partition, question)
