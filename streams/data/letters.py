"""One partition's dead letters: what waits, what waits behind it, and what the topic of dead letters has of it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from operator import attrgetter, not_
from typing import Any

import msgspec

from projections.contract import CqrsProjection, Event
from streams.data.codec import Tombstone
from streams.data.letter import Letter, Mark, Request, Said, letter_id
from streams.data.outbox import Known, Outbox
from streams.data.store import DROPPED, LETTER, PartitionStore, StoreState
from streams.log import get_logger

__all__ = ["Letters"]

log = get_logger(__name__)

_OFFSET_BYTES = 8
_SAID_BYTES = 2000
_STAGED_BYTES = 700
_stream = attrgetter("stream")


class Letters:
    """What is kept here changes in the same batches as the models and the position.

    A letter that waits has its event's bytes in the store, and so needs nothing but the store to be folded again. The
    topic has it too, for people: it is written there before the position passes the event.

    Letters go out as they come, and arrive before the commit that they are of; what else is said, just before it. A
    crash between the two leaves said what is not so yet: the next process comes to the same event, or the same request,
    again, knows by `expected` that the letter is there, and says once more what has become of it.

    Args:
        projection: The user's code.
        group: The generation's consumer group.
        topic: The event topic.
        store: Where the partition's models are.
    """

    def __init__(self, projection: CqrsProjection[Any], group: str, topic: str, store: PartitionStore) -> None:
        self._projection = projection
        self._group = group
        self._topic = topic
        self._store = store
        self._is_keyed = projection.partition_by is None
        self._read_to = store.state.letters
        # Events in front of which the store's position is, and of which the topic has a letter already, by offset.
        self._expected: dict[int, Known] = {}
        self.outbox = Outbox()
        self.resets = -1
        """How often everything since a commit was forgotten."""
        self._asked: list[tuple[Request, int]] = []
        self._answered: list[tuple[Request, int]] = []
        self.reset()

    def reset(self) -> None:
        """Begin again at what the store says, and forget everything since."""
        self.staged: dict[bytes, bytes | None] = {}
        """What the next commit writes to the store, beside the models; None deletes."""
        self.saying: list[Said] = []
        """What is to be said in the topic before that, once it has the letters of the outbox."""
        self._staged_bytes = 0
        self.waiting = 0
        self._offsets: set[int] = set()
        self.models: Counter[str] = Counter()
        """By id of a model, how many letters wait of it."""
        self.streams: Counter[str] = Counter()
        """The same by stream, for letters whose model cannot be told."""
        self._names: set[str] = set()
        """All of both."""
        self.dropped = {int.from_bytes(key[1:], "big") for key, _ in self._store.beside(DROPPED)}
        """Offsets that are never to be folded."""
        for key, raw in self._store.beside(LETTER):
            letter = msgspec.msgpack.decode(raw, type=Letter)
            if letter.offset < self._store.state.position:
                self._count(letter, 1)
            else:  # the store was set back to before its event, which is come by again
                self.staged[key] = None
                self._expected.setdefault(letter.offset, Known(skipped=False, where=self._read_to))
        self.skipped = self._store.state.skipped
        self._expected |= self.outbox.reset()
        self._asked = self._answered + self._asked
        self._answered = []
        self.resets += 1

    # What is held back

    @property
    def is_sorting(self) -> bool:
        """Whether any event may have to be held back, or left out."""
        return bool(self.models or self.streams or self.dropped)

    def holds(self, outcome: Event | Tombstone) -> bool:
        """Say whether an event has to wait behind another one of its model."""
        if outcome.stream in self.streams or (self._is_keyed and outcome.stream in self.models):
            return not self._is_declined(outcome)
        if self._is_keyed or not self.models:
            return False
        return isinstance(outcome, Event) and self._model_of(outcome) in self.models

    def leaves_out(self, outcome: Event | Tombstone) -> bool:
        """Say whether an event is not to be folded now, or ever."""
        return self.is_sorting and (outcome.offset in self.dropped or self.holds(outcome))

    def sort(self, events: Sequence[Event]) -> tuple[Sequence[Event], Sequence[Event]]:
        """Give those events that are to be folded, and those that are not, now or ever; each in their order."""
        if not self.is_sorting:
            return events, ()
        suspects = events
        suspected: Sequence[bool] = ()
        if self._is_keyed and not self.dropped:
            # By their streams nearly all are free, which is seen at once.
            suspected = [*map(self._names.__contains__, map(_stream, events))]
            if True not in suspected:
                return events, ()
            suspects = [*compress(events, suspected)]
        left_out = [event for event in suspects if self.leaves_out(event)]
        if suspected and len(left_out) == len(suspects):
            return [*compress(events, map(not_, suspected))], left_out
        offsets = {event.offset for event in left_out}
        return [event for event in events if event.offset not in offsets], left_out

    def _is_declined(self, outcome: Event | Tombstone) -> bool:
        if isinstance(outcome, Tombstone):
            return not outcome.deletes
        return self._model_of(outcome) is None

    def _model_of(self, event: Event) -> str | None:
        try:
            return self._projection.extract_model_id(event)
        except Exception:  # noqa: BLE001  (it fails again where it is folded, and is told there)
            return event.stream

    # Letters that come and go

    def add(self, letter: Letter) -> None:
        """Keep an event that is not folded, and have others wait behind it unless it is skipped."""
        raw = msgspec.msgpack.encode(letter)
        known = self._expected.pop(letter.offset, None)
        if known is not None and known.skipped == letter.skipped:
            self.outbox.has(letter.offset, known)
        else:
            self.outbox.put(letter, raw, Known(letter.skipped, self._read_to))
        if letter.skipped:
            self.skipped += 1
            return
        self.staged[_key(letter)] = raw
        self._staged_bytes += len(raw)
        self._count(letter, 1)

    def resolve(self, letter: Letter, result: str, request: str = "") -> None:
        """Take a letter that is folded or dropped out of what waits."""
        self.staged[_key(letter)] = None
        self._count(letter, -1)
        self.saying.append(Mark.of(letter, result, request))

    def failed(self, letter: Letter, kind: str, error: str, request: str) -> None:
        """Note that a letter was tried again in vain."""
        self.staged[_key(letter)] = msgspec.msgpack.encode(msgspec.structs.replace(letter, kind=kind, error=error))
        self.saying.append(msgspec.structs.replace(Mark.of(letter, "failed", request), kind=kind, error=error))

    def tell_folded(self, letters: Iterable[Letter], request: str = "") -> None:
        """Say of letters that do not wait any more that they are in their models."""
        self.saying += [Mark.of(letter, "folded", request) for letter in letters]

    def drop(self, offset: int) -> None:
        """Never fold an event, also where it is come by again."""
        self.dropped.add(offset)
        self.staged[DROPPED + offset.to_bytes(_OFFSET_BYTES, "big")] = b""

    def in_order(self) -> Iterator[Letter]:
        """Yield what waits, as of now: by stream, and within one in the events' order.

        One after the other, whatever comes or goes meanwhile: there may be more than memory should hold.
        """
        staged = dict(sorted((key, raw) for key, raw in self.staged.items() if key.startswith(LETTER)))
        stored = ((key, raw) for key, raw in self._store.beside(LETTER) if key not in staged)
        changed = ((key, raw) for key, raw in staged.items() if raw is not None)
        for _, raw in heapq.merge(stored, changed):
            yield msgspec.msgpack.decode(raw, type=Letter)

    def waits(self, offset: int) -> bool:
        """Say whether an event waits."""
        return offset in self._offsets

    def _count(self, letter: Letter, by: int) -> None:
        self.waiting += by
        (self._offsets.add if by > 0 else self._offsets.discard)(letter.offset)
        blocked = self.streams if letter.model is None else self.models
        name = letter.stream if letter.model is None else letter.model
        if name is not None:
            blocked[name] += by
            if blocked[name] <= 0:
                del blocked[name]
            (self._names.add if name in self.models or name in self.streams else self._names.discard)(name)

    # The topic

    @property
    def read_to(self) -> int:
        """Where the topic is to be read from by whoever opens the store after the next commit."""
        return min([self._read_to, *(known.where for known in self._expected.values()), *(at for _, at in self._asked)])

    def saw(self, said: Said | None, offset: int) -> None:
        """Take in what a record of the topic says, and where it is there."""
        self._read_to = offset + 1
        if said is None:
            return
        if isinstance(said, Request):
            if said.verb != "done":
                self._asked.append((said, offset))
        elif said.id != letter_id(self._group, self._topic, self._store.state.partition, said.offset):
            return  # of another topic that was folded
        elif said.offset < self._store.state.position:
            is_open = said.offset not in self._offsets and said.offset not in self.dropped
            if isinstance(said, Letter) and not said.skipped and is_open:
                self.tell_of(said.offset)  # whoever folded it after all could not say so any more
        elif said.offset in self.outbox:
            return  # it was written from here
        elif isinstance(said, Letter):
            self._expected[said.offset] = Known(said.skipped, offset)
        elif said.result == "dropped":
            self.drop(said.offset)
        elif said.result == "folded":
            self._expected.pop(said.offset, None)

    @property
    def request(self) -> Request | None:
        """What is asked for next, of what nobody has carried out; None where nothing is."""
        return self._asked[0][0] if self._asked else None

    def answer(self, answer: Request) -> None:
        """Note that what was asked for next is carried out, once the next commit is made."""
        self._answered.append(self._asked.pop(0))
        self.saying.append(answer)

    def of(self, state: StoreState) -> StoreState:
        """Give what a store is to say of itself at the next commit."""
        return msgspec.structs.replace(state, dead_letters=self.waiting, skipped=self.skipped, letters=self.read_to)

    def tell_of(self, offset: int, request: str = "") -> None:
        """Say of an event that it is in its model, where there is no letter of it here."""
        partition = self._store.state.partition
        mark = Mark(
            id=letter_id(self._group, self._topic, partition, offset),
            partition=partition,
            offset=offset,
            group=self._group,
            result="folded",
            request=request,
        )
        self.saying.append(mark)

    @property
    def has_changes(self) -> bool:
        """Whether there is something that the next commit is to write, or that is to be said before it."""
        return bool(self.staged or self.saying)

    @property
    def memory_bytes(self) -> int:
        """About how much memory it takes, and will at the next commit, what has come and gone since the last one."""
        # In the store's batch it is once more, and then in RocksDB's memory.
        return len(self.saying) * _SAID_BYTES + len(self.staged) * _STAGED_BYTES + 3 * self._staged_bytes

    def said(self) -> None:
        """Note that the topic has what was to be said."""
        self.saying = []

    def committed(self) -> None:
        """Note that the store has what was staged.

        Of events that it has passed, and of which the topic has a letter all the same, the next commit says that they
        were folded after all.
        """
        self.staged, self._answered = {}, []
        self.outbox.committed()
        self._staged_bytes = 0
        for offset in [offset for offset in self._expected if offset < self._store.state.position]:
            del self._expected[offset]
            self.tell_of(offset)


def _key(letter: Letter) -> bytes:
    """Give the key that sorts a letter by its stream, and in it by offset."""
    return LETTER + (letter.stream or "").encode() + b"\0" + letter.offset.to_bytes(_OFFSET_BYTES, "big")
