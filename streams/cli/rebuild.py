"""`refold rebuild`: fold a projection again, from the beginning."""

from __future__ import annotations

import asyncio
import dataclasses
import select
import sys
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from rich.console import Console

from streams.cli.output import duration, shown
from streams.cli.progress import watch
from streams.cli.signals import drained_by_signals
from streams.cli.wiring import Flag, FoldOptions, ProjectionName, Wired, naming_commands
from streams.control.rebuild import RebuildCoordinator
from streams.control.retry import Retry
from streams.control.status import StateView, view_state
from streams.control.strategies import (
    FromBeginning,
    FromCheckpoint,
    FromEvent,
    FromPosition,
    FromSnapshot,
    FromTime,
    RebuildStrategy,
)
from streams.errors import ConfigError, StoreCorrupt

__all__ = ["rebuild"]

_LOOK_S = 0.1


def rebuild(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    from_: Annotated[str, Parameter(name="--from")] = "beginning",
    snapshot_every: PositiveInt | None = None,
    retries: NonNegativeInt = 0,
    adopt: Flag = False,
    yes: Flag = False,
    json: Flag = False,
) -> None:
    """Fold a projection again: the whole topic into new read models, or from where a rebuild was interrupted.

    Nobody may be folding in the consumer group meanwhile. Events that arrive after the start are left for
    `refold run`, which goes on from there. An interruption loses nothing: --from checkpoint goes on with the rebuild.

    Example: refold rebuild aircraft-log --topic flights --yes

    Args:
        projection: What to rebuild.
        options: Topic, state and codec.
        from_: Where to begin. beginning: without models, at the first event. checkpoint: where the models are. What
            follows goes on with the models, or a snapshot, of that position: event:ID (right after it), time:ISO
            (2026-03-01T10:00), offset:PARTITION=OFFSET[,PARTITION=OFFSET…], snapshot:ID.
        snapshot_every: Take a snapshot each time that so many events were folded, and keep the newest three.
        retries: How often to try again where no broker answers, the disk is full, or the projection says that the
            event may be folded later; each time from where it was.
        adopt: Keep models that other code has folded, stating that the change does not alter them.
        yes: Do not ask.
        json: Print the final figures as one JSON object.
    """
    strategy = parse_strategy(from_)
    wired = options.wire(projection)
    console = Console(stderr=True, highlight=False, markup=False)
    if not yes and isinstance(strategy, FromBeginning):  # the others keep the models
        _ask(console, wired)
    coordinator = RebuildCoordinator(
        wired.projection,
        wired.events,
        wired.store,
        wired.checkpoints,
        settings=wired.settings,
        allow_incomplete=wired.allow_incomplete,
        adopt=adopt,
        snapshot_every=snapshot_every,
        retry=Retry(attempts=retries + 1) if retries else None,
    )
    work = coordinator.rebuild(strategy)  # there before a signal may come, to be cancelled by it
    with naming_commands(projection), drained_by_signals(coordinator.cancel, exit_code=130):
        progress = asyncio.run(watch(coordinator, work, console))
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
        if kind == "time":
            return FromTime(datetime.fromisoformat(rest))
        if kind == "offset":
            pairs = [one.split("=") for one in rest.split(",")]
            return FromPosition({int(partition): int(offset) for partition, offset in pairs})
    except ValueError as error:
        raise ConfigError(f"--from {text!r} cannot be read: {error}. {_FROM}") from error
    raise ConfigError(f"--from {text!r} is none that there is. {_FROM}")


_FROM = "Write beginning, checkpoint, event:ID, time:2026-03-01T10:00:00+01:00, offset:0=1200,1=1180, or snapshot:ID."


def _ask(console: Console, wired: Wired) -> None:
    """Say what the rebuild will do, and ask; where there are no models yet, there is nothing to ask.

    Raises:
        SystemExit: The answer is no, or nobody can be asked; nothing was changed.
    """
    try:
        state = view_state(wired.store)
        if state is None:
            return
        now = f"build {state.build.manifest.build} with {state.models:,} models"
    except StoreCorrupt as error:
        state, now = None, f"it cannot be read ({error})"
    cluster = wired.events.cluster
    marks = cluster.watermarks(cluster.topic(wired.events.topic))
    events = sum(one.high - one.low for one in marks.values())
    where = ", ".join(f"{number}: {one.low:,} to {one.high:,}" for number, one in sorted(marks.items()))
    console.print(
        f"This rebuilds {wired.projection.name!r} from the beginning of topic {wired.events.topic!r}.\n"
        f"  models  {wired.store.directory.absolute()}, {now}; they are replaced\n"
        f"  events  up to {events:,}, by partition from offset {where}\n"
        f"  time    {_expected(state, events)}",
        soft_wrap=True,
    )
    if not console.is_terminal or not sys.stdin.isatty():
        console.print("refold: nothing was changed. Say --yes to do it.")
        raise SystemExit(2)
    console.print("Go on? [y/N] ", end="")
    try:
        # Not `input`: an interrupt that comes just before it reads would wait for the answer too.
        while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
            pass
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; nothing was changed.") from None
    if answer.strip().lower() not in ("y", "yes"):
        console.print("Nothing was changed.")
        raise SystemExit(2)


def _expected(state: StateView | None, events: int) -> str:
    rate = 0.0 if state is None or state.rebuild is None else state.rebuild.events_per_second
    if not rate:
        return "unknown before it runs: there is no earlier rebuild to go by"
    return f"about {duration(events / rate)}, at the {rate:,.0f} events/s of the last rebuild"
