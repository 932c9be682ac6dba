"""Driving a rebuild beside the live generation from the command line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from rich.console import Console

from streams.cli.output import document, local_time, shown
from streams.cli.parts import Wired
from streams.cli.plan import agreed, can_ask
from streams.cli.progress import reporter_for
from streams.cli.report import print_report, summed
from streams.cli.signals import drained_by_signals
from streams.cli.whole import check_whole
from streams.control.generations import Generations
from streams.control.record import Record
from streams.control.reporters import ProgressReporter
from streams.errors import ApprovalPending, RebuildCancelled

__all__ = ["drive", "is_live", "print_end"]


def is_live(wired: Wired) -> bool:
    """Say whether somebody folds the active generation now."""
    return bool(wired.events.cluster.members(wired.group))


def drive(
    console: Console,
    wired: Wired,
    generations: Generations,
    work: Callable[[list[ProgressReporter]], Coroutine[Any, Any, Record]],
    *,
    json: bool,
) -> None:
    """Go on with a rebuild until the switch, or until it waits for a person; print how it ended.

    Args:
        console: Where progress is shown.
        wired: The projection.
        generations: Drives.
        work: Gives what is to be done, for who is to be told of the progress.
        json: Print the record as one JSON object.

    Raises:
        ApprovalPending: It waits for a person.
        RebuildCancelled: It was cancelled meanwhile.
        DeadLettersLeft: The switch is made, and some events are not in their models.
    """
    with drained_by_signals(generations.stop, exit_code=130):
        record = asyncio.run(_awaited(work([reporter_for(console)])))
    rebuild = record.rebuild
    assert rebuild is not None, "it was driven"
    if rebuild.is_running and can_ask(console) and not json:
        report = generations.last_report(rebuild.generation)
        if report is not None:
            print_report(console, report, wired.events.topic)
            if agreed(console, f"Switch {wired.name} to {report.after}?"):
                return drive(console, wired, generations, lambda told: generations.switch(reporters=told), json=json)
    print_end(record, wired.called, json=json)
    if generations.is_orphan and not json:
        console.print(
            f"Nobody folds {record.active} now: `refold run {wired.called}` does, from where it is.", soft_wrap=True
        )
    if rebuild.is_running:
        raise ApprovalPending(
            f"{rebuild.generation} waits for a person: {rebuild.why}. `refold verify {wired.called}` shows what "
            f"differs, `refold switch {wired.called}` approves it, and `refold cancel {wired.called}` gives it up.",
            projection=wired.name,
        )
    if rebuild.outcome == "cancelled":
        raise RebuildCancelled(
            f"The rebuild of {wired.name!r} was cancelled; {record.active} is active.", projection=wired.name
        )
    check_whole(wired.name, wired.called, rebuild.dead_letters, rebuild.skipped)
    return None


async def _awaited(work: Coroutine[Any, Any, Record]) -> Record:
    return await work


def print_end(record: Record, called: str, *, json: bool) -> None:
    """Print what is active by now, and how the last rebuild ended."""
    if json:
        print(shown(document("record", record_json(record))))  # noqa: T201
        return
    rebuild, kept = record.rebuild, record.kept
    report = None if rebuild is None or rebuild.report is None else f" ({summed(rebuild.report)})"
    until = "" if kept is None or kept.kept_until is None else f" until {local_time(kept.kept_until)}"
    back = "" if kept is None else f"; {kept.id} is kept{until}, `refold rollback {called}` goes back"
    print(f"{record.active} is active{report or ''}{back}.")  # noqa: T201


def record_json(record: Record) -> dict[str, Any]:
    """Give a record as one object."""
    import msgspec

    facts: dict[str, Any] = msgspec.to_builtins(record, str_keys=True)
    facts.pop("schema")  # of the registry's own form
    return facts
