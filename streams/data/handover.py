"""Models that were folded again beside, handed over to whoever has the store open.

    <directory>/refolds/<id>/asking.lock   see `asking`
    <directory>/refolds/<id>/0.json        what is to replace models of partition 0, as of which position
    <directory>/refolds/<id>/0.done        where and how that ended

A store can be written by one process only. Whoever folds takes the streams up where they were folded to, folds them on
beside the rest until both are at one position, and then replaces their models in one batch. So at each instant every
model is the fold of all events up to the store's position.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from streams.data.asking import asked, asking, is_asked
from streams.data.build import FORMAT, Build, read_record, write_record
from streams.data.letter import Letter
from streams.data.refold import StreamsFold
from streams.data.store import LETTER, PartitionStore
from streams.errors import StorageError
from streams.log import get_logger
from streams.prepared import prepared

__all__ = ["Asked", "Handover", "Handovers", "Outcome", "Swapped", "handovers", "swap"]

log = get_logger(__name__)

DIRECTORY = "refolds"


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """The models of some streams of one partition, to replace those that there are."""

    format: int = FORMAT
    build: int
    directory: str
    partition: int
    position: int
    """Of which they are."""
    streams: tuple[str, ...]
    models: dict[str, bytes | None]
    """By id, each as stored; None for one that there is no longer."""

    def is_of(self, build: Build) -> bool:
        """Say whether they are to replace models of this build."""
        return (self.build, self.directory) == (build.manifest.build, build.manifest.directory)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a handover ended."""

    format: int = FORMAT
    position: int = 0
    """At which the models were replaced."""
    events: int = 0
    """Events of the streams that were folded by whoever did it."""
    models: int = 0
    """How many models there are now of those that were to be replaced."""
    error: str | None = None
    """Why nothing was replaced."""


prepared(Handover, Outcome)


class Handovers:
    """Asks for models to be replaced. Use it in `asking`."""

    def __init__(self, build: Build, path: Path) -> None:
        self._build = build
        self._path = path

    @classmethod
    @contextmanager
    def asking(cls, build: Build, purpose: str) -> Iterator[Handovers]:
        """Make the place for it; it goes with the block, and counts for nothing where the process is killed.

        Raises:
            StorageError: The disk.
        """
        with asking(build.root / DIRECTORY, purpose) as path:
            yield cls(build, path)

    def give(self, partition: int, fold: StreamsFold) -> None:
        """Hand a partition's models over, as of where the fold is.

        Raises:
            StorageError: The disk.
        """
        manifest = self._build.manifest
        write_record(
            self._path / f"{partition}.json",
            Handover(
                build=manifest.build,
                directory=manifest.directory,
                partition=partition,
                position=fold.position,
                streams=tuple(sorted(fold.streams)),
                models=fold.kept.models,
            ),
        )

    def outcome(self, partition: int) -> Outcome | None:
        """Say how it ended; None where it has not."""
        return read_record(self._path / f"{partition}.done", Outcome)


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody waits for."""

    path: Path
    """Of the handover's record."""
    partition: int

    def is_wanted(self) -> bool:
        """Whether somebody still does."""
        return is_asked(self.path.parent)

    def read(self) -> Handover | None:
        """Read what is handed over; None where it is gone."""
        return read_record(self.path, Handover)

    def end(self, outcome: Outcome) -> None:
        """Say how it ended; who asked may be gone."""
        with contextlib.suppress(StorageError):
            write_record(self.path.with_suffix(".done"), outcome)


def handovers(build: Build) -> Iterator[Asked]:
    """Yield what somebody waits for in a state directory, and has not got yet."""
    for directory in asked(build.root / DIRECTORY):
        for path in directory.glob("*.json"):
            if not path.with_suffix(".done").exists():
                yield Asked(path, int(path.stem))


class Swapped(NamedTuple):
    """What has come of it."""

    models: int
    """How many there are now, of those that were to be replaced."""
    letters: list[Letter]
    """Dead letters that waited, and are in these models now."""


def swap(store: PartitionStore, models: Mapping[str, bytes | None], streams: Container[str]) -> Swapped:
    """Replace models in one batch, at the store's position.

    Args:
        store: Where they are.
        models: By id; None for one that there is no longer.
        streams: Those whose events were all folded again, also what waited of them as dead letters.

    Raises:
        StorageError: The disk; nothing was replaced.
    """
    before = {model_id: store.get(model_id) for model_id in models}
    changed = {model_id: raw for model_id, raw in models.items() if raw != before[model_id]}
    waited = {key: msgspec.msgpack.decode(raw, type=Letter) for key, raw in store.beside(LETTER)}
    gone = {key: letter for key, letter in waited.items() if letter.stream in streams}
    now = sum(raw is not None for raw in models.values())
    if changed or gone:
        had = sum(raw is not None for raw in before.values())
        state = store.state
        store.commit(
            changed.items(),
            msgspec.structs.replace(
                state, models=state.models - had + now, dead_letters=state.dead_letters - len(gone)
            ),
            dict.fromkeys(gone),
        )
    log.info("models.replaced", partition=store.state.partition, models=now, changed=len(changed), letters=len(gone))
    return Swapped(now, list(gone.values()))
