"""The dead letters of a projection, from any process: what waits and why, and asking for it to be folded or dropped."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from streams.cluster import Cluster
from streams.config import KafkaSettings
from streams.data.letter import Letter, Mark, Request, Said, said, topic_of
from streams.data.letterbox import Letterbox
from streams.data.recovery import Kind
from streams.data.scan import scan
from streams.data.source import KafkaEventStore
from streams.errors import NotReady, TopicNotFound
from streams.types import TopicInfo, Watermarks

__all__ = ["Answer", "DeadLetters", "Standing", "heads"]

_LOOK_S = 0.1

State = Literal["waiting", "skipped", "folded", "dropped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One dead letter, and what has become of it by now."""

    letter: Letter
    """As it was written last; its value may have been left out."""
    state: State
    kind: str
    """Why it waits now; see `recovery.Kind`."""
    error: str
    """What went wrong when it was tried last."""
    size: int
    """Of the event's value, in bytes."""
    written_ms: int
    """When it was first written, in milliseconds since 1970."""
    tried: int = 1
    """How often it was tried, as far as the topic tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What has become of what was asked for."""

    folded: int = 0
    """In their models now."""
    failed: int = 0
    """Tried again in vain."""
    dropped: int = 0
    """Never to be folded."""
    silent: tuple[int, ...] = ()
    """Partitions that nobody has answered for in time; the request stays, and is carried out by whoever folds them."""

    @property
    def is_whole(self) -> bool:
        """Whether all was carried out, and nothing has failed."""
        return not (self.failed or self.silent)


