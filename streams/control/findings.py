"""What somebody who looks over everything finds: ok, a warning or a failure, each with the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from streams.errors import CqrsError

__all__ = ["Finding", "State", "allowed", "failure", "ok", "tried", "warning"]

State = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was looked at, and how it is."""

    what: str
    state: State
    told: str
    """How it is, with the measured value."""
    advice: str = ""
    """The way out; "" where it is ok."""
    error: CqrsError | None = None
    """What a failure was, where an error tells it."""


def ok(what: str, told: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(what=what, state="ok", told=told)


def warning(what: str, told: str, advice: str) -> Finding:
    """Say that something is to be looked at."""
    return Finding(what=what, state="warning", told=told, advice=advice)


def failure(what: str, told: str, advice: str, error: CqrsError | None = None) -> Finding:
    """Say that something does not work."""
    return Finding(what=what, state="failure", told=told, advice=advice, error=error)


def tried(what: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Give findings, the last of which is a failure where the look itself fails; its message names the way out."""
    try:
        yield from look()
    except CqrsError as error:
        yield failure(what, str(error), "", error)


def allowed(what: str, operations: frozenset[str] | None, needs: Iterable[str], where: str) -> Iterator[Finding]:
    """Look whether all is allowed that is needed; None: the cluster does not say."""
    missing = (
        [] if operations is None else [need for need in needs if need not in operations and "ALL" not in operations]
    )
    if missing:
        words = [need.title().replace("_", "") for need in missing]
        yield failure(
            what,
            f"not allowed: {', '.join(words)} on {where}",
            "`kafka-acls.sh --add --allow-principal User:NAME "
            + " ".join(f"--operation {word}" for word in words)
            + f" --{where.split()[0]} {where.split(maxsplit=1)[1]}`",
        )
