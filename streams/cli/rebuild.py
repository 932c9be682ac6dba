"""`refold rebuild`: fold a projection again, from the beginning."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Annotated

import orjson
from cyclopts import Parameter
from rich.console import Console

from streams.cli.progress import watch
from streams.cli.signals import drained_by_signals
from streams.cli.wiring import FoldOptions, ProjectionName
from streams.control.rebuild import RebuildCoordinator
from streams.data.generation import RocksStore
from streams.errors import StoreCorrupt

__all__ = ["rebuild"]


def rebuild(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    yes: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Clear a projection's read models and fold the whole topic again, in this process.

    Nobody may be folding in the consumer group meanwhile. Events that arrive after the start are left for
    `refold run`, which goes on from there; so does it after an interruption, which loses nothing.

    Example: refold rebuild aircraft-log --topic flights --yes

    Args:
        projection: What to rebuild.
        options: Topic, state and codec.
        yes: Do not ask.
        json: Print the final figures as one JSON object.
    """
    wired = options.wire(projection)
    console = Console(stderr=True)
    if _has_state(wired.store) and not yes and not _agreed(console, str(wired.store.directory)):
        raise SystemExit(2)
    coordinator = RebuildCoordinator(
        wired.projection,
        wired.events,
        wired.store,
        wired.checkpoints,
        settings=wired.settings,
        allow_incomplete=wired.allow_incomplete,
    )
    work = coordinator.rebuild_from_beginning()  # there before a signal may come, to be cancelled by it
    with drained_by_signals(coordinator.cancel, exit_code=130):
        progress = asyncio.run(watch(coordinator, work, console))
    if json:
        figures = dataclasses.asdict(progress) | {"completion_percentage": progress.completion_percentage()}
        print(orjson.dumps(figures, option=orjson.OPT_NON_STR_KEYS).decode())  # noqa: T201
    else:
        print(  # noqa: T201
            f"{progress.events_processed:,} events into {wired.projection.name} in {progress.elapsed_seconds:.1f} s, "
            f"{progress.events_per_second:,.0f} events/s: {progress.models:,} models, "
            f"{progress.models_deleted:,} deleted, "
            f"{progress.events_declined:,} declined"
        )


def _has_state(store: RocksStore) -> bool:
    try:
        return store.current() is not None
    except StoreCorrupt:  # what a rebuild mends
        return True


def _agreed(console: Console, directory: str) -> bool:
    if not console.is_terminal:
        console.print(f"refold: this clears the read models in {directory}. Say --yes to do it.")
        return False
    return console.input(f"This clears the read models in {directory} and folds them again. Go on? [y/N] ").lower() in (
        "y",
        "yes",
    )
