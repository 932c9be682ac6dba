"""A rebuild from what was asked for to its end: looked at, told, agreed to, made."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

from streams.cli.beside import drive, is_live
from streams.cli.output import document, shown
from streams.cli.parts import Wired, naming_commands
from streams.cli.plan import agreed_or_end, plan_lines
from streams.cli.progress import reporter_for
from streams.cli.request import Plan, Request
from streams.cli.several import How, Several, rebuild_several, wait_for_dependencies
from streams.cli.signals import drained_by_signals
from streams.cli.whole import check_whole
from streams.cli.wiring import FoldOptions
from streams.control.begin import default_policy
from streams.control.planning import World, differences, world_of
from streams.control.record import Policy
from streams.control.space import check_space
from streams.control.strategies import FromBeginning, FromCheckpoint, RebuildStrategy, SpecificStreams
from streams.data.history import check_complete
from streams.errors import ConfigError, PlanStale, RebuildRunning
from streams.types import Watermarks

__all__ = ["Asking", "perform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How far to go."""

    yes: bool = False
    """Without asking."""
    dry_run: bool = False
    """Only say what would be done."""
    plan_out: Path | None = None
    """The same, and write it down for `refold apply`."""
    json: bool = False


def perform(request: Request, options: FoldOptions, asking: Asking, plan: Plan | None = None) -> None:
    """Rebuild what was asked for; print how it ended.

    1. Look at each projection and at its surroundings.
    2. Refuse what cannot be: history that is gone, a group that somebody folds, a plan of another world.
    3. Tell what is about to be done, and ask.
    4. Do it.

    Args:
        request: What was asked for.
        options: Where things are.
        asking: How far to go.
        plan: What it was planned by, and agreed to.

    Raises:
        PlanStale: The world has changed since it was planned.
        CqrsError: See `refold rebuild`. Before step 4, nothing was changed.
    """
    # Step 1
    strategy = request.strategy
    wanted = [
        Several(wired, beside=_goes_beside(wired, strategy, in_place=request.in_place, beside=request.beside))
        for wired in map(options.wire, request.projections)
    ]
    sites = [one.wired.site() for one in wanted]
    worlds = [
        world_of(site, one.wired.called, strategy, beside=one.beside) for site, one in zip(sites, wanted, strict=True)
    ]
    policies: list[Policy] = [
        request.verify or (default_policy(site, site.record()) if one.beside else "none")
        for site, one in zip(sites, wanted, strict=True)
    ]
    console = Console(stderr=True, highlight=False, markup=False)
    if plan is None:
        lines = plan_lines(request, worlds, policies)
        only_told = asking.dry_run or asking.plan_out is not None
        replaces = len(wanted) > 1 or any(map(_replaces, worlds))
        if only_told:
            made = Plan.of(request, options.said(), tuple(worlds))
            print(shown(document("plan", _json(made))) if asking.json else "\n".join(lines))  # noqa: T201
        elif replaces and not isinstance(strategy, FromCheckpoint):
            console.print("\n".join(lines), soft_wrap=True)
    # Step 2
    else:
        _check_fresh(plan, worlds)
    for world, one in zip(worlds, wanted, strict=True):
        _check_possible(world, one.wired, strategy)
    # Step 3
    if plan is None:
        if asking.plan_out is not None:
            made.write(asking.plan_out)
        if only_told:
            return
        if not asking.yes and replaces and not isinstance(strategy, FromCheckpoint):
            agreed_or_end(console)
    # Step 4
    _do(console, wanted, request, json=asking.json)


def _replaces(world: World) -> bool:
    """Say whether there is something that another takes the place of."""
    return world.manner == "beside" or world.build is not None or bool(world.unreadable)


def _json(plan: Plan) -> dict[str, object]:
    facts: dict[str, object] = msgspec.to_builtins(plan)
    facts.pop("schema")
    return facts


def _check_fresh(plan: Plan, worlds: list[World]) -> None:
    """Make sure that a plan's world is still there.

    Raises:
        PlanStale: It is not; all that has changed is named.
    """
    changed = [
        f"{now.projection}: {what}"
        for before, now in zip(plan.worlds, worlds, strict=True)
        for what in differences(before, now)
    ]
    if changed:
        raise PlanStale(
            "\n  ".join(
                [
                    f"The plan of {plan.made_at:%Y-%m-%d %H:%M:%S} UTC is of a world that is no more. Nothing was "
                    "changed. Make another one, and look at it:",
                    *changed,
                ]
            )
        )


