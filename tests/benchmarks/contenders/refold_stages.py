"""Refold with a clock at each of its seams: where the processor time of an event goes.

The clock is the agent's thread's own, so that neither waiting nor other threads count, and each stage's time is without
that of the stages within it. It is read for a hundred events at a time, and costs nothing that could be measured.

- `consume`: taking records from librdkafka, as Python's objects.
- `decode`: JSON to events.
- `fold`: the loop over events, with the projection's own code in it, and the models that it looks up.
- `remember`: positions, sizes, what has failed.
- `encode`: models to JSON. `write`: a batch to RocksDB, synced.
- `garbage`: Python's collector.
- `rest`: all else on that thread: joining, opening, freeing events, looking what is due.
- `beside`: other threads: librdkafka's, RocksDB's, and the coordinator's.
"""

from __future__ import annotations

import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from streams.data import agent, cache, feeding, fold, loop, polling, rocks_partition
from tests.benchmarks.contenders import refold
from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.contenders.refold import unavailable

__all__ = ["STAGES", "run", "unavailable"]

STAGES = ("consume", "decode", "fold", "remember", "encode", "write", "garbage", "rest", "beside")
_now = time.thread_time


class _Stages:
    """The time of each stage on one thread, the first that begins one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._within: list[str] = []
        self._thread = 0
        self._since = 0.0

    def begin(self, stage: str) -> None:
        if not self._within:
            self._thread = self._thread or threading.get_ident()
        if threading.get_ident() == self._thread:
            self._count()
            self._within.append(stage)

    def end(self) -> None:
        if threading.get_ident() == self._thread and self._within:
            self._count()
            self._within.pop()

    def _count(self) -> None:
        now = _now()
        if self._within:
            self.seconds[self._within[-1]] += now - self._since
        self._since = now

    def of(self, stage: str, owner: Any, name: str) -> None:
        """Have each call of a function count as a stage."""
        called = getattr(owner, name)

        @functools.wraps(called)
        def timed(*arguments: Any, **options: Any) -> Any:
            self.begin(stage)
            try:
                return called(*arguments, **options)
            finally:
                self.end()

        setattr(owner, name, timed)

    def of_each(self, stage: str, owner: Any, name: str) -> None:
        """Have each step of a generator count as one."""
        generate: Callable[..., Iterator[Any]] = getattr(owner, name)

        @functools.wraps(generate)
        def timed(*arguments: Any) -> Iterator[Any]:
            steps = generate(*arguments)
            while True:
                self.begin(stage)
                try:
                    step = next(steps)
                except StopIteration:
                    return
                finally:
                    self.end()
                yield step
                del step

        setattr(owner, name, timed)

    def of_all(self, stage: str, owner: Any, name: str) -> None:
        """Have all steps of a generator count as one, taken at once: a clock for each would cost more than they do."""
        generate: Callable[..., Iterator[Any]] = getattr(owner, name)

        @functools.wraps(generate)
        def timed(*arguments: Any) -> Iterator[Any]:
            self.begin(stage)
            try:
                steps = list(generate(*arguments))
            finally:
                self.end()
            return iter(steps)

        setattr(owner, name, timed)

    def of_collections(self, phase: str, _what: dict[str, int]) -> None:
        """Have the collector count as one."""
        if self._within and phase == "start":
            self.begin("garbage")
        elif self._within and self._within[-1] == "garbage":
            self.end()


def run(job: Job) -> Outcome:
    """Rebuild once, with one agent."""
    stages = _Stages()
    stages.of("rest", agent.Agent, "run")
    stages.of("consume", polling.Polling, "poll")
    stages.of_each("decode", feeding, "decoded")
    stages.of("remember", fold.Fold, "begin")
    stages.of("remember", fold.Fold, "fold")
    stages.of("fold", loop.Loop, "run")
    stages.of_all("encode", cache.ModelCache, "encoded")
    stages.of("write", rocks_partition.RocksPartition, "commit")
    gc.callbacks.append(stages.of_collections)
    outcome = refold.run(job)
    seconds = stages.seconds
    seconds["beside"] = outcome.timed_cpu_seconds - sum(seconds.values())
    return msgspec.structs.replace(outcome, stages=seconds)
