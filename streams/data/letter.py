"""A dead letter: an event that could not be folded, with all that its record had; and what is said of it later.

They are records of the topic `refold.PROJECTION.dead-letters`, in the partition of the same number as the event's:

- a letter has the event's own key, value and headers, and headers of its own that say what it is (`refold-…`);
- a mark has the key, no value, and the same headers: what has become of the letter that has its id;
- a request asks whoever folds the partition to fold some of them again, or to drop them.

The same letter may be there twice where a process was killed in between. Of several records of one id, the last counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from streams.errors import at
from streams.prepared import prepared

__all__ = ["Letter", "Mark", "Request", "Said", "parse", "said", "topic_of"]

PREFIX = "refold-"
_GROUP = "refold-group"


def topic_of(projection: str) -> str:
    """Name the topic of a projection's dead letters."""
    return f"refold.{projection}.dead-letters"


class Kept(Protocol):
    """A record of a topic of dead letters; confluent-kafka's `Message` is one."""

    def partition(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[tuple[str, bytes | None]] | None: ...


class Letter(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An event that was not folded, and why."""

    projection: str
    generation: str
    group: str
    """The consumer group of the generation's fold, by which the letters of one fold are told from those of others."""
    topic: str
    """Of the event, as the next two."""
    partition: int
    offset: int
    timestamp: int
    """Kafka's, of the event's record, in milliseconds since 1970."""
    kind: str
    """See `recovery.Kind`."""
    skipped: bool = False
    """Whether nothing waits for it: what follows was folded without it."""
    error: str
    stream: str | None = None
    """The event's stream; None where it cannot be told."""
    model: str | None = None
    """The id of the model that it was for; None where it cannot be told."""
    event_id: str | None = None
    event_type: str | None = None
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    """Those of the event's own record."""

    @property
    def id(self) -> str:
        """What it is known by."""
        return letter_id(self.group, self.topic, self.partition, self.offset)

    @property
    def where(self) -> str:
        """The event's coordinates."""
        return at(self.topic, self.partition, self.offset)

    def record(self) -> dict[str, Any]:
        """Give the record that it is in its topic, as a producer takes it."""
        own, place = _of_partition(self.projection, self.generation, self.group, self.topic, self.partition)
        headers = [
            *self.headers,
            *own,
            ("refold-id", b"%b%d" % (place, self.offset)),
            ("refold-offset", b"%d" % self.offset),
            ("refold-timestamp", b"%d" % self.timestamp),
            ("refold-kind", self.kind.encode()),
            ("refold-action", b"skip" if self.skipped else b"dead-letter"),
            ("refold-error", self.error.encode()),
        ]
        if self.stream is not None:
            headers.append(("refold-stream", self.stream.encode()))
        if self.model is not None:
            headers.append(("refold-model", self.model.encode()))
        if self.event_id is not None:
            headers.append(("refold-event-id", self.event_id.encode()))
        if self.event_type is not None:
            headers.append(("refold-event-type", self.event_type.encode()))
        return {"partition": self.partition, "key": self.key, "value": self.value, "headers": headers}


@lru_cache(maxsize=1024)
def _of_partition(
    projection: str, generation: str, group: str, topic: str, partition: int
) -> tuple[list[tuple[str, bytes]], bytes]:
    """Give what all letters of a partition say, and how their ids begin. There may be very many of one partition."""
    told = {"projection": projection, "generation": generation, "group": group, "topic": topic}
    headers = [(PREFIX + name, value.encode()) for name, value in told.items()]
    return [*headers, ("refold-partition", b"%d" % partition)], f"{group}/{at(topic, partition)}@".encode()


class Mark(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What has become of a letter."""

    id: str
    partition: int
    offset: int
    """Of the event."""
    group: str
    result: str
    """folded: it is in its model now. failed: it was tried again in vain, and waits on. dropped: it never will be."""
    kind: str = ""
    """Why it waits now, where it failed again."""
    error: str = ""
    """What went wrong then."""
    request: str = ""
    """The id of the request that it answers; "" where it answers none."""
    key: bytes | None = None

    @classmethod
    def of(cls, letter: Letter, result: str, request: str = "") -> Mark:
        """Say what has become of a letter."""
        return cls(
            id=letter.id,
            partition=letter.partition,
            offset=letter.offset,
            group=letter.group,
            result=result,
            request=request,
            key=letter.key,
        )

    def record(self) -> dict[str, Any]:
        """See Letter."""
        told = {
            "id": self.id,
            "group": self.group,
            "offset": str(self.offset),
            "result": self.result,
            "kind": self.kind,
            "error": self.error,
            "by": self.request,
        }
        headers = [(PREFIX + name, value.encode()) for name, value in told.items()]
        return {"partition": self.partition, "key": self.key, "value": None, "headers": headers}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody asks for, of letters of one partition."""

    id: str
    verb: Literal["retry", "drop", "done"]
    """done: the answer of whoever has carried it out."""
    group: str
    partition: int
    offsets: list[int] | None = None
    """Of the events; None for any."""
    models: list[str] | None = None
    """Ids of models, or streams; None for any."""

    def record(self) -> dict[str, Any]:
        """See Letter."""
        return {
            "partition": self.partition,
            "key": None,
            "value": msgspec.json.encode(self),
            "headers": [(PREFIX + "request", self.id.encode()), (_GROUP, self.group.encode())],
        }

    def wants(self, offset: int, model: str | None, stream: str | None) -> bool:
        """Say whether a letter is among those that it is for."""
        if self.offsets is not None and offset not in self.offsets:
            return False
        return self.models is None or model in self.models or stream in self.models


Said: TypeAlias = Letter | Mark | Request
"""What a record of the topic says."""

prepared(Letter, Request)


def letter_id(group: str, topic: str, partition: int, offset: int) -> str:
    """Give what a letter is known by."""
    return f"{group}/{at(topic, partition, offset)}"


def parse(
    partition: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]] | None,
    group: str,
) -> Said | None:
    """Read a record of a topic of dead letters; None for one of another group, or that refold did not write."""
    if headers is None or (_GROUP, group.encode()) not in headers:
        return None
    found = {name.removeprefix(PREFIX): text for name, text in headers if name.startswith(PREFIX)}
    try:
        if "request" in found:
            return None if value is None else msgspec.json.decode(value, type=Request)
        told = {name: (text or b"").decode() for name, text in found.items()}
        if "result" in told:
            return _mark(partition, key, told)
        own = tuple((name, text) for name, text in headers if not name.startswith(PREFIX))
        return _letter(partition, key, value, own, told)
    except (KeyError, ValueError, msgspec.MsgspecError):
        return None


def said(record: Kept, group: str) -> Said | None:
    """Read a record of a topic of dead letters, as a client gives it; see `parse`."""
    return parse(record.partition(), record.key(), record.value(), record.headers(), group)


def _mark(partition: int, key: bytes | None, told: Mapping[str, str]) -> Mark:
    return Mark(
        id=told["id"],
        partition=partition,
        offset=int(told["offset"]),
        group=told["group"],
        result=told["result"],
        kind=told["kind"],
        error=told["error"],
        request=told["by"],
        key=key,
    )


def _letter(
    partition: int,
    key: bytes | None,
    value: bytes | None,
    headers: tuple[tuple[str, bytes | None], ...],
    told: Mapping[str, str],
) -> Letter:
    return Letter(
        projection=told["projection"],
        generation=told["generation"],
        group=told["group"],
        topic=told["topic"],
        partition=partition,
        offset=int(told["offset"]),
        timestamp=int(told["timestamp"]),
        kind=told["kind"],
        skipped=told["action"] == "skip",
        error=told["error"],
        stream=told.get("stream"),
        model=told.get("model"),
        event_id=told.get("event-id"),
        event_type=told.get("event-type"),
        key=key,
        value=value,
        headers=headers,
    )
