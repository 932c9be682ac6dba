"""One partition that an agent holds: how far it is folded, and whether it can be."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum

from streams.data.answering import Answering
from streams.data.beside import Beside
from streams.data.cut import Cut, Held
from streams.data.fold import Fold
from streams.data.repository import Kept
from streams.data.restoring import Restore
from streams.data.store import StoreState
from streams.data.stores import OpenStore
from streams.errors import CqrsError, EventError, ProjectionError

__all__ = ["HeldPartition", "PartitionStatus", "Phase"]

_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0


class Phase(StrEnum):
    """What a held partition is at.

    opening → restoring → opening → replaying → ready → halted
       ↕                                ↕         ↕
       └──────────────────────────── stalled ─────┘
    """

    OPENING = "opening"
    """The group has given it to us; its store is not open yet."""
    RESTORING = "restoring"
    """Its store is on its way from the snapshot repository."""
    REPLAYING = "replaying"
    """It is read and folded, and has not been at its topic's end since it came here; in status only."""
    READY = "ready"
    """It is read and folded."""
    STALLED = "stalled"
    """Something is in the way that may pass: a store that another process still has open, a silent broker."""
    HALTED = "halted"
    """It is folded no further until a person has seen to it; all before that is committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStatus:
    """How far one partition is folded."""

    position: int
    """The next offset to fold; -1 where its store is not open yet."""
    committed: int
    """The position in the store, with its models; likewise."""
    events: int = 0
    """Events folded or declined since this build began."""
    declined: int = 0
    deleted: int = 0
    """Events at which `apply_to_model` gave None."""
    models: int = 0
    """Models in the store, as committed."""
    dead_letters: int = 0
    """Dead letters that wait to be folded, as committed."""
    skipped: int = 0
    """Events that were left out because they could not be folded, likewise."""
    record_ms: int | None = None
    """Kafka's timestamp of the record folded last, in milliseconds since 1970."""
    phase: Phase = Phase.READY
    why: str = ""
    """What a partition that is restoring, stalled or halted waits for."""
    snapshot: int | None = None
    """The position of its newest snapshot in the repository, as far as that is known."""
    snapshot_ms: int | None = None
    """When that was sent, in milliseconds since 1970."""

    @classmethod
    def of(cls, state: StoreState) -> PartitionStatus:
        """Give how far a partition is whose store nobody has opened yet."""
        return cls(
            position=state.position,
            committed=state.position,
            events=state.events,
            declined=state.declined,
            deleted=state.deleted,
            models=state.models,
            dead_letters=state.dead_letters,
            skipped=state.skipped,
            phase=Phase.OPENING,
        )

    @property
    def is_halted(self) -> bool:
        """Whether it is folded no further."""
        return self.phase is Phase.HALTED


@dataclass(slots=True)
class HeldPartition:
    """One partition that this agent holds, with its fold once its store is open."""

    number: int
    phase: Phase = Phase.OPENING
    store: OpenStore | None = None
    fold: Fold | None = None
    error: CqrsError | None = None
    """Why it is stalled or halted."""
    halt: EventError | ProjectionError | None = None
    """Why the fold is to halt, and where, while everything before that record is folded again."""
    beside: Beside | None = None
    """Some of its streams, that are folded a second time, to replace their models."""
    is_to_be_reopened: bool = False
    """Its store takes nothing more until it is opened anew."""
    is_at_log_end: bool = False
    """Whether what was read last was the end of what the partition has."""
    unsettled: int | None = 0
    """How many models were written since it was opened; None once it has been at its log's end."""
    answering: Answering | None = None
    """What carries out what people ask of its dead letters, where it may have any."""
    cut: Cut | None = None
    """The cut that it is held for."""
    told: Held | None = None
    """What whoever asked for the cut was told last."""
    events_before: int = 0
    reached: tuple[int, int] = (0, 0)
    """How far the group was told that it is, by whoever held it before: position, and events."""
    retry_at: float = 0.0
    is_told: bool = False
    """Whether it was told that it is stalled."""
    restore: Restore | None = None
    """Its store's way here; also once that has come to an end."""
    snapshot: Kept | None = None
    """Its newest snapshot in the repository, as far as that is known."""
    _stalled_since: float = 0.0
    _retries: int = field(default=0)

    def opened(self, store: OpenStore, fold: Fold) -> None:
        """Take on an open store."""
        self.store, self.fold, self.events_before = store, fold, fold.events

    def ready(self) -> None:
        """Be read and folded from now on."""
        self.phase, self.error, self._retries = Phase.READY, None, 0

    def stall(self, error: CqrsError, wait_s: float | None = None) -> float:
        """Wait for a while before the next try; give for how long it has been stalled, in seconds.

        Args:
            error: Why.
            wait_s: How long; by default a little longer each time.
        """
        now = time.monotonic()
        if self.phase is not Phase.STALLED:
            self._stalled_since = now
        self.phase, self.error = Phase.STALLED, error
        if wait_s is None:
            wait_s = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2**self._retries)
        self.retry_at = now + wait_s
        self._retries += 1
        return now - self._stalled_since

    def restoring(self, restore: Restore) -> None:
        """Wait for its store to come."""
        self.phase, self.error, self.restore = Phase.RESTORING, None, restore

    def is_due(self) -> bool:
        """Whether it is to be opened or read on now."""
        if self.phase is Phase.RESTORING:
            return self.restore is None or self.restore.is_over
        return self.phase in (Phase.OPENING, Phase.STALLED) and time.monotonic() >= self.retry_at

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to fold: it is at its end, or it is halted."""
        return self.phase is Phase.HALTED or (self.fold is not None and self.fold.is_at_end)

    def status(self) -> PartitionStatus:
        """Give the figures."""
        why = "" if self.error is None else str(self.error)
        if self.phase is Phase.RESTORING:
            why = str(self.restore)
        if self.fold is None or self.store is None:
            return PartitionStatus(position=-1, committed=-1, phase=self.phase, why=why)
        state = self.store.state
        return PartitionStatus(
            position=self.fold.position,
            committed=self.fold.committed,
            events=self.fold.events,
            declined=self.fold.declined,
            deleted=state.deleted,
            models=state.models,
            dead_letters=state.dead_letters,
            skipped=state.skipped,
            record_ms=self.fold.record_ms,
            phase=Phase.REPLAYING if self.phase is Phase.READY and self.unsettled is not None else self.phase,
            why=why,
            snapshot=None if self.snapshot is None else self.snapshot.position,
            snapshot_ms=None if self.snapshot is None else int(self.snapshot.at.timestamp() * 1000),
        )

    @property
    def folds(self) -> tuple[Fold, ...]:
        """What is fed with its records."""
        assert self.fold is not None
        return (self.fold,) if self.beside is None else (self.fold, self.beside)

    @property
    def reads_from(self) -> int:
        """Where it is to be read from, where it is read anew."""
        return min(fold.position for fold in self.folds)

    @property
    def is_level(self) -> bool:
        """Whether the streams that are folded a second time are where the store is."""
        return (
            self.beside is not None
            and self.fold is not None
            and not self.fold.has_moved
            and (self.beside.position == self.fold.position or self.beside.failure is not None)
        )

    def drop_beside(self) -> None:
        """Fold nothing a second time any more."""
        if self.beside is not None:
            self.beside.close()
        self.beside = None

    def close(self) -> None:
        """Let go of the store, without writing."""
        self.is_to_be_reopened = False
        self.answering = None
        if self.restore is not None:
            self.restore.cancel()
        self.drop_beside()
        if self.fold is not None:
            self.fold.close()
        self.store = self.fold = None
