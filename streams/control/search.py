"""Finding one event by its id."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from projections.contract import Event
from streams.data.codec import decoded
from streams.data.scan import scan
from streams.data.source import KafkaEventStore
from streams.errors import at
from streams.log import get_logger
from streams.types import TopicInfo, Watermarks

__all__ = ["Found", "Search", "embedded_time"]

log = get_logger(__name__)

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_ULID = re.compile(f"[0-7][{_CROCKFORD}]{{25}}", re.IGNORECASE)
_MAX_MS = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Found:
    """Where an event is."""

    partition: int
    offset: int
    record_ms: int
    """Kafka's timestamp of its record."""


def embedded_time(event_id: str) -> datetime | None:
    """Give the time that a UUIDv7 (RFC 9562) or a ULID carries; None for any other id."""
    milliseconds = None
    if _ULID.fullmatch(event_id):
        milliseconds = 0
        for letter in event_id[:10].upper():
            milliseconds = milliseconds * 32 + _CROCKFORD.index(letter)
    else:
        try:
            parsed = uuid.UUID(event_id)
        except ValueError:
            return None
        if parsed.version == 7:
            milliseconds = parsed.int >> 80
    if milliseconds is None or milliseconds > _MAX_MS:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


class Search:
    """Looks for one event, and remembers how far it looked.

    Args:
        events: The log.
        topic: The same, described.
        watermarks: What each partition has.
        event_id: The event's id, as the codec gives it.
        check: Called now and then; what it raises ends the search.
    """

    def __init__(
        self,
        events: KafkaEventStore,
        topic: TopicInfo,
        watermarks: Mapping[int, Watermarks],
        event_id: str,
        check: Callable[[], None],
    ) -> None:
        self._events = events
        self._topic = topic
        self._marks = watermarks
        self._id = event_id
        self._check = check
        self._read = 0
        self._ranges: dict[int, tuple[int, int]] = {}

    def find(self, skew: timedelta) -> Found | None:
        """Look where the id says, if it says anything, and then everywhere.

        1. An id of the form `topic-partition-offset`, which an event without one of its own gets: there.
        2. A UUIDv7 or a ULID: between its time less `skew` and its time plus `skew`, by Kafka's timestamps.
        3. From the front of each partition to its end.
        """
        # Step 1
        found = self._at_its_own_coordinates()
        # Step 2
        time = embedded_time(self._id)
        if found is None and time is not None:
            found = self._around(time, skew)
        # Step 3
        if found is None:
            log.info("event.searched_everywhere", event_id=self._id, topic=self._topic.name)
            found = self._look({number: (marks.low, marks.high) for number, marks in self._marks.items()})
        return found

    def how_far(self) -> str:
        """Say where was looked last."""
        ranges = ", ".join(
            f"{at(self._topic.name, number)} offsets {low} to {high}"
            for number, (low, high) in sorted(self._ranges.items())
        )
        return f"looked at {self._read:,} events ({ranges})"

    def _at_its_own_coordinates(self) -> Found | None:
        prefix = f"{self._topic.name}-"
        place = re.fullmatch(r"(\d{1,9})-(\d{1,18})", self._id.removeprefix(prefix))
        if not self._id.startswith(prefix) or place is None:
            return None
        partition, offset = int(place[1]), int(place[2])
        marks = self._marks.get(partition)
        if marks is None or not marks.low <= offset < marks.high:
            return None
        return self._look({partition: (offset, offset + 1)})

    def _around(self, time: datetime, skew: timedelta) -> Found | None:
        cluster = self._events.cluster
        starts = cluster.positions_at(self._topic, _ms(time - skew))
        ends = cluster.positions_at(self._topic, _ms(time + skew))
        return self._look({number: (start, ends[number]) for number, start in starts.items()})

    def _look(self, ranges: dict[int, tuple[int, int]]) -> Found | None:
        self._ranges, self._read = ranges, 0
        for records in scan(self._events, ranges, self._check):
            for outcomes in decoded(self._events.codec, records):
                for outcome in outcomes:
                    self._read += 1
                    # What cannot be decoded is not the event that is looked for.
                    if isinstance(outcome, Event) and str(outcome.id) == self._id:
                        record = next(one for one in records if one.offset() == outcome.offset)
                        return Found(outcome.partition, outcome.offset, record.timestamp()[1])
        return None


def _ms(time: datetime) -> int:
    return max(0, int(time.timestamp() * 1000))