class DeadLetters:
    """Reads and writes the topic of one projection's dead letters. Any machine may; no state is needed.

    Args:
        kafka: Where Kafka is.
        projection: The projection's name.
        generation: Of which of its generations.
        group: That one's consumer group, by which its letters are known.
    """

    def __init__(self, kafka: KafkaSettings, projection: str, generation: str, group: str) -> None:
        self._kafka = kafka
        self._cluster = Cluster(kafka)
        self._projection = projection
        self._generation = generation
        self._group = group

    @property
    def topic(self) -> str:
        """The topic's name."""
        return topic_of(self._projection)

    def all(self, *, values: bool = False) -> list[Standing]:
        """Give every letter of the generation, by partition, stream and offset.

        Args:
            values: With the events' own values and headers, which may be large.

        Raises:
            BrokerError: The topic cannot be read.
        """
        found: dict[str, Standing] = {}
        for said_, _, written_ms in self._read():
            if isinstance(said_, Request):
                continue
            known = found.get(said_.id)
            if isinstance(said_, Letter):
                size = len(said_.value or b"")
                letter = said_ if values else msgspec.structs.replace(said_, value=None, headers=[])
                found[said_.id] = Standing(
                    letter=letter,
                    state="skipped" if letter.skipped else "waiting",
                    kind=letter.kind,
                    error=letter.error,
                    size=size,
                    written_ms=written_ms if known is None else known.written_ms,
                )
            elif known is not None:
                found[said_.id] = _marked(known, said_)
        return sorted(
            found.values(), key=lambda one: (one.letter.partition, one.letter.stream or "", one.letter.offset)
        )

    def waiting(self) -> list[Standing]:
        """Give those that wait."""
        return [one for one in self.all() if one.state == "waiting"]

    def ask(
        self,
        verb: Literal["retry", "drop"],
        wanted: Iterable[Standing],
        *,
        wait_s: float,
    ) -> Answer:
        """Ask whoever folds the generation to fold letters again, or to drop them, and wait for it.

        Args:
            verb: retry: in the order of each model, up to the first that fails again. drop: never fold them; what only
                waited behind them is folded.
            wanted: Which.
            wait_s: How long to wait.

        Raises:
            NotReady: Nobody folds it. Nothing was asked for.
            BrokerError: The topic cannot be written.
        """
        wanted = list(wanted)
        if not wanted:
            return Answer()
        if not self._cluster.members(self._group):
            raise NotReady(
                f"Nobody folds {self._generation}, who would do it: start `refold run {self._projection}` or a worker, "
                "and ask again. Nothing was changed.",
                projection=self._projection,
            )
        topic = self._cluster.topic(self.topic)
        begin = self._cluster.watermarks(topic)
        return self._answer(topic, self.post(verb, wanted), begin, wait_s)

    def post(self, verb: Literal["retry", "drop"], wanted: Iterable[Standing]) -> dict[str, int]:
        """Write requests, and wait for nothing; give their ids, each with its partition. See `ask`."""
        topic = self._cluster.topic(self.topic)
        by_partition: dict[int, list[int]] = {}
        for one in wanted:
            by_partition.setdefault(one.letter.partition, []).append(one.letter.offset)
        requests = {
            number: Request(id=secrets.token_hex(8), verb=verb, group=self._group, partition=number, offsets=offsets)
            for number, offsets in by_partition.items()
        }
        events = TopicInfo(name=self.topic, id=topic.id, partitions=topic.partitions)
        box = Letterbox(self._kafka, self._cluster, self._projection, self._group, events)
        try:
            box.write(requests.values())
        finally:
            box.close()
        return {one.id: number for number, one in requests.items()}

    def _answer(
        self, topic: TopicInfo, asked: Mapping[str, int], begin: Mapping[int, Watermarks], wait_s: float
    ) -> Answer:
        deadline = time.monotonic() + wait_s
        at = {number: begin[number].high for number in asked.values()}
        results: dict[str, str] = {}
        left = dict(asked)
        while left and time.monotonic() < deadline:
            marks = self._cluster.watermarks(topic)
            for said_, _, _ in self._read({number: (at[number], marks[number].high) for number in at}):
                if isinstance(said_, Mark) and said_.request in asked:
                    results[said_.id] = said_.result
                elif isinstance(said_, Request) and said_.verb == "done":
                    left.pop(said_.id, None)
            at = {number: marks[number].high for number in at}
            if left:
                time.sleep(_LOOK_S)
        counted = {name: sum(one == name for one in results.values()) for name in ("folded", "failed", "dropped")}
        return Answer(**counted, silent=tuple(sorted(left.values())))

    def _read(self, ranges: Mapping[int, tuple[int, int]] | None = None) -> Iterator[tuple[Said, int, int]]:
        """Yield what the topic says, each with its offset and timestamp; nothing where there is no topic."""
        if ranges is None:
            try:
                topic = self._cluster.topic(self.topic)
            except TopicNotFound:
                return
            ranges = {number: (one.low, one.high) for number, one in self._cluster.watermarks(topic).items()}
        for records in scan(KafkaEventStore(self.topic, kafka=self._kafka), ranges):
            for record in records:
                told = said(record, self._group)
                if told is not None:
                    yield told, record.offset(), record.timestamp()[1]


def _marked(known: Standing, mark: Mark) -> Standing:
    if mark.result == "failed":
        return replace(known, kind=mark.kind, error=mark.error, tried=known.tried + 1)
    return replace(known, state="dropped" if mark.result == "dropped" else "folded")


def heads(waiting: Collection[Standing]) -> list[tuple[Standing, int]]:
    """Give those that are in the way themselves, each with how many wait behind it.

    Those that were held behind one that has gone meanwhile are told with the first of them.
    """
    found: list[tuple[Standing, int]] = []
    newest: dict[tuple[int, str | None, str | None], int] = {}
    for one in waiting:
        stream = one.letter.partition, one.letter.stream
        place = newest.get((*stream, one.letter.model), newest.get((*stream, None)))
        if one.kind == Kind.HELD and place is not None:
            head, behind = found[place]
            found[place] = head, behind + 1
        else:
            newest[(*stream, one.letter.model)] = len(found)
            found.append((one, 0))
    return found
