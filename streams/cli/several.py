"""Several projections rebuilt by one command."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streams.cli.output import document, duration, shown
from streams.cli.parts import Wired
from streams.cli.progress import said
from streams.cli.signals import drained_by_signals
from streams.cli.view import percent
from streams.cli.whole import unfolded
from streams.control.begin import Approve
from streams.control.dependencies import wait_until_current
from streams.control.plan import Outcome, RebuildPlan, Step
from streams.control.record import Policy, Record
from streams.control.retry import Retry
from streams.control.strategies import FromBeginning, RebuildStrategy
from streams.data.runner import MakeRunner
from streams.errors import ApprovalPending, ConfigError, DeadLettersLeft, PartialFailure, RebuildCancelled
from streams.types import RebuildProgress

__all__ = ["How", "Several", "rebuild_several", "wait_for_dependencies"]

_DRAW_S = 0.2
_LINE_S = 5.0


@dataclass(frozen=True, slots=True)
class Several:
    """One of them."""

    wired: Wired
    beside: bool
    """Whether its new models are made beside those that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What holds for all of them; see `refold rebuild`."""

    strategy: RebuildStrategy
    policy: Policy | None
    approve: Approve
    keep: timedelta
    workers: int
    snapshot_every: int | None
    retry: Retry | None
    adopt: bool


def wait_for_dependencies(wired: Wired, names: tuple[str, ...] | None = None) -> None:
    """Wait until what a projection depends on is current.

    Args:
        wired: The projection.
        names: On which of them; by default on all.

    Raises:
        NotReady: One is not, and does not become so in time.
    """
    wanted = wired.projection.depends_on if names is None else names
    wait_until_current(wired.events.cluster, wired.registry, wired.name, wanted)


def rebuild_several(console: Console, wanted: list[Several], how: How, *, parallel: int, json: bool) -> None:
    """Rebuild them as one plan; print what has become of each.

    Raises:
        ConfigError: They cannot be one plan.
        PartialFailure: Some were not rebuilt.
        ApprovalPending: Some wait for a person.
        RebuildCancelled: It was cancelled.
        DeadLettersLeft: All are rebuilt, and some events are not in their models.
    """
    if any(one.wired.given_group is not None for one in wanted) and len(wanted) > 1:
        named = {one.wired.given_group for one in wanted}
        if len(named) == 1:
            raise ConfigError(
                "Two projections cannot share a group: leave --group out, or name one for each in refold.toml."
            )
    rebuilds = [_OneRebuild(one, how) for one in wanted]
    plan = RebuildPlan([one.step() for one in rebuilds], parallel)
    ended = threading.Event()

    def stop() -> None:
        for one in rebuilds:
            one.stop()

    with drained_by_signals(stop, exit_code=130), _shown(console, plan, ended):
        outcomes = asyncio.run(_awaited(plan.run()))
    for one in rebuilds:
        one.wired.try_note()
    _print(outcomes, {one.name: one for one in rebuilds}, json=json)
    cancelled = [one for one in outcomes.values() if isinstance(one.error, (RebuildCancelled, asyncio.CancelledError))]
    if cancelled:
        raise RebuildCancelled(
            f"{len(cancelled)} of {len(outcomes)} were cancelled. What was folded is committed: `--from checkpoint` "
            "goes on, and `refold resume` with those beside what is active."
        )
    failed = [name for name, one in outcomes.items() if one.state != "completed"]
    if failed:
        raise PartialFailure(f"{len(failed)} of {len(outcomes)} were not rebuilt: {', '.join(failed)}.")
    waiting = [
        name for name, one in outcomes.items() if isinstance(one.result, Record) and one.result.running is not None
    ]
    if waiting:
        raise ApprovalPending(f"{len(waiting)} of {len(outcomes)} wait for a person: {', '.join(waiting)}.")
    left = {name: _left(one) for name, one in outcomes.items()}
    if any(left.values()):
        said = ", ".join(f"{name} with {what}" for name, what in left.items() if what)
        raise DeadLettersLeft(
            f"All {len(outcomes)} are completed, {said}: these events are not in their models. `refold dead-letters "
            "NAME list` shows them."
        )


async def _awaited(work: Coroutine[Any, Any, Mapping[str, Outcome]]) -> Mapping[str, Outcome]:
    return await work


class _OneRebuild:
    """The rebuild of one of them: what drives it, once it has begun."""

    def __init__(self, one: Several, how: How) -> None:
        self.wired = one.wired
        self.name = one.wired.name
        self.beside = one.beside
        self._how = how
        self._stopped = False
        self._generations = one.wired.generations() if one.beside else None
        self._coordinator: Any = None

    def step(self) -> Step:
        return Step(
            name=self.name,
            topic=self.wired.events.topic,
            run=self._run,
            progress=self.progress,
            depends_on=self.wired.projection.depends_on,
            before=lambda names: wait_for_dependencies(self.wired, names),
            shares=isinstance(self._how.strategy, FromBeginning) and self._how.workers == 1,
        )

    def progress(self) -> RebuildProgress:
        driver = self._generations or self._coordinator
        return RebuildProgress() if driver is None else driver.get_progress()

    def stop(self) -> None:
        self._stopped = True
        if self._generations is not None:
            self._generations.stop()
        elif self._coordinator is not None:
            self._coordinator.cancel()

    async def _run(self, make_runner: MakeRunner) -> RebuildProgress | Record:
        how = self._how
        if self._stopped:
            raise RebuildCancelled(f"The rebuild of {self.name!r} was cancelled before it began.")
        if self._generations is not None:
            return await self._generations.rebuild(
                policy=how.policy,
                approve=how.approve,
                keep=how.keep,
                workers=how.workers,
                runner=make_runner if how.workers == 1 else None,
            )
        self._coordinator = self.wired.coordinator(
            adopt=how.adopt,
            snapshot_every=how.snapshot_every,
            retry=how.retry,
            workers=how.workers,
            runner=make_runner if how.workers == 1 else None,
        )
        progress: RebuildProgress = await self._coordinator.rebuild(how.strategy)
        return progress


@contextmanager
def _shown(console: Console, plan: RebuildPlan, ended: threading.Event) -> Iterator[None]:
    """Show how all are getting on: one table on a terminal, lines elsewhere."""

    def draw() -> None:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                is_last = ended.wait(_DRAW_S)
                live.update(_table(plan), refresh=True)
                if is_last:
                    return

    def tell() -> None:
        while not ended.wait(_LINE_S):
            for name, progress in plan.progress.items():
                if plan.outcomes[name].state == "running":
                    console.print(f"{name}: rebuild {said(progress)}", soft_wrap=True)

    thread = threading.Thread(target=draw if console.is_terminal else tell, name="refold-view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _table(plan: RebuildPlan) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("projection", "", "done"):
        table.add_column(name, no_wrap=True)
    for name in ("events", "events/s", "ETA"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("waits for", overflow="fold")
    for name, progress in plan.progress.items():
        outcome = plan.outcomes[name]
        table.add_row(
            name,
            outcome.state,
            percent(*progress.share) if progress.partitions else "",
            f"{progress.events_processed:,}",
            f"{progress.events_per_second:,.0f}",
            duration(progress.estimated_seconds_left()),
            Text(progress.waiting_for if outcome.state == "running" else ""),
        )
    return table


def _print(outcomes: Mapping[str, Outcome], rebuilds: Mapping[str, _OneRebuild], *, json: bool) -> None:
    if json:
        told = {name: _json(outcome, rebuilds[name].progress()) for name, outcome in outcomes.items()}
        print(shown(document("rebuilds", {"projections": told})))  # noqa: T201
        return
    for name, outcome in outcomes.items():
        print(f"{name}: {_said(outcome, rebuilds[name])}")  # noqa: T201


def _left(outcome: Outcome) -> str:
    """Say how many events are not in their models; "" where all are."""
    result = outcome.result
    if isinstance(result, Record):
        return "" if result.rebuild is None else unfolded(result.rebuild.dead_letters, result.rebuild.skipped)
    return unfolded(result.dead_letters, result.events_skipped) if isinstance(result, RebuildProgress) else ""


def _said(outcome: Outcome, one: _OneRebuild) -> str:
    progress = one.progress()
    figures = (
        f"{progress.events_processed:,} events in {progress.elapsed_seconds:.1f} s, "
        f"{progress.events_per_second:,.0f} events/s"
    )
    if outcome.state != "completed":
        return f"{outcome.state}: {outcome.error}"
    if isinstance(outcome.result, Record):
        running = outcome.result.running
        if running is not None:
            return f"waits for a person (`refold switch {one.wired.called}`): {running.why}"
        return f"{outcome.result.active} is active; {figures}"
    return f"{figures}, {progress.models or 0:,} models"


def _json(outcome: Outcome, progress: RebuildProgress) -> dict[str, Any]:
    return {
        "state": outcome.state,
        "error": None if outcome.error is None else str(outcome.error),
        "progress": dataclasses.asdict(progress) | {"completion_percentage": progress.completion_percentage()},
        "registry": msgspec.to_builtins(outcome.result) if isinstance(outcome.result, Record) else None,
    }
