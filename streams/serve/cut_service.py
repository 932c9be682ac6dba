"""Cuts of this worker's share of a generation, for whoever compares it: a WebSocket for each, which ends with it.

Each message is one question and has one answer, both as msgpack. Where the connection ends, the cut does, and what was
held goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import WSMsgType, web

from streams.control.local_side import LocalCut, LocalSide
from streams.control.runs import Models, Run
from streams.data.cut import Held
from streams.errors import CqrsError
from streams.log import get_logger
from streams.prepared import prepared
from streams.serve.problems import Problem
from streams.serve.tending import Tending

if TYPE_CHECKING:
    from streams.serve.worker import Worker

__all__ = ["RUNS_AT_ONCE", "Answer", "CutService", "Question"]

log = get_logger(__name__)

T = TypeVar("T")

_HEARTBEAT_S = 10.0
_MESSAGE_BYTES = 64 << 20
_ANSWER_BYTES = 8 << 20
RUNS_AT_ONCE = 1000
"""Some seconds' worth; whoever asks waits for a minute."""


class Question(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is asked of a cut."""

    do: str
    """held, barrier, copied, runs or within."""
    positions: dict[int, int] = {}
    """barrier, copied: by partition."""
    partition: int = -1
    """runs, within: of which."""
    firsts: list[bytes] | None = None
    """runs: where to begin each."""
    first: bytes = b""
    """runs, within: from here on."""
    end: bytes | None = None
    """runs, within: up to here."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is answered."""

    error: str = ""
    """Why it could not be; "" where it could."""
    held: dict[int, Held] = {}
    copied: list[int] = []
    runs: list[Run] = []
    models: list[tuple[bytes, bytes]] = []
    more: bytes | None = None
    """runs, within: from where on there is more, for another question; None where there is not."""


prepared(Question, Answer)


class CutService:
    """Answers those who compare.

    Args:
        worker: Of which it is the interface.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def add_to(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get("/internal/v1/projections/{name}/cuts/{generation}", self.cut)

    async def cut(self, request: web.Request) -> web.WebSocketResponse:
        """Cut a generation for as long as the connection lasts."""
        tending = self._worker.tendings.get(request.match_info["name"])
        tended = None if tending is None else tending.tended.get(request.match_info["generation"])
        if tending is None or tended is None or tended.job is None:
            raise Problem(421, "misdirected", f"{request.match_info['generation']} is not folded here.")
        generation, build = tended.generation.id, tended.job.build
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=_MESSAGE_BYTES)
        await socket.prepare(request)
        loop = asyncio.get_running_loop()
        # One thread: what is opened there is closed there.
        with ThreadPoolExecutor(1, thread_name_prefix="refold-cut") as thread:
            stack = ExitStack()

            def run(what: Callable[[], T]) -> asyncio.Future[T]:
                return loop.run_in_executor(thread, what)

            try:
                side = LocalSide(generation=generation, build=build)
                opened = _Opened(await run(lambda: stack.enter_context(side.cut())), tending, generation)
                async for message in socket:
                    if message.type is not WSMsgType.BINARY:
                        break
                    question = msgspec.msgpack.decode(message.data, type=Question)
                    try:
                        answer = await run(lambda: opened.answer(question))  # noqa: B023
                    except CqrsError as error:
                        answer = Answer(error=str(error))
                    await socket.send_bytes(msgspec.msgpack.encode(answer))
            except CqrsError as error:
                log.warning("cut.failed", generation=generation, why=str(error))
            finally:
                await run(stack.close)
        return socket


class _Opened:
    """A cut of those partitions that this worker holds."""

    def __init__(self, cut: LocalCut, tending: Tending, generation: str) -> None:
        self._cut = cut
        self._tending = tending
        self._generation = generation
        self._models: dict[int, Models] = {}

    def answer(self, question: Question) -> Answer:
        match question.do:
            case "held":
                here = self._here()
                return Answer(held={number: one for number, one in self._cut.held().items() if number in here})
            case "barrier":
                self._cut.set_barrier(question.positions)
                return Answer()
            case "copied":
                here = self._here()
                positions = {number: at for number, at in question.positions.items() if number in here}
                return Answer(copied=sorted(self._cut.copied(positions)))
            case "runs":
                return self._runs(question)
            case _:
                return self._within(question)

    def _runs(self, question: Question) -> Answer:
        models = self._of(question.partition)
        found = models.runs(question.firsts, lambda: None, question.first, question.end)
        # One more, for where the next answer begins. Its digest is made again then, and its end known.
        runs = list(found if question.firsts is not None else islice(found, RUNS_AT_ONCE + 1))
        if question.firsts is not None or len(runs) <= RUNS_AT_ONCE:
            return Answer(runs=runs)
        return Answer(runs=runs[:-1], more=runs[-1].first)

    def _within(self, question: Question) -> Answer:
        taken: list[tuple[bytes, bytes]] = []
        size = 0
        for model_id, value in self._of(question.partition).within(question.first, question.end):
            if taken and size + len(value) > _ANSWER_BYTES:
                return Answer(models=taken, more=model_id)
            taken.append((model_id, value))
            size += len(model_id) + len(value)
        return Answer(models=taken)

    def _of(self, partition: int) -> Models:
        if partition not in self._models:
            self._models[partition] = self._cut.models(partition)
        return self._models[partition]

    def _here(self) -> set[int]:
        tended: Any = self._tending.tended.get(self._generation)
        return set() if tended is None else set(tended.status.partitions)
