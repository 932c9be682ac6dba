"""A build's stores, each copied at exactly one position that is agreed on while they are folded.

    <directory>/cuts/<id>/asking.lock    see `asking`
    <directory>/cuts/<id>/request.json   of which build
    <directory>/cuts/<id>/0.json         where partition 0 is held, until the barrier is named; written by who folds it
    <directory>/cuts/<id>/barrier.json   by partition, where to copy it; one that is not named goes on as before
    <directory>/cuts/<id>/0/             the copy

A position that lies ahead of several generations, and that each of them reaches, cannot be guessed while events come.
So each one is held where it is, for the moment that it takes to look at all of them; the barrier is the furthest, and
the others fold on to it. Who is at it is copied, and goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from streams.data.asking import asked, asking
from streams.data.build import FORMAT, Build, read_record, write_record
from streams.errors import StorageError, StoreLocked
from streams.log import get_logger
from streams.prepared import prepared

__all__ = ["UNFOLDED", "Cut", "Held", "cuts"]

log = get_logger(__name__)

DIRECTORY = "cuts"
UNFOLDED = "nobody folds it"
_REQUEST = "request.json"
_BARRIER = "barrier.json"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Of which build."""

    format: int = FORMAT
    build: int
    directory: str


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Where a partition is."""

    format: int = FORMAT
    position: int
    why: str = ""
    """Why it goes no further; "" where it can."""


class Barrier(msgspec.Struct, frozen=True, kw_only=True):
    """Where to copy."""

    format: int = FORMAT
    positions: dict[int, int]


prepared(Request, Held, Barrier)


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut of one build."""

    path: Path
    build: Build
    _kept: ExitStack = field(default_factory=ExitStack, compare=False)

    # Who asks

    @classmethod
    @contextmanager
    def asked(cls, build: Build) -> Iterator[Cut]:
        """Ask for a cut, for the time of the block; then nothing of it is left, and all goes on as before.

        Raises:
            StorageError: The disk.
        """
        with asking(build.root / DIRECTORY, "comparison") as path:
            manifest = build.manifest
            write_record(path / _REQUEST, Request(build=manifest.build, directory=manifest.directory))
            cut = cls(path, build)
            with cut._kept:
                yield cut

    def held(self) -> dict[int, Held]:
        """Give where partitions are held, as far as it is known; those that nobody has open are looked at.

        Raises:
            BuildChanged: Another build is current by now.
            StorageError: The disk.
        """
        self.build.check_current()
        found = {}
        for number in self.build.partitions():
            told = read_record(self.path / f"{number}.json", Held)
            if told is None:
                with contextlib.suppress(StoreLocked):
                    store = self.build.open(number, 0)
                    position = store.state.position
                    store.close()
                    told = Held(position=position, why=UNFOLDED)
                    self.hold(number, told)  # whoever folds it after all says so
            if told is not None:
                found[number] = told
        return found

    def set_barrier(self, positions: Mapping[int, int]) -> None:
        """Say where to copy each partition; may be said again, with fewer of them.

        Raises:
            StorageError: The disk.
        """
        write_record(self.path / _BARRIER, Barrier(positions=dict(positions)))

    def copied(self, positions: Mapping[int, int]) -> set[int]:
        """Give which partitions are copied; those that nobody has open are, where they are at their position.

        Raises:
            StorageError: The disk.
        """
        done = set()
        for number, position in positions.items():
            if not self.copy(number).is_dir():
                with contextlib.suppress(StoreLocked):
                    store = self.build.open(number, 0)
                    try:
                        if store.state.position == position:
                            self._kept.callback(store.cut(self.copy(number)).close)
                    finally:
                        store.close()
            if self.copy(number).is_dir():
                done.add(number)
        return done

    # Who folds, and who asks

    def copy(self, partition: int) -> Path:
        """Give where a partition's copy is, or is to be."""
        return self.path / str(partition)

    def hold(self, partition: int, held: Held) -> None:
        """Say where a partition is held.

        Raises:
            StorageError: The disk, or nobody waits for it any more.
        """
        write_record(self.path / f"{partition}.json", held)

    def barrier(self) -> Mapping[int, int] | None:
        """Give where to copy each partition; None before that is known."""
        found = read_record(self.path / _BARRIER, Barrier)
        return None if found is None else found.positions


def cuts(build: Build) -> list[Cut]:
    """Give those cuts of a build that somebody waits for."""
    wanted = Request(build=build.manifest.build, directory=build.manifest.directory)
    found = []
    for path in asked(build.root / DIRECTORY):
        with contextlib.suppress(StorageError):
            if read_record(path / _REQUEST, Request) == wanted:
                found.append(Cut(path, build))
    return found
