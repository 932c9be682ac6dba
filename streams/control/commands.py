"""Commands: what a person or a program asks a fleet to do with a projection, and what its leader makes of them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from streams.control import wishes
from streams.control.in_place import begun_in_place, halted
from streams.control.record import Done, Policy, Record
from streams.errors import ConfigError, CqrsError, NotReady
from streams.prepared import prepared

__all__ = ["VERBS", "Command", "Options", "Verb", "apply", "checked"]

Verb: TypeAlias = Literal[
    "rebuild", "verify", "switch", "rollback", "retire", "pause", "resume", "cancel", "keep-models"
]
VERBS: tuple[str, ...] = get_args(Verb)


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be said with a command."""

    policy: Policy | None = None
    """rebuild: what the comparison must have found for a switch; by default see `begin.default_policy`, which
    the worker asks that was asked."""
    in_place: bool = False
    """rebuild: the active generation itself, and no new one beside it."""
    partitions: tuple[int, ...] | None = None
    """rebuild in place: which; by default all."""
    approve: Literal["ask", "auto"] = "ask"
    """rebuild: who approves a report of differences."""
    keep_seconds: float = 3600.0
    """rebuild, rollback: for how long the generation is kept that was active."""
    revision: int | None = None
    """Of the projection's record, as it was when this was decided: where it has been changed since, this is refused."""
    generation: str | None = None
    """rollback, retire: which one; by default the one that was active last, or all that are kept."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command."""

    id: str
    verb: Verb
    projection: str
    options: Options = Options()
    code: Mapping[str, Any] = {}
    """rebuild: of what the new generation is to be, as the worker has it that was asked (`Site.facts`)."""
    by: str
    """Who gave it."""
    at: datetime

    @classmethod
    def new(cls, verb: Verb, projection: str, by: str, options: Options, code: Mapping[str, Any]) -> Command:
        """Make a command that was never given before."""
        return cls(
            id=secrets.token_hex(8),
            verb=verb,
            projection=projection,
            options=options,
            code=code,
            by=by,
            at=datetime.now(UTC),
        )

    def encode(self) -> bytes:
        """Write it."""
        return msgspec.json.encode(self)

    @classmethod
    def parse(cls, raw: bytes) -> Command:
        """Read it.

        Raises:
            ConfigError: It is none.
        """
        try:
            return msgspec.json.decode(raw, type=cls)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"This is no command: {raw[:80]!r}: {error}.") from error


prepared(Command)


def checked(raw: Any) -> Options:
    """Read options from a request.

    Raises:
        ConfigError: Something is wrong with them.
    """
    try:
        return msgspec.convert(raw, Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"The options are not as they should be: {error}.") from error


def apply(record: Record, command: Command) -> Record:
    """Give the record after a command, which is remembered in it: done, or refused and why.

    Args:
        record: As it is.
        command: What is asked.
    """
    if any(one.id == command.id for one in record.done):
        return record
    done = Done(id=command.id, verb=command.verb, by=command.by, at=datetime.now(UTC))
    try:
        _check_unchanged(record, command)
        changed = _change(command)(record)
    except CqrsError as error:
        refused = msgspec.structs.replace(done, refused=str(error), kind=type(error).__name__)
        return wishes.remembered(record, refused)
    return wishes.remembered(changed, done)


def _check_unchanged(record: Record, command: Command) -> None:
    seen = command.options.revision
    if seen is not None and seen != record.revision:
        raise NotReady(
            f"{record.projection!r} has changed since you looked (revision {seen}, now {record.revision}). Nothing was "
            "done; look again.",
            projection=record.projection,
        )


def _change(command: Command) -> Callable[[Record], Record]:
    options = command.options
    match command.verb:
        case "rebuild" if options.in_place:
            return partial(
                begun_in_place,
                rebuild_id=command.id,
                partitions=options.partitions,
                code=(command.code["version"], command.code["fingerprint"], command.code["codec"]),
                by=command.by,
                why="asked for",
            )
        case "rebuild":
            return partial(
                wishes.begun,
                rebuild_id=command.id,
                facts=command.code,
                policy=options.policy or "report",
                approve=options.approve,
                keep_s=options.keep_seconds,
                by=command.by,
                why="asked for",
            )
        case "verify":
            return wishes.verified_again
        case "switch":
            return wishes.approved
        case "rollback":
            return partial(wishes.rolled_back, to=options.generation, keep_s=options.keep_seconds)
        case "retire":
            return partial(wishes.retiring, id=options.generation, why="retired by hand")
        case "pause":
            return partial(wishes.paused, is_paused=True)
        case "resume":
            return partial(wishes.paused, is_paused=False)
        case "cancel":
            return wishes.cancelled
        case "keep-models":
            return _kept


def _kept(record: Record) -> Record:
    """Have a generation that was halted go on from its models."""
    if not record.live.halted:
        raise NotReady(f"{record.active} is not halted. Nothing was changed.", projection=record.projection)
    return halted(record, record.active, "")
