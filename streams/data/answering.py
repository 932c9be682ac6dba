"""What people ask of dead letters, carried out by whoever folds the partition: fold them again, or drop them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby

import msgspec

from projections.contract import Event
from streams.data.codec import EventCodec, decoded
from streams.data.fold import Fold
from streams.data.letter import Letter, Request
from streams.data.recovery import Kind
from streams.data.rescue import Rescue
from streams.log import get_logger

__all__ = ["Answering"]

log = get_logger(__name__)

_SLICE_S = 0.2
"""How long the fold may stand for them at once: meanwhile nobody polls the group."""


class Answering:
    """Carries out one request after the other, on the letters of one partition, a portion at a time.

    What comes of it is written by the next commit of the fold, in one batch: models, letters, and how far the topic of
    dead letters was read. A crash before it leaves all as it was, and the request is carried out again.

    Args:
        fold: Of the partition.
        rescue: What the fold does with events that it cannot fold.
        codec: How records are read.
    """

    def __init__(self, fold: Fold, rescue: Rescue, codec: EventCodec) -> None:
        self._fold = fold
        self._rescue = rescue
        self._codec = codec
        self._left: Iterator[list[Letter]] | None = None
        self._resets = 0

    @property
    def is_asked(self) -> bool:
        """Whether there is something to be carried out."""
        return self._rescue.letters.request is not None

    def advance(self) -> bool:
        """Go on with what is asked for, for a moment; say whether there is more.

        Raises:
            Unguarded, StorageError: See `Fold.fold`.
        """
        letters = self._rescue.letters
        until = time.monotonic() + _SLICE_S
        while (request := letters.request) is not None and time.monotonic() < until:
            if self._left is None or self._resets != letters.resets:
                self._tell_settled(request)
                by_stream = groupby(letters.in_order(), key=lambda one: one.stream)
                self._left = (list(some) for _, some in by_stream)
                self._resets = letters.resets
            for some in self._left:
                self._carry_out(request, some)
                if time.monotonic() >= until:
                    return True
            self._left = None
            letters.answer(msgspec.structs.replace(request, verb="done", offsets=None, models=None))
            log.info("dead_letters.answered", request=request.id, verb=request.verb, waiting=letters.waiting)
        return letters.request is not None

    def _tell_settled(self, request: Request) -> None:
        """Say of what was asked for, and does not wait here, that it is folded: whoever asked knew no better."""
        letters = self._rescue.letters
        for offset in request.offsets or ():
            if offset < self._fold.committed and not letters.waits(offset) and offset not in letters.dropped:
                letters.tell_of(offset, request.id)

    def _carry_out(self, request: Request, waiting: list[Letter]) -> None:
        """Carry a request out on the letters of one stream, in their order.

        A letter is folded only if nothing of its model waits in front of it. One that only waited behind others is
        folded as soon as none of them does.
        """
        stuck: set[str | None] = set()
        for letter in waiting:
            is_wanted = request.wants(letter.offset, letter.model, letter.stream)
            if request.verb == "drop" and is_wanted:
                self._rescue.letters.drop(letter.offset)
                self._rescue.letters.resolve(letter, "dropped", request.id)
                continue
            may = letter.kind == Kind.HELD or (request.verb == "retry" and is_wanted)
            if may and None not in stuck and letter.model not in stuck and self._fold_again(letter, stuck, request):
                continue
            if letter.stream is not None:  # else nobody knows what would have to wait
                stuck.add(letter.model)

    def _fold_again(self, letter: Letter, stuck: set[str | None], request: Request) -> bool:
        """Fold a letter; say whether that could be done."""
        outcome = next(decoded(self._codec, [Again(letter)]))[0]
        if isinstance(outcome, Event) and self._rescue.model_of(outcome) in stuck:
            return False  # nobody knew until now whose it is
        failure = self._fold.fold_letter(outcome)
        if failure is None:
            self._rescue.letters.resolve(letter, "folded", request.id)
            return True
        self._rescue.letters.failed(letter, failure[0].value, failure[1], request.id)
        return False


class Again:
    """A letter, as the record that its event was; see `codec.Record`."""

    def __init__(self, letter: Letter) -> None:
        self._letter = letter

    def topic(self) -> str:
        """See Record."""
        return self._letter.topic

    def partition(self) -> int:
        """See Record."""
        return self._letter.partition

    def offset(self) -> int:
        """See Record."""
        return self._letter.offset

    def key(self) -> bytes | None:
        """See Record."""
        return self._letter.key

    def value(self) -> bytes | None:
        """See Record."""
        return self._letter.value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        """See Record."""
        return list(self._letter.headers) or None

    def timestamp(self) -> tuple[int, int]:
        """See Record."""
        return 1, self._letter.timestamp

    def __len__(self) -> int:
        return len(self._letter.value or b"")
