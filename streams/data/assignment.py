"""What a partition's store, its group and its topic say when it is assigned, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass

from streams.data.checkpoint import Stamp, belongs, generation_id
from streams.data.generation import Manifest, RocksStore
from streams.data.store import RocksPartition
from streams.errors import ForeignOffset, HistoryIncomplete, TopicChanged, at
from streams.log import get_logger
from streams.types import Committed, Watermarks

__all__ = ["Assignment", "check_history"]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One partition that the group has just given us."""

    manifest: Manifest
    group: str
    partition: int
    committed: Committed | None
    """What the group has committed there; None where it has nothing."""
    watermarks: Watermarks
    """What the topic still has."""
    allow_incomplete: bool
    """Begin at the first offset that is left where the front of the partition is gone."""

    def open(self, store: RocksStore) -> RocksPartition:
        """Open the partition's store at the position to fold from.

        - Our stamp on the committed offset, or no commit: the store is right, also where it is behind (a disk was
          lost, a copy restored).
        - No stamp: somebody's tool set the offset (KIP-122). At the log's start it asks for a rebuild of this
          partition; at the store's own position it changes nothing; anything else the models cannot honour.

        Raises:
            ForeignOffset: The models cannot honour the offset. They are left as they are.
            HistoryIncomplete: The topic no longer has the events at the position.
            TopicChanged: The topic has more partitions than the state, or ends before the position.
            StoreLocked, StoreCorrupt, ForeignStore: See RocksPartition.open.
        """
        if self.partition >= self.manifest.partitions:
            raise TopicChanged(
                f"{self._where} is new: the topic had {self.manifest.partitions} partitions when this state was "
                "begun, and keys have moved between them. Rebuild from the beginning.",
                topic=self.manifest.topic,
                partition=self.partition,
            )
        opened = store.open(self.manifest, self.partition, self.watermarks.low)
        try:
            if self._asks_for_rebuild(opened):
                log.warning(
                    "offsets.reset_honoured",
                    where=self._where,
                    position=self.watermarks.low,
                    models_dropped=opened.state.models,
                )
                opened.close()
                RocksPartition.remove(opened.path)
                opened = store.open(self.manifest, self.partition, self.watermarks.low)
            self._check_history(opened)
        except BaseException:
            opened.close()
            raise
        return opened

    @property
    def _where(self) -> str:
        return at(self.manifest.topic, self.partition)

    def _asks_for_rebuild(self, opened: RocksPartition) -> bool:
        position, committed = opened.state.position, self.committed
        if committed is None:
            return False
        stamp = Stamp.parse(committed.metadata)
        if stamp is not None:
            self._check_owner(stamp)
            if committed.position > position:
                log.warning("state.behind_group", where=self._where, state=position, group=committed.position)
            return False
        if committed.position == position:
            return False
        if committed.position <= self.watermarks.low:
            return True
        raise ForeignOffset(
            f"Somebody set group {self.group!r} to {at(self.manifest.topic, self.partition, committed.position)} (the "
            f"commit has no stamp of refold's), but the models there are of position {position}; folding on from "
            "another offset would lose or double events. To rebuild the partition, set the group to the log's start, "
            f"{self.watermarks.low} (kafka-consumer-groups.sh --reset-offsets --to-earliest); to go on from the "
            f"models, set it to {position}.",
            projection=self.manifest.projection,
            topic=self.manifest.topic,
            partition=self.partition,
            offset=committed.position,
        )

    def _check_owner(self, stamp: Stamp) -> None:
        if not belongs(stamp.generation, self.manifest.projection):
            raise ForeignOffset(
                f"Group {self.group!r} holds the position of {stamp.generation!r} at {self._where}, and this is "
                f"{generation_id(self.manifest.projection, self.manifest.version)!r}: two projections cannot share a "
                "group. Name another group (--group).",
                projection=self.manifest.projection,
                topic=self.manifest.topic,
                partition=self.partition,
            )

    def _check_history(self, opened: RocksPartition) -> None:
        check_history(self.manifest, self.partition, opened.state.position, self.watermarks)
        low = self.watermarks.low
        if opened.state.position == low and low > 0 and not opened.state.events and not self.allow_incomplete:
            raise HistoryIncomplete(
                f"{self._where} begins at offset {low}: the {low} offsets before are gone, so models folded from here "
                "are incomplete. Allow that (--allow-incomplete) if you mean it.",
                projection=self.manifest.projection,
                topic=self.manifest.topic,
                partition=self.partition,
                offset=0,
            )


def check_history(manifest: Manifest, partition: int, position: int, watermarks: Watermarks) -> None:
    """Make sure that a partition can be read from a position on.

    Raises:
        HistoryIncomplete: It begins after the position.
        TopicChanged: It ends before it.
    """
    where, low, high = at(manifest.topic, partition), watermarks.low, watermarks.high
    if position < low:
        raise HistoryIncomplete(
            f"{where} begins at offset {low}, and the models are of position {position}: {low - position} offsets are "
            "gone unfolded (retention or a deletion). The state is kept as it is. Rebuilding folds what is left, if "
            "you allow it to be incomplete (--allow-incomplete).",
            projection=manifest.projection,
            topic=manifest.topic,
            partition=partition,
            offset=position,
        )
    if position > high:
        raise TopicChanged(
            f"{where} ends at {high}, and the models are of position {position}: the topic lost its tail or was made "
            "again. Rebuild from the beginning.",
            topic=manifest.topic,
            partition=partition,
            offset=position,
        )
