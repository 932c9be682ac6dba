"""What a command is about to do with read models, and whether that is agreed to."""

from __future__ import annotations

import select
import sys
from datetime import timedelta

from rich.console import Console

from streams.cli.output import duration, size
from streams.cli.parts import Wired
from streams.control.record import Policy, Record
from streams.control.status import StateView, view_state
from streams.control.strategies import FromBeginning, FromCheckpoint, RebuildStrategy, SpecificStreams
from streams.errors import StoreCorrupt

__all__ = ["agree_to_beside", "agree_to_rebuild", "agreed", "agreed_or_end", "can_ask"]

_LOOK_S = 0.1


def agree_to_rebuild(console: Console, wired: Wired, strategy: RebuildStrategy) -> None:
    """Say what a rebuild will do, and ask.

    There is nothing to ask where there are no models yet, and where those that there are stay as they are.

    Raises:
        SystemExit: The answer is no, or nobody can be asked; nothing was changed.
    """
    if isinstance(strategy, FromCheckpoint):
        return
    try:
        state = view_state(wired.store)
        if state is None:
            return
        now = f"build {state.build.manifest.build} with {state.models:,} models"
    except StoreCorrupt as error:
        state, now = None, f"it cannot be read ({error})"
    cluster = wired.events.cluster
    marks = cluster.watermarks(cluster.topic(wired.events.topic))
    which = "those of these streams are replaced" if isinstance(strategy, SpecificStreams) else "they are replaced"
    lines = [
        f"This rebuilds {wired.projection.name!r} {strategy} of topic {wired.events.topic!r}.",
        f"  models  {wired.store.directory.absolute()}, {now}; {which}",
    ]
    if isinstance(strategy, FromBeginning):
        events = sum(one.high - one.low for one in marks.values())
        where = ", ".join(f"{number}: {one.low:,} to {one.high:,}" for number, one in sorted(marks.items()))
        lines.append(f"  events  up to {events:,}, by partition from offset {where}")
        lines.append(f"  time    {_expected(state, events)}")
    elif isinstance(strategy, SpecificStreams):
        lines.append("  events  all of these streams, up to where the models are")
    else:
        where = ", ".join(f"{number}: {one.high:,}" for number, one in sorted(marks.items()))
        lines.append(f"  events  from there, or from the newest snapshot before it, to the end, by partition {where}")
    console.print("\n".join(lines), soft_wrap=True)
    agreed_or_end(console)


def agreed_or_end(console: Console) -> None:
    """Ask whether to go on with what was just said.

    Raises:
        SystemExit: The answer is no, or nobody can be asked; nothing was changed.
    """
    if not can_ask(console):
        console.print("refold: nothing was changed. Say --yes to do it.")
        raise SystemExit(2)
    if not agreed(console, "Go on?"):
        console.print("Nothing was changed.")
        raise SystemExit(2)


def can_ask(console: Console) -> bool:
    """Say whether there is somebody who could answer."""
    return console.is_terminal and sys.stdin.isatty()


def agreed(console: Console, question: str) -> bool:
    """Ask, and say whether the answer is yes.

    Raises:
        KeyboardInterrupt: An interrupt is the answer.
    """
    console.print(f"{question} [y/N] ", end="")
    try:
        # Not `input`: an interrupt that comes just before it reads would wait for the answer too.
        while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
            pass
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; nothing was changed.") from None
    return answer.strip().lower() in ("y", "yes")


def agree_to_beside(console: Console, wired: Wired, record: Record, policy: Policy, keep: timedelta) -> None:
    """Say what a rebuild beside the live generation will do, and ask.

    Raises:
        SystemExit: The answer is no, or nobody can be asked; nothing was changed.
    """
    state = view_state(wired.store)
    cluster = wired.events.cluster
    marks = cluster.watermarks(cluster.topic(wired.events.topic))
    events = sum(one.high - one.low for one in marks.values())
    size_now = "unknown, for the active generation is not on this machine" if state is None else size(state.size_bytes)
    where = ", ".join(f"{number}: {one.low:,} to {one.high:,}" for number, one in sorted(marks.items()))
    console.print(
        "\n".join(
            [
                f"This folds topic {wired.events.topic!r} into a new generation of {wired.name!r}, beside "
                f"{record.active}, which goes on being folded and read.",
                f"  models  {wired.state_dir.absolute()}; those of {record.active} take {size_now}",
                f"  events  up to {events:,}, by partition from offset {where}",
                f"  time    {_expected(state, events)}",
                f"  switch  {_SWITCHES[policy]}; {record.active} is kept for {duration(keep.total_seconds())}",
            ]
        ),
        soft_wrap=True,
    )
    agreed_or_end(console)


_SWITCHES: dict[Policy, str] = {
    "identical": "by itself, if all models are identical: the code is the same",
    "report": "once you have seen which models differ, and how",
    "validate": "by itself, if the projection's validate expects all that differs",
    "none": "by itself, without a comparison",
}


def _expected(state: StateView | None, events: int) -> str:
    rate = 0.0 if state is None or state.rebuild is None else state.rebuild.events_per_second
    if not rate:
        return "unknown before it runs: there is no earlier rebuild to go by"
    return f"about {duration(events / rate)}, at the {rate:,.0f} events/s of the last rebuild"