def _check_possible(world: World, wired: Wired, strategy: RebuildStrategy) -> None:
    """Make sure that a rebuild could begin.

    Raises:
        HistoryIncomplete: Events are gone that it needs.
        GroupActive: Somebody folds what it would replace.
        DiskFull: The disk cannot hold it.
    """
    cluster = wired.events.cluster
    if world.manner == "in-place":
        cluster.check_empty(world.group)
    if world.manner == "beside":
        check_space(wired.state_dir, world.models_bytes or 0, wired.name)
    if isinstance(strategy, FromBeginning) and not wired.allow_incomplete:
        check_complete(
            cluster,
            cluster.topic(world.topic),
            {number: Watermarks(low=world.starts[number], high=end) for number, end in world.ends.items()},
            projection=world.projection,
            doing="A rebuild",
            allow_incomplete=False,
        )


def _goes_beside(wired: Wired, strategy: RebuildStrategy, *, in_place: bool, beside: bool) -> bool:
    """Say whether new models are to be made beside those that there are.

    Raises:
        ConfigError: It cannot be as it was asked for.
        RebuildRunning: One is being made already, and the models that there are were to be replaced.
    """
    record = wired.record
    if in_place and beside:
        raise ConfigError("--in-place and --beside exclude each other.")
    if record is not None and record.running is not None and not isinstance(strategy, SpecificStreams):
        running = record.running
        raise RebuildRunning(
            f"{wired.name!r} is being rebuilt already: {running.generation}, beside {record.active}, begun by "
            f"{running.by}. `refold resume {wired.called}` goes on with it, and `refold cancel {wired.called}` "
            "gives it up. Nothing was changed.",
            projection=wired.name,
        )
    if wired.projection.partition_by == "model" and record is not None:
        if in_place or not isinstance(strategy, FromBeginning):
            raise ConfigError(
                f"{wired.name!r} has `partition_by = 'model'`: each of its generations folds a topic of its own, so it "
                "is rebuilt beside what there is, and from the beginning, without --in-place and --from. Nothing was "
                "changed."
            )
        return True
    if in_place or not isinstance(strategy, FromBeginning):
        if beside:
            raise ConfigError("--beside folds from the beginning; --from says otherwise.")
        return False
    if record is None:
        if beside:
            raise ConfigError(f"There is nothing of {wired.name!r} yet to fold beside: `refold run {wired.called}`.")
        return False
    return beside or wired.projection.version != record.live.version or is_live(wired)


def _do(console: Console, wanted: list[Several], request: Request, *, json: bool) -> None:
    if len(wanted) > 1:
        how = How(
            strategy=request.strategy,
            policy=request.verify,
            approve=request.approve,
            keep=request.keep,
            workers=request.workers,
            snapshot_every=request.snapshot_every,
            retry=request.retry,
            adopt=request.adopt,
        )
        rebuild_several(console, wanted, how, parallel=request.parallel, json=json)
        return
    (one,) = wanted
    wait_for_dependencies(one.wired)
    if one.beside:
        generations = one.wired.generations()
        drive(
            console,
            one.wired,
            generations,
            lambda reporters: generations.rebuild(
                policy=request.verify,
                approve=request.approve,
                keep=request.keep,
                workers=request.workers,
                reporters=reporters,
            ),
            json=json,
        )
    else:
        _in_place(console, one.wired, request, json=json)


def _in_place(console: Console, wired: Wired, request: Request, *, json: bool) -> None:
    coordinator = wired.coordinator(
        adopt=request.adopt,
        snapshot_every=request.snapshot_every,
        workers=request.workers,
        retry=request.retry,
        reporters=[reporter_for(console)],
    )
    work = coordinator.rebuild(request.strategy)  # there before a signal may come, to be cancelled by it
    with naming_commands(wired.called), drained_by_signals(coordinator.cancel, exit_code=130):
        try:
            progress = asyncio.run(work)
        finally:
            wired.try_note()
    if json:
        figures = dataclasses.asdict(progress) | {"completion_percentage": progress.completion_percentage()}
        print(shown(document("rebuild", figures)))  # noqa: T201
    else:
        print(  # noqa: T201
            f"{progress.events_processed:,} events into {wired.projection.name} in {progress.elapsed_seconds:.1f} s, "
            f"{progress.events_per_second:,.0f} events/s: {progress.models:,} models, "
            f"{progress.models_deleted:,} deleted, "
            f"{progress.events_declined:,} declined"
        )
    check_whole(wired.projection.name, wired.called, progress.dead_letters, progress.events_skipped)
