"""Several rebuilds as one plan: in the order of what depends on what, so many at once, and one read for each topic."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from streams.control.threads import stopped_with_its_task
from streams.data.job import AnyJob, Job
from streams.data.runner import MakeRunner, Runner, ThreadRunner
from streams.data.shared import SharedRead
from streams.errors import ConfigError, RebuildCancelled, RebuildError
from streams.log import get_logger
from streams.types import RebuildProgress

__all__ = ["Outcome", "RebuildPlan", "Step"]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The rebuild of one projection.

    Args of `run`: where its agent is to run. What it gives is the outcome's `result`.
    """

    name: str
    """The projection's."""
    topic: str
    """What it folds; steps of one topic that run at once share one read of it."""
    run: Callable[[MakeRunner], Coroutine[Any, Any, Any]]
    progress: Callable[[], RebuildProgress]
    depends_on: tuple[str, ...] = ()
    """Steps that come first, and other projections, which are to be current (`before`)."""
    before: Callable[[tuple[str, ...]], None] = lambda _: None
    """Is called with those of the latter; blocks until they are, or raises."""
    shares: bool = True
    """Whether it may fold from a read that others fold from."""


@dataclass(slots=True)
class Outcome:
    """What has become of a step."""

    state: Literal["waiting", "running", "completed", "failed", "skipped"] = "waiting"
    result: Any = None
    """What its `run` gave."""
    error: BaseException | None = None


@dataclass
class RebuildPlan:
    """Rebuilds several projections (reference: Rebuild Orchestration).

    A step begins when all that it depends on are completed, and at most `parallel` run at once. One that fails does not
    stop the others; those that depend on it are skipped.

    Args:
        steps: The rebuilds.
        parallel: How many run at once.

    Raises:
        ConfigError: A name is there twice, or steps depend on each other in a circle.
    """

    steps: list[Step]
    parallel: int = 1
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By name, in the order in which they may run."""

    def __post_init__(self) -> None:
        by_name = {step.name: step for step in self.steps}
        twice = [name for name, count in Counter(step.name for step in self.steps).items() if count > 1]
        if twice:
            raise ConfigError(f"{', '.join(twice)} is to be rebuilt twice: name each projection once.")
        if self.parallel < 1:
            raise ConfigError(f"parallel is {self.parallel}: at least one has to run.")
        graph = {step.name: [name for name in step.depends_on if name in by_name] for step in self.steps}
        try:
            order = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise ConfigError(
                f"Projections depend on each other in a circle: {' → '.join(error.args[1])}. None was rebuilt."
            ) from error
        self.steps = [by_name[name] for name in order]
        self.outcomes = {name: Outcome() for name in order}

    @property
    def progress(self) -> Mapping[str, RebuildProgress]:
        """The figures of every step."""
        return {step.name: step.progress() for step in self.steps}

    async def run(self) -> Mapping[str, Outcome]:
        """Run all of them, as far as that can be.

        Returns:
            What has become of each. None of their errors is raised.

        Raises:
            asyncio.CancelledError: The task was cancelled: each that ran was, and has ended by then.
        """
        running: dict[asyncio.Task[None], Step] = {}
        try:
            while True:
                self._skip()
                ready = self._ready()[: self.parallel - len(running)]
                running |= self._begin(ready)
                if not running:
                    return self.outcomes
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    running.pop(task)
                    task.result()
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    def _ready(self) -> list[Step]:
        """Give the steps that may begin, those of one topic next to each other."""
        ready = [
            step
            for step in self.steps
            if self.outcomes[step.name].state == "waiting"
            and all(self.outcomes[name].state == "completed" for name in self._inside(step))
        ]
        topics = list(dict.fromkeys(step.topic for step in ready))
        return sorted(ready, key=lambda step: topics.index(step.topic))

    def _skip(self) -> None:
        """Skip those that depend on what has failed."""
        for step in self.steps:  # in the order of what depends on what
            outcome = self.outcomes[step.name]
            failed = [name for name in self._inside(step) if self.outcomes[name].state in ("failed", "skipped")]
            if outcome.state == "waiting" and failed:
                outcome.state = "skipped"
                outcome.error = RebuildError(
                    f"{step.name!r} was not rebuilt: it depends on {', '.join(map(repr, failed))}, which "
                    f"{'was' if len(failed) == 1 else 'were'} not. Its models are as they were.",
                    projection=step.name,
                )
                log.warning("rebuild.skipped", projection=step.name, since=failed)

    def _inside(self, step: Step) -> Iterable[str]:
        return [name for name in step.depends_on if name in self.outcomes]

    def _begin(self, steps: list[Step]) -> dict[asyncio.Task[None], Step]:
        counts = Counter(step.topic for step in steps if step.shares)
        shared = {topic: SharedRead(count) for topic, count in counts.items() if count > 1}
        begun = {}
        for step in steps:
            self.outcomes[step.name].state = "running"
            read = shared.get(step.topic) if step.shares else None
            begun[asyncio.ensure_future(self._run_one(step, read))] = step
        return begun

    async def _run_one(self, step: Step, read: SharedRead | None) -> None:
        outcome = self.outcomes[step.name]
        started: list[AnyJob] = []

        def make(job: AnyJob) -> Runner:
            started.append(job)
            return read.join(job) if read is not None and isinstance(job, Job) else ThreadRunner(job)

        outside = tuple(name for name in step.depends_on if name not in self.outcomes)
        try:
            if outside:
                await stopped_with_its_task(lambda: step.before(outside), lambda: None)
            outcome.result = await step.run(make)
            outcome.state = "completed"
        except (asyncio.CancelledError, RebuildCancelled) as error:
            outcome.state, outcome.error = "failed", error
            if isinstance(error, asyncio.CancelledError):
                raise
        except Exception as error:  # noqa: BLE001  (told by the outcome; the others go on)
            outcome.state, outcome.error = "failed", error
        finally:
            if read is not None and not started:
                read.expect_less()
