"""Where a fold keeps one partition of one build: its models and its position, written together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import msgspec

from streams.errors import ForeignStore, StoreCorrupt
from streams.prepared import prepared

__all__ = [
    "DROPPED",
    "FarStore",
    "LETTER",
    "MODEL",
    "NOTHING",
    "PartitionStore",
    "StoreState",
    "check_identity",
    "decode_state",
]

FORMAT = 2
LETTER = b"d"
"""Dead letters that wait, by stream and offset; they sort before every model."""
MODEL = b"m"
DROPPED = b"x"
"""Offsets that are never to be folded; behind every model."""
NOTHING: Mapping[bytes, bytes | None] = MappingProxyType({})


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition's store says of itself; written in the same batch as the models."""

    format: int = FORMAT
    directory: str
    """The id of the state directory."""
    build: int
    partition: int
    start: int
    """The position at which this fold began: the log's start offset then."""
    position: int
    """The next offset to fold: every event from `start` up to it is in the models, and none after it."""
    models: int = 0
    events: int = 0
    """Events read since `start`."""
    declined: int = 0
    deleted: int = 0
    """Events at which `apply_to_model` gave None."""
    last_event_id: str | None = None
    last_event_time: str | int | None = None
    """When the event folded last happened, as it says."""
    record_ms: int | None = None
    """Kafka's timestamp of the record folded last, in milliseconds since 1970."""
    dead_letters: int = 0
    """Dead letters that wait to be folded: events that could not be, and those of their models after them."""
    skipped: int = 0
    """Events that were left out because they could not be folded."""
    letters: int = 0
    """Where the topic of dead letters is to be read from."""

    @property
    def gave_nothing(self) -> bool:
        """Whether there were events to fold, and every one of them gave None."""
        return 0 < self.deleted == self.events - self.declined


prepared(StoreState)


class PartitionStore(Protocol):
    """Where a fold keeps the models and the position of one partition."""

    @property
    def state(self) -> StoreState:
        """The state as last committed."""
        ...

    def get(self, model_id: str) -> bytes | None:
        """Give the model as last committed."""
        ...

    def beside(self, prefix: bytes) -> Iterable[tuple[bytes, bytes]]:
        """Give what is kept beside the models under keys that begin so, as last committed, in the order of keys."""
        ...

    def commit(
        self,
        changes: Iterable[tuple[str, bytes | None]],
        state: StoreState,
        beside: Mapping[bytes, bytes | None] = NOTHING,
    ) -> None:
        """Write models (None deletes), state, and what is kept beside them, in one atomic, durable step.

        Nothing is written where iterating `changes` raises.
        """
        ...

    def close(self) -> None:
        """Let go of the files, without writing."""
        ...


@runtime_checkable
class FarStore(PartitionStore, Protocol):
    """A store on another machine: each question takes its time there and back, and not all that is JSON is stored."""

    def fetch(self, model_ids: Iterable[str]) -> Mapping[str, bytes]:
        """Give those models that there are, as last committed, in few questions."""
        ...

    def check(self, model_id: str, raw: bytes) -> None:
        """Make sure that the store would take a model.

        Raises:
            NotStorable: It would not.
        """
        ...


def decode_state(path: Path, raw: bytes) -> StoreState:
    """Read a store's state record.

    Raises:
        ForeignStore: Its format is unknown.
        StoreCorrupt: It cannot be understood.
    """
    try:
        found = msgspec.json.decode(raw)
        if isinstance(found, dict) and found.get("format") != FORMAT:
            raise ForeignStore(
                f"{path} has store format {found.get('format')!r}; this version of refold knows {FORMAT}. "
                "Use the version that wrote it, or rebuild from the beginning."
            )
        return msgspec.convert(found, StoreState)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"{path}: its state record cannot be read: {error}; it holds {raw[:80]!r}.") from error


def check_identity(path: Path, state: StoreState, expected: StoreState) -> None:
    """Make sure that a store is of the build and the partition that it is opened for.

    Raises:
        ForeignStore: It is not.
    """
    for attribute, what in (("directory", "state directory"), ("build", "build"), ("partition", "partition")):
        found, wanted = getattr(state, attribute), getattr(expected, attribute)
        if found != wanted:
            raise ForeignStore(
                f"{path} holds the models of {what} {found}, not of {wanted}: the directory was put together from "
                "others. Name another state directory, or rebuild from the beginning."
            )
