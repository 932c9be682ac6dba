"""`refold rebuild`: fold a projection again, from the beginning."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import datetime, timedelta
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveInt
from rich.console import Console

from streams.cli.beside import drive, is_live
from streams.cli.output import shown
from streams.cli.parts import Wired, naming_commands, stream_ids
from streams.cli.plan import agree_to_beside, agree_to_rebuild
from streams.cli.progress import reporter_for
from streams.cli.several import How, Several, rebuild_several, wait_for_dependencies
from streams.cli.signals import drained_by_signals
from streams.cli.wiring import Flag, FoldOptions, ProjectionName
from streams.control.begin import Approve, default_policy
from streams.control.record import Policy
from streams.control.retry import Retry
from streams.control.strategies import (
    FromBeginning,
    FromCheckpoint,
    FromEvent,
    FromPosition,
    FromSnapshot,
    FromTime,
    RebuildStrategy,
    SpecificStreams,
)
from streams.errors import ConfigError, RebuildRunning

__all__ = ["rebuild"]


def rebuild(
    projection: ProjectionName,
    /,
    *more: Annotated[
        str, Parameter(help="Further projections; each folds what refold.toml says, or all fold --topic.")
    ],
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    from_: Annotated[str, Parameter(name="--from")] = "beginning",
    snapshot_every: PositiveInt | None = None,
    retries: NonNegativeInt = 0,
    workers: PositiveInt = 1,
    in_place: Flag = False,
    beside: Flag = False,
    verify: Policy | None = None,
    approve: Approve = "ask",
    keep_minutes: NonNegativeFloat = 60.0,
    parallel: PositiveInt = 1,
    adopt: Flag = False,
    yes: Flag = False,
    json: Flag = False,
) -> None:
    """Fold a projection again: the whole topic into new read models, or from where a rebuild was interrupted.

    Where somebody folds the projection, or its version was raised, the new models are made beside those that are live,
    which go on being folded and read: once the new ones have caught up, the two are compared, and readers are switched.
    An interruption leaves it where it is: refold resume goes on, refold cancel gives it up.

    Otherwise, and with --in-place, it takes the place of the models that there are, and nobody may be folding them,
    unless only some streams are folded again. Events that arrive after the start are left for `refold run`, which goes
    on from there. An interruption loses nothing: --from checkpoint goes on with the rebuild.

    Of several projections, those that others depend on (depends_on) come first, and where one fails, the others are
    rebuilt all the same. Those that run at once and fold the same topic share one read of it.

    Example: refold rebuild aircraft-log --topic flights --yes

    Args:
        projection: What to rebuild.
        more: Further projections; each folds what refold.toml says, or all fold --topic.
        options: Topic, state and codec.
        from_: Where to begin. beginning: without models, at the first event. checkpoint: where the models are. What
            follows goes on with the models, or a snapshot, of that position: event:ID (right after it), time:ISO
            (2026-03-01T10:00), offset:PARTITION=OFFSET[,PARTITION=OFFSET…], snapshot:ID. And stream:ID[,ID…] folds
            the whole history of these streams (stream:@FILE: an id a line), and touches no other model; others may be
            folding meanwhile.
        snapshot_every: Take a snapshot each time that so many events were folded, and keep the newest three.
        retries: How often to try again where no broker answers, the disk is full, or the projection says that the
            event may be folded later; each time from where it was.
        workers: How many processes fold, sharing the topic's partitions.
        in_place: Take the place of the models that there are.
        beside: Make the new models beside them, also where nobody folds.
        verify: Beside: what the comparison must have found for the switch. identical: no difference (the default where
            the code is the same). report: what you approve (the default where it is not). validate: no difference that
            the projection's validate does not expect (the default where it has one). none: nothing is compared.
        approve: Beside: who approves a report. ask: you; without a terminal it waits for refold switch. auto: nobody.
        keep_minutes: Beside: for how long the old models are kept, and kept up, to be switched back to.
        parallel: Of several projections: how many are rebuilt at once.
        adopt: Keep models that other code has folded, stating that the change does not alter them.
        yes: Do not ask.
        json: Print the final figures as one JSON object.
    """
    strategy = parse_strategy(from_)
    console = Console(stderr=True, highlight=False, markup=False)
    keep = timedelta(minutes=keep_minutes)
    if more:
        wanted = [
            Several(wired, beside=_goes_beside(wired, strategy, in_place=in_place, beside=beside))
            for wired in map(options.wire, (projection, *more))
        ]
        how = How(
            strategy=strategy,
            policy=verify,
            approve=approve,
            keep=keep,
            workers=workers,
            snapshot_every=snapshot_every,
            retry=Retry(attempts=retries + 1) if retries else None,
            adopt=adopt,
        )
        rebuild_several(console, wanted, how, parallel=parallel, yes=yes, json=json)
        return
    wired = options.wire(projection)
    if _goes_beside(wired, strategy, in_place=in_place, beside=beside):
        if not yes:
            site = wired.site()
            record = site.record()
            agree_to_beside(console, wired, record, verify or default_policy(site, record), keep)
        wait_for_dependencies(wired)
        generations = wired.generations()
        drive(
            console,
            wired,
            generations,
            lambda reporters: generations.rebuild(
                policy=verify, approve=approve, keep=keep, workers=workers, reporters=reporters
            ),
            json=json,
        )
        return
    if not yes:
        agree_to_rebuild(console, wired, strategy)
    wait_for_dependencies(wired)
    coordinator = wired.coordinator(
        adopt=adopt,
        snapshot_every=snapshot_every,
        workers=workers,
        retry=Retry(attempts=retries + 1) if retries else None,
        reporters=[reporter_for(console)],
    )
    work = coordinator.rebuild(strategy)  # there before a signal may come, to be cancelled by it
    with naming_commands(projection), drained_by_signals(coordinator.cancel, exit_code=130):
        try:
            progress = asyncio.run(work)
        finally:
            wired.try_note()
    if json:
        figures = dataclasses.asdict(progress) | {"completion_percentage": progress.completion_percentage()}
        print(shown(figures))  # noqa: T201
    else:
        print(  # noqa: T201
            f"{progress.events_processed:,} events into {wired.projection.name} in {progress.elapsed_seconds:.1f} s, "
            f"{progress.events_per_second:,.0f} events/s: {progress.models:,} models, "
            f"{progress.models_deleted:,} deleted, "
            f"{progress.events_declined:,} declined"
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
    if in_place or not isinstance(strategy, FromBeginning):
        if beside:
            raise ConfigError("--beside folds from the beginning; --from says otherwise.")
        return False
    if record is None:
        if beside:
            raise ConfigError(f"There is nothing of {wired.name!r} yet to fold beside: `refold run {wired.called}`.")
        return False
    return beside or wired.projection.version != record.live.version or is_live(wired)


def parse_strategy(text: str) -> RebuildStrategy:
    """Read what `--from` says.

    Raises:
        ConfigError: It says nothing that there is.
    """
    kind, _, rest = text.partition(":")
    try:
        if text == "beginning":
            return FromBeginning()
        if text == "checkpoint":
            return FromCheckpoint()
        if kind == "event" and rest:
            return FromEvent(rest)
        if kind == "snapshot" and rest:
            return FromSnapshot(rest)
        if kind == "stream":
            return SpecificStreams(stream_ids(rest))
        if kind == "time":
            return FromTime(datetime.fromisoformat(rest))
        if kind == "offset":
            pairs = [one.split("=") for one in rest.split(",")]
            return FromPosition({int(partition): int(offset) for partition, offset in pairs})
    except ValueError as error:
        raise ConfigError(f"--from {text!r} cannot be read: {error}. {_FROM}") from error
    raise ConfigError(f"--from {text!r} is none that there is. {_FROM}")


_FROM = (
    "Write beginning, checkpoint, event:ID, time:2026-03-01T10:00:00+01:00, offset:0=1200,1=1180, snapshot:ID, or "
    "stream:ID,ID."
)
