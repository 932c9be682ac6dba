"""What becomes of an event that cannot be folded. The seam is `RecoveryPolicy`; settings make a `Recovery`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from streams.config import FoldSettings, OnError

__all__ = ["Action", "Failure", "Kind", "Recovery", "RecoveryPolicy", "recovery_of"]


class Kind(StrEnum):
    """Why an event is not folded."""

    UNDECODABLE = "undecodable"
    """The record is no event, or no codec's."""
    FAILED = "failed"
    """The projection raised."""
    UNSTORABLE = "unstorable"
    """The model that it gave would not come back from the store as it went in."""
    HELD = "held"
    """Nothing is wrong with it: an event before it in its model's order could not be folded. No policy is asked."""


Action: TypeAlias = Literal["halt", "retry", "skip", "dead-letter"]
"""halt: fold the partition no further. retry: try the event again in a moment; only where what failed may pass. skip:
go on without it, as if it had never been written; it is kept as a dead letter that nothing waits for. dead-letter: keep
it, and all later events of its model behind it, to be folded in their order once a person has seen to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One event that could not be folded."""

    kind: Kind
    error: str
    """What went wrong, in one line."""
    topic: str
    partition: int
    offset: int
    is_rebuild: bool
    """Whether it is folded by a rebuild: it lies in front of the end that was pinned when that began."""
    is_transient: bool = False
    """The projection raised `TransientError`: the same event may be folded later."""
    attempt: int = 1
    """How often it was tried by now, by this process."""
    skipped: int = 0
    """How many events of its partition this generation has skipped."""
    event_id: str | None = None
    model_id: str | None = None


@runtime_checkable
class RecoveryPolicy(Protocol):
    """Decides what becomes of events that cannot be folded (reference: Recovery Strategies).

    It goes to where agents run, so it must be picklable; and it is asked again for the same event after a crash.
    """

    @property
    def keeps(self) -> bool:
        """Whether it may ever answer "skip" or "dead-letter": then there is to be a topic of dead letters."""
        ...

    def decide(self, failure: Failure) -> Action:
        """Say what becomes of an event. Called for each that fails, and for no other; not for those held behind it.

        "retry" for a failure that is not transient counts as "halt".
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The policy that settings make: one action for each kind of failure, apart for live folding and rebuilds."""

    live: dict[Kind, Action] = field(default_factory=dict)
    """One that is not named halts."""
    rebuild: dict[Kind, Action] = field(default_factory=dict)
    """Likewise."""
    skip_budget: int = 100
    """So many events may be skipped in each partition of a generation; the next one halts it."""
    attempts: int = 5
    """How often an event is tried at which the projection raised `TransientError`."""

    @property
    def keeps(self) -> bool:
        """See RecoveryPolicy."""
        return bool({"skip", "dead-letter"} & {*self.live.values(), *self.rebuild.values()})

    def decide(self, failure: Failure) -> Action:
        """See RecoveryPolicy."""
        if failure.is_transient and failure.attempt < self.attempts:
            return "retry"
        action = (self.rebuild if failure.is_rebuild else self.live).get(failure.kind, "halt")
        return "halt" if action == "skip" and failure.skipped >= self.skip_budget else action


def recovery_of(settings: FoldSettings) -> Recovery:
    """Make the policy that settings ask for."""
    table = settings.recovery
    kinds = (Kind.UNDECODABLE, Kind.FAILED, Kind.UNSTORABLE)

    def actions(given: OnError | Mapping[Any, OnError] | None) -> dict[Kind, Action]:
        if given is None or isinstance(given, str):
            return dict.fromkeys(kinds, given or settings.on_error)
        return {kind: given.get(kind.value, settings.on_error) for kind in kinds}

    return Recovery(
        live=actions(table.live),
        rebuild=actions(table.rebuild),
        skip_budget=table.skip_budget,
        attempts=table.attempts,
    )
