"""Where a rebuild starts, and with what state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from streams.data.build import Build, Manifest
from streams.data.claims import Claim
from streams.types import Watermarks

__all__ = ["FromBeginning", "Prepared", "RebuildStrategy", "Target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a strategy works on. Nobody folds in it: the group has no members and the directory is held."""

    claim: Claim
    found: Build | None
    """The build that is current, and stays so until the rebuild begins; None where there is none that can be read."""
    wanted: Manifest
    """What is to be folded; its number and directory do not matter."""
    watermarks: Mapping[int, Watermarks]
    """What each partition still has."""
    above: int
    """The new build's number is greater than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A build that is ready to be made current, and where it begins."""

    build: Build
    positions: Mapping[int, int]
    """By partition: the next offset to fold, and exactly what its store is of."""


@runtime_checkable
class RebuildStrategy(Protocol):
    """Makes the build that a rebuild folds. Called before the first event is read.

    What it makes is seen by nobody until all of it is there: then it becomes current in one step, and the build before
    it is removed.
    """

    def prepare(self, target: Target) -> Prepared:
        """Make the build and say where it begins."""
        ...


@dataclass(frozen=True, slots=True)
class FromBeginning:
    """An empty build, from the first offset of each partition (reference: FromBeginning)."""

    def prepare(self, target: Target) -> Prepared:
        """Make the build; see the class."""
        return Prepared(
            build=target.claim.make(target.wanted, above=target.above),
            positions={partition: marks.low for partition, marks in target.watermarks.items()},
        )
