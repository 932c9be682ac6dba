"""What every implementation of a seam must do. A test class of yours inherits it and says how to make one.

    class TestMine(CheckpointStoreContract):
        def make(self) -> CheckpointStore:
            return MyStore(...)

pytest finds the test methods; they need nothing of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import UTC, datetime

from streams.data.checkpoint import CheckpointStore
from streams.errors import CheckpointError
from streams.types import ProjectionCheckpoint

__all__ = ["CheckpointStoreContract"]


class CheckpointStoreContract(ABC):
    """What a `CheckpointStore` promises."""

    name = "contract"
    topic = "contract-topic"
    """A topic with at least two partitions, where a store needs one."""

    @abstractmethod
    def make(self) -> CheckpointStore:
        """Make a store that holds nothing, or the same one again."""

    def checkpoint(self) -> ProjectionCheckpoint:
        """Make a checkpoint with something in each field."""
        return ProjectionCheckpoint(
            topic=self.topic,
            positions={0: 0, 1: 17},
            last_event_id="é-1",
            events_processed=12,
            generation=f"{self.name}.v1",
            build=3,
            directory="d1",
            time=datetime(2026, 3, 1, 10, 0, 0, 123000, tzinfo=UTC),
        )

    def test_unknown_name_has_no_checkpoint(self) -> None:
        """Where nothing was saved, there is nothing, and it is no error."""
        assert self.make().load(self.name) is None

    def test_saved_is_loaded_again_as_it_was(self) -> None:
        """Every field comes back; the topic's id may be left unknown."""
        store = self.make()
        store.save(self.name, self.checkpoint())
        found = store.load(self.name)
        assert found is not None
        assert replace(found, topic_id="") == self.checkpoint()

    def test_saving_replaces(self) -> None:
        """There is one checkpoint for each name: the last."""
        store = self.make()
        store.save(self.name, self.checkpoint())
        later = replace(self.checkpoint(), positions={0: 5, 1: 20}, events_processed=20, last_event_id=None)
        store.save(self.name, later)
        found = store.load(self.name)
        assert found is not None
        assert replace(found, topic_id="") == later

    def test_deleted_is_gone_and_deleting_again_is_no_error(self) -> None:
        """A missing checkpoint is as good as deleted."""
        store = self.make()
        store.delete(self.name)
        store.save(self.name, self.checkpoint())
        store.delete(self.name)
        assert store.load(self.name) is None
        store.delete(self.name)

    def test_another_name_never_gets_this_ones(self) -> None:
        """It has none of its own, or is refused."""
        store = self.make()
        store.save(self.name, self.checkpoint())
        try:
            assert store.load("another") is None
            store.delete("another")
        except CheckpointError:
            pass
        assert store.load(self.name) is not None
