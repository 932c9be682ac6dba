"""One partition of the event topic, as whoever repartitions it has it: where it is, and what keeps it from going on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeAlias

from projections.contract import Event
from streams.data.codec import Undecodable
from streams.data.failures import brief, failed
from streams.data.job import Repartition
from streams.data.partition import PartitionStatus, Phase
from streams.data.recovery import Action, Failure, Kind
from streams.data.stamp import Stamp
from streams.errors import CqrsError, EventError, ForeignOffset, HistoryIncomplete, ProjectionError, at
from streams.types import Committed

__all__ = ["FIRST_RETRY_S", "SourcePartition", "Told"]

FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0

Told = tuple[int, str, str | None]
"""What the group is told: the position, the wish by which it is held, and why it has halted."""


Refusal: TypeAlias = EventError | ProjectionError


@dataclass(slots=True)
class SourcePartition:
    """One partition of the event topic that a member has."""

    job: Repartition
    number: int
    phase: Phase = Phase.OPENING
    position: int = -1
    """Behind what was written or declined; -1 where that is not known, as long as it is not opened."""
    committed: int = -1
    events: int = 0
    declined: int = 0
    record_ms: int | None = None
    error: CqrsError | None = None
    stalls: int = 0
    retry_at: float = 0.0
    held: str = ""
    """The wish by which it is held."""
    until: int | None = None
    """Where to be held."""
    told: Told = (-1, "", None)
    """What the group was told last."""
    _tried: tuple[int, int] = (-1, 0)
    """An event whose model could not be told just now, and how often that was tried."""

    @property
    def where(self) -> str:
        """It, for a message."""
        return at(self.job.topic.name, self.number)

    @property
    def to_tell(self) -> Told:
        """What the group is to be told."""
        return self.position, self.held, str(self.error) if self.phase is Phase.HALTED else None

    def stamp(self) -> Stamp:
        """Give what is committed beside the position."""
        return Stamp(
            generation=self.job.generation,
            build=0,
            directory=self.job.mark,
            fingerprint="",
            events=self.events,
            declined=self.declined,
            record_ms=self.record_ms,
            time_ms=time.time_ns() // 1_000_000,
            halted=self.to_tell[2],
            held=self.held,
        )

    def status(self) -> PartitionStatus:
        """Give the figures."""
        return PartitionStatus(
            position=self.position,
            committed=self.committed,
            events=self.events,
            declined=self.declined,
            record_ms=self.record_ms,
            phase=self.phase,
            why="" if self.error is None else str(self.error),
        )

    def open(self, committed: Committed | None, low: int, *, is_new: bool) -> None:
        """Begin where the group is; at the first offset where nobody has begun.

        Args:
            committed: The group's offset; None where it has none.
            low: The first offset that the topic still has.
            is_new: Without an offset: nobody has begun.

        Raises:
            ForeignOffset: Somebody has set the offset.
            HistoryIncomplete: It is not known any more, or what comes there is gone.
        """
        job = self.job
        if committed is not None:
            stamp = Stamp.parse(committed.metadata)
            if stamp is None or stamp.directory != job.mark:
                raise ForeignOffset(
                    f"Group {job.group!r} is at {self.where}@{committed.position}, and that was not committed by who "
                    f"fills {job.into.name}: somebody has set it. Whatever was to be achieved by it, a rebuild does it "
                    f"(`refold rebuild {job.projection.name}`): what is in {job.into.name} already would come twice.",
                    projection=job.projection.name,
                    topic=job.topic.name,
                    partition=self.number,
                    offset=committed.position,
                )
            self.position = committed.position
            self.events, self.declined, self.record_ms = stamp.events, stamp.declined, stamp.record_ms
        elif is_new:
            self.position, self.events, self.declined = low, 0, 0
        else:
            raise HistoryIncomplete(
                f"Group {job.group!r} has no offsets any more (Kafka drops those of a group without members after "
                f"offsets.retention.minutes), so it is not known what of {job.topic.name} is in {job.into.name}. The "
                f"models are kept as they are; `refold rebuild {job.projection.name}` makes them anew.",
                projection=job.projection.name,
                topic=job.topic.name,
                partition=self.number,
            )
        if self.position < low:
            raise HistoryIncomplete(
                f"{self.where} begins at offset {low}, and what is folded by model has come to {self.position}: "
                f"{low - self.position} offsets are gone unfolded (retention or a deletion). The models are kept as "
                "they are. Rebuilding folds what is left, if you allow it to be incomplete (--allow-incomplete).",
                projection=job.projection.name,
                topic=job.topic.name,
                partition=self.number,
                offset=self.position,
            )
        self.committed = self.position
        self.phase, self.error, self.stalls = Phase.READY, None, 0
        self.held, self.until = "", None
        self.told = (-1 if committed is None else self.position, "", None)

    def begin_again(self, after_s: float) -> None:
        """Begin where the group is once more, after a while; where it has halted, and the group is there, it stays."""
        if self.phase is not Phase.HALTED or self.position != self.committed:
            self.phase, self.position = Phase.OPENING, -1
            self.retry_at = time.monotonic() + after_s

    def stall(self, error: CqrsError, times: int | None = None) -> None:
        """Go no further for a moment, which is longer each time.

        Args:
            error: Why.
            times: How often it was tried; by default, since it was opened.
        """
        self.stalls += 1
        self.phase, self.error = Phase.STALLED, error
        times = self.stalls if times is None else times
        self.retry_at = time.monotonic() + min(_LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** (times - 1))

    def refused(self, outcome: Event | Undecodable, error: Exception | None) -> tuple[Action, Refusal]:
        """Say what becomes of an event of which no model can be told, and what is raised where it is not passed.

        Args:
            outcome: The event, or why the record is none.
            error: What `extract_model_id` raised; None where the record is no event.
        """
        raised: Refusal
        if isinstance(outcome, Undecodable):
            raised, said, kind = outcome.error(), f"the record is no event: {outcome.reason}", Kind.UNDECODABLE
        else:
            assert error is not None
            raised, said, kind = failed(self.job.projection, outcome, error), brief(error), Kind.FAILED
        is_transient = isinstance(raised, ProjectionError) and raised.is_transient
        attempt = self._tried[1] + 1 if self._tried[0] == outcome.offset else 1
        action = self.job.policy.decide(
            Failure(
                kind=kind,
                error=said,
                topic=outcome.topic,
                partition=outcome.partition,
                offset=outcome.offset,
                is_rebuild=outcome.offset < self.job.ends.get(self.number, 0),
                is_transient=is_transient,
                attempt=attempt,
                event_id=str(outcome.id) if isinstance(outcome, Event) else None,
            )
        )
        if action == "retry" and is_transient:
            self._tried = (outcome.offset, attempt)
            self.stall(raised, attempt)
        return action, raised
