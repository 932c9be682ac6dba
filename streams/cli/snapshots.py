"""`refold snapshots`: take, list, restore and prune them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import timedelta
from typing import Any, Literal

from cyclopts.types import NonNegativeInt, PositiveFloat
from rich.console import Console
from rich.table import Table

from streams.cli.output import document, local_time, printer, shown, size
from streams.cli.parts import Found, naming_commands
from streams.cli.plan import agreed_or_end
from streams.cli.signals import drained_by_signals
from streams.cli.wiring import Flag, FoldOptions, ProjectionName
from streams.config import FoldSettings
from streams.control.restored import repository_of
from streams.control.strategies import FromSnapshot
from streams.data.repository import StoredSnapshot
from streams.data.snapshots import Snapshot, Snapshots
from streams.errors import ConfigError, StateNotFound

__all__ = ["snapshots"]


def snapshots(
    projection: ProjectionName,
    action: Literal["take", "list", "restore", "prune"] = "list",
    id: str | None = None,  # noqa: A002 - it is called so
    /,
    *,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    wait_seconds: PositiveFloat = 60.0,
    keep: NonNegativeInt | None = None,
    older_than_days: PositiveFloat | None = None,
    adopt: Flag = False,
    yes: Flag = False,
    json: Flag = False,
) -> None:
    """Take, list, restore or prune snapshots: read models as of one position of each partition, to go on from later.

    With --snapshot-repository, `list` gives those too that whoever folds has sent there, and keeps so many of.

    A snapshot is taken while the projection is folded or not. Its files are hard links: it takes the space of what
    changes afterwards. `refold rebuild --from …` goes on from one by itself, where the models are ahead.

    Example: refold snapshots aircraft-log take --topic flights

    Args:
        projection: Whose snapshots.
        action: take one; list them; restore one, while nobody folds, so that `refold run` goes on from it; or prune.
        id: restore: which one.
        options: Where the state is.
        wait_seconds: take: how long to wait for those who fold.
        keep: prune: all but the newest so many.
        older_than_days: prune: all that are older.
        adopt: restore: also where other code has folded it, stating that its models are as they should be.
        yes: restore: do not ask.
        json: Print one JSON object for each snapshot that was taken, found, restored or removed.
    """
    if (id is not None) != (action == "restore"):
        raise ConfigError("restore needs the id of a snapshot, and nothing else takes one: `refold snapshots P list`.")
    if (keep is not None or older_than_days is not None) != (action == "prune"):
        raise ConfigError("prune needs --keep or --older-than-days, and nothing else takes them.")
    if action == "restore":
        assert id is not None
        _print([_restore(projection, options, id, adopt=adopt, yes=yes)], "restored", json=json)
        return
    found = options.find(projection)
    there = Snapshots(found.store.directory)
    if action == "list":
        _print(there.all(), "", json=json)
        _print_stored(options, found, json=json)
    elif action == "prune":
        age = None if older_than_days is None else timedelta(days=older_than_days)
        _print(there.prune(keep=keep, older_than=age), "removed", json=json)
    else:
        build = found.store.current()
        if build is None:
            raise StateNotFound(f"{found.store.directory.absolute()} holds no read models yet: nothing is to be taken.")
        taken = there.take(build, wait_s=wait_seconds)
        assert taken is not None, "nothing stops it"
        _print([taken], "taken", json=json)


def _restore(projection: str, options: FoldOptions, id: str, *, adopt: bool, yes: bool) -> Snapshot:  # noqa: A002
    wired = options.wire(projection)
    snapshot = Snapshots(wired.store.directory).get(id)
    if not yes:
        console = Console(stderr=True, highlight=False, markup=False)
        console.print(
            f"This makes the models of {snapshot} the current ones of {wired.projection.name!r}, in "
            f"{wired.store.directory.absolute()}; later events are then to be folded again.",
            soft_wrap=True,
        )
        agreed_or_end(console)
    coordinator = wired.coordinator(adopt=adopt)
    work = coordinator.rebuild(FromSnapshot(id, only_restore=True))
    with naming_commands(projection), drained_by_signals(coordinator.cancel, exit_code=130):
        asyncio.run(_awaited(work))
        wired.try_note()
    return snapshot


def _print_stored(options: FoldOptions, found: Found, *, json: bool) -> None:
    """Print what the snapshot repository has of the active generation."""
    (settings,) = options.settings(options.file(), FoldSettings, projection=found.called)
    record = found.record
    repository = None if record is None else repository_of(settings, found.name, record.live)
    if repository is None or record is None:
        return
    stored = [
        snapshot
        for number in range(record.live.partitions)
        for kept in repository.kept(number)
        if (snapshot := repository.get(number, kept.position)) is not None
    ]
    if json:
        for one in stored:
            print(shown(document("stored-snapshot", _stored_json(record.active, one))))  # noqa: T201
        return
    if not stored:
        print(f"None of {record.active} in {repository.url}.")  # noqa: T201
        return
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("partition", "position", "events", "models", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("sent", no_wrap=True)
    table.add_column("by", overflow="fold")
    for one in stored:
        state = one.state
        figures = [f"{number:,}" for number in (state.partition, state.position, state.events, state.models)]
        table.add_row(*figures, size(one.size_bytes), local_time(one.taken_at), one.by)
    print(f"Of {record.active}, in {repository.url}:")  # noqa: T201
    printer().print(table, crop=False)


def _stored_json(generation: str, one: StoredSnapshot) -> dict[str, Any]:
    return {
        "generation": generation,
        "partition": one.state.partition,
        "position": one.state.position,
        "events": one.state.events,
        "models": one.state.models,
        "size_bytes": one.size_bytes,
        "taken_at": one.taken_at,
        "by": one.by,
        "files": len(one.files),
    }


async def _awaited(work: Awaitable[Any]) -> None:
    await work


def _print(found: Sequence[Snapshot], done: str, *, json: bool) -> None:
    if json:
        for one in found:
            print(shown(document("snapshot", _as_json(one))))  # noqa: T201
        return
    if not found:
        print(f"No snapshot was {done}." if done else "No snapshots.")  # noqa: T201
        return
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(done or "snapshot", no_wrap=True)
    table.add_column("taken", no_wrap=True)
    for name in ("events", "models", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("positions", overflow="fold")
    for one in found:
        table.add_row(
            one.id,
            local_time(one.taken_at),
            f"{one.events:,}",
            f"{one.models:,}",
            size(one.size_bytes),
            ", ".join(f"{number}@{position:,}" for number, position in sorted(one.positions.items())),
        )
    printer().print(table, crop=False)


def _as_json(one: Snapshot) -> dict[str, Any]:
    return {
        "id": one.id,
        "taken_at": one.taken_at,
        "projection": one.of.projection,
        "version": one.of.version,
        "fingerprint": one.of.fingerprint,
        "topic": one.of.topic,
        "positions": one.positions,
        "events": one.events,
        "models": one.models,
        "size_bytes": one.size_bytes,
    }
