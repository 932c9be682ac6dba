"""What a command is about to do with read models, and whether that is agreed to."""

from __future__ import annotations

import select
import sys

from rich.console import Console

from streams.cli.output import duration, size
from streams.cli.request import Request
from streams.control.planning import World
from streams.control.record import Policy

__all__ = ["agreed", "agreed_or_end", "can_ask", "plan_lines"]

_LOOK_S = 0.1


def plan_lines(request: Request, worlds: list[World], policies: list[Policy]) -> list[str]:
    """Write what a rebuild is about to do.

    Args:
        request: What was asked for.
        worlds: Each projection as it is found.
        policies: For each, what its comparison must find.
    """
    lines = []
    if len(worlds) > 1:
        lines.append(f"This rebuilds {len(worlds)} projections, {request.parallel} at once.")
    for world, policy in zip(worlds, policies, strict=True):
        lines += _lines(request, world, policy)
    return lines


def _lines(request: Request, world: World, policy: Policy) -> list[str]:
    if world.manner == "beside":
        head = (
            f"This folds topic {world.topic!r} into a new generation of {world.projection!r}, beside {world.active}, "
            "which goes on being folded and read."
        )
    else:
        head = f"This rebuilds {world.projection!r} {request.strategy} of topic {world.topic!r}."
    lines = [head, f"  models   {_models(world)}", f"  disk     {_disk(world)}", f"  events   {_events(world)}"]
    gone = _gone(world)
    if gone:
        lines.append(f"  gone     {gone}")
    if world.manner in ("beside", "in-place"):
        lines.append(f"  time     {_expected(world)}")
    lines.append(f"  readers  {_READERS[world.manner].format(active=world.active)}")
    if world.manner == "beside":
        kept = duration(request.keep.total_seconds())
        lines.append(f"  switch   {_SWITCHES[policy]}; {world.active} is kept for {kept}")
    lines.append(f"  group    {world.group}: {', '.join(world.members) or 'nobody is in it'}")
    return lines


def _models(world: World) -> str:
    if world.unreadable:
        return f"{world.directory}, it cannot be read ({world.unreadable})"
    if world.build is None:
        return f"{world.directory}; there are none on this machine"
    now = f"build {world.build} with {world.models or 0:,} models"
    if world.manner == "beside":
        return f"{world.directory}; {world.active} has {now}"
    which = {
        "in-place": "they are replaced",
        "streams": "those of these streams are replaced",
        "onward": "they are gone on with, or those of a snapshot",
    }[world.manner]
    return f"{world.directory}, {now}; {which}"


def _disk(world: World) -> str:
    free = "unknown" if world.free_bytes is None else size(world.free_bytes)
    if world.models_bytes is None:
        return f"unknown before it runs, for there are no models on this machine to go by; {free} free"
    if world.manner in ("streams", "onward"):
        return f"the models take {size(world.models_bytes)}; {free} free"
    short = world.free_bytes is not None and world.models_bytes > world.free_bytes
    warning = ", WHICH IS TOO LITTLE" if short else ""
    return f"about {size(world.models_bytes)} more until the old models are removed; {free} free{warning}"


def _events(world: World) -> str:
    if world.manner == "streams":
        return "all of these streams, up to where the models are"
    if world.manner == "onward":
        where = ", ".join(f"{number}: {end:,}" for number, end in world.ends.items())
        return f"from there, or from the newest snapshot before it, to the end, by partition {where}"
    where = ", ".join(f"{number}: {world.starts[number]:,} to {end:,}" for number, end in world.ends.items())
    return f"up to {world.events:,}, by partition from offset {where}"


def _gone(world: World) -> str:
    parts = []
    if world.deleted and world.manner in ("beside", "in-place"):
        where = ", ".join(f"{number}: {start:,}" for number, start in world.starts.items() if start)
        parts.append(f"{world.deleted:,} offsets that retention has deleted, by partition the first {where}")
    if world.is_compacted:
        parts.append("all but the last event of each stream, for the topic is compacted")
    return "; ".join(parts)


def _expected(world: World) -> str:
    if world.seconds is None:
        return "unknown before it runs: there is no earlier rebuild to go by"
    if not world.events_per_second:
        return f"about {duration(world.seconds)}, by what its author says of it; none was measured yet"
    return f"about {duration(world.seconds)}, at the {world.events_per_second:,.0f} events/s of the last rebuild"


_READERS = {
    "beside": "those of {active}, as it goes on, until the switch; then all new ones at once",
    "in-place": "the models as far as they are rebuilt; who has opened them before sees the old ones",
    "streams": "the old models of these streams, until all of them are replaced at once",
    "onward": "the models, as they are folded on",
}
_SWITCHES: dict[Policy, str] = {
    "identical": "by itself, if all models are identical: the code is the same",
    "report": "once you have seen which models differ, and how",
    "validate": "by itself, if the projection's validate expects all that differs",
    "none": "by itself, without a comparison",
}


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
