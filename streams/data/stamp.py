"""What refold commits beside each offset."""

from __future__ import annotations

import time

import msgspec

from streams.prepared import prepared

__all__ = ["Pinned", "Stamp"]

_MAX_ID_CHARS = 256  # the broker's offset.metadata.max.bytes is 4096 by default


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """One partition's part of a rebuild, as every process is to know it."""

    start: int
    """Where its fold began."""
    target: int
    """Its end, as pinned when the rebuild began."""
    events: int = 0
    """Events that its models had been folded of before the rebuild."""
    declined: int = 0
    """Of these, those that were declined."""
    since_ms: int
    """When the process began that is at it now, in milliseconds since 1970."""
    since_position: int
    """Where its store was then."""
    since_events: int = 0
    """Events in its store then."""


class Stamp(msgspec.Struct, frozen=True, kw_only=True, tag_field="refold", tag=2):
    """What refold commits beside each offset: which state it is the position of.

    An offset that anybody else set is known by its absence.
    """

    generation: str
    build: int
    directory: str
    """The id of the state directory."""
    fingerprint: str
    events: int = 0
    declined: int = 0
    models: int = 0
    dead_letters: int = 0
    """Events that wait as dead letters."""
    skipped: int = 0
    """Events that were left out because they could not be folded."""
    last_event_id: str | None = None
    last_event_time: str | int | None = None
    record_ms: int | None = None
    """Kafka's timestamp of the record folded last."""
    furthest: int = 0
    """The furthest position that the group was told of this state: a process that begins anew, with no copy of what
    another one had folded, is behind it for a while."""
    furthest_events: int = 0
    """Events folded or declined by then."""
    time_ms: int = 0
    claimed: bool = False
    """Set by a rebuild that is about to begin, and has no member in the group yet."""
    halted: str | None = None
    """Why the partition is folded no further."""
    pinned: Pinned | None = None
    """The rebuild that folds it, if one does."""
    held: str = ""
    """The wish by which nothing more of it is repartitioned for a moment; see `Hold`."""

    def encode(self) -> str:
        """Write the stamp as offset metadata."""
        short = self.last_event_id if len(self.last_event_id or "") <= _MAX_ID_CHARS else None
        halted = None if self.halted is None else self.halted[:_MAX_ID_CHARS]
        time = self.last_event_time if len(str(self.last_event_time)) <= _MAX_ID_CHARS else None
        stamp = msgspec.structs.replace(self, last_event_id=short, last_event_time=time, halted=halted)
        return msgspec.json.encode(stamp).decode()

    def reached(self, position: int) -> tuple[int, int]:
        """Give the furthest position so far, and the events by then.

        Args:
            position: That which this stamp was committed with.
        """
        return max(self.furthest, position), max(self.furthest_events, self.events)

    def age_s(self) -> float:
        """Give how long ago it was written, in seconds, as far as the clocks agree."""
        return max(0.0, time.time() - self.time_ms / 1000)

    def is_fresh_claim(self, patience_s: float) -> bool:
        """Say whether somebody is about to begin by it; one who was killed on the way is waited for so long."""
        return self.claimed and self.age_s() < patience_s

    @classmethod
    def parse(cls, metadata: str) -> Stamp | None:
        """Read a stamp; None where the metadata is none of ours."""
        try:
            return msgspec.json.decode(metadata, type=cls)
        except msgspec.MsgspecError:
            return None


prepared(Stamp)
