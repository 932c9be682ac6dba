"""What `refold rebuild` was asked for, and the plan that `refold apply` goes by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec

from streams.cli.parts import stream_ids
from streams.control.begin import Approve
from streams.control.planning import World
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
from streams.errors import ConfigError, PlanStale

__all__ = ["Plan", "Request", "parse_strategy", "read_plan"]

VALID = timedelta(hours=1)
"""How long a plan may be applied."""
_SCHEMA: Literal["refold.plan/1"] = "refold.plan/1"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A rebuild's arguments; see `refold rebuild`."""

    projections: tuple[str, ...]
    from_: str = msgspec.field(default="beginning", name="from")
    snapshot_every: int | None = None
    retries: int = 0
    workers: int = 1
    in_place: bool = False
    beside: bool = False
    verify: Policy | None = None
    approve: Approve = "ask"
    keep_minutes: float = 60.0
    parallel: int = 1
    adopt: bool = False

    @property
    def strategy(self) -> RebuildStrategy:
        """Where it begins."""
        return parse_strategy(self.from_)

    @property
    def keep(self) -> timedelta:
        """For how long the old models are kept."""
        return timedelta(minutes=self.keep_minutes)

    @property
    def retry(self) -> Retry | None:
        """How it is tried again."""
        return Retry(attempts=self.retries + 1) if self.retries else None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A rebuild that is to be made later, and the world that it was planned for. No client setting is in it."""

    schema: Literal["refold.plan/1"] = _SCHEMA
    made_at: datetime
    expires_at: datetime
    request: Request
    options: dict[str, Any]
    """Flags and variables that say where things are."""
    worlds: tuple[World, ...]
    """One for each projection."""

    @classmethod
    def of(cls, request: Request, options: dict[str, Any], worlds: tuple[World, ...]) -> Plan:
        """Make a plan as of now."""
        now = datetime.now(UTC)
        return cls(made_at=now, expires_at=now + VALID, request=request, options=options, worlds=worlds)

    def write(self, path: Path) -> None:
        """Write it to a file.

        Raises:
            ConfigError: It cannot be written.
        """
        try:
            path.write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        except OSError as error:
            raise ConfigError(f"--plan-out: {path} cannot be written: {error.strerror}.") from error


def read_plan(path: Path) -> Plan:
    """Read a plan from a file.

    Raises:
        ConfigError: It cannot be read, or is no plan.
        PlanStale: It has expired.
    """
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path} is no plan of this version of refold ({_SCHEMA}): {error}.") from error
    if plan.expires_at < datetime.now(UTC):
        raise PlanStale(
            f"The plan in {path} was made {plan.made_at:%Y-%m-%d %H:%M:%S} UTC, and held until "
            f"{plan.expires_at:%H:%M:%S}. Nothing was changed. Make another one: "
            f"`refold rebuild {' '.join(plan.request.projections)} --plan-out {path}`."
        )
    return plan


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
