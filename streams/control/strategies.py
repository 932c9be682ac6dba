"""Where a rebuild starts, and what it does to the state first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.generation import Manifest, RocksStore

__all__ = ["FromBeginning", "RebuildStrategy", "Target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a strategy works on. Nobody folds in it: the group has no members and the directory is held."""

    wanted: Manifest
    """What is to be folded; its epoch does not matter."""
    store: RocksStore
    checkpoints: KafkaCheckpointStore


@runtime_checkable
class RebuildStrategy(Protocol):
    """Puts the state and the positions to where the fold is to start. Called before the first event is read.

    Each step must be durable before the next begins, and such that a crash after it leaves every partition's
    store true to its own position.
    """

    def prepare(self, target: Target) -> Manifest:
        """Prepare the state; give the manifest to fold under."""
        ...


@dataclass(frozen=True, slots=True)
class FromBeginning:
    """Clear everything and fold from the first offset of each partition (reference: FromBeginning).

    1. Clear the read models, by a new epoch; see `RocksStore.clear`.
    2. Delete the group's committed offsets, which are of the old epoch.

    A crash after step 1 leaves offsets whose stamp is of an older epoch: the store is right, and folds from
    its start.
    """

    def prepare(self, target: Target) -> Manifest:
        """Clear the state; see the class."""
        # Step 1
        manifest = target.store.clear(target.wanted, at_least=target.checkpoints.epoch())
        # Step 2
        target.checkpoints.delete(target.wanted.projection)
        return manifest
