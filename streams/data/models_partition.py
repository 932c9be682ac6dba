"""One partition of a fold into a `ReadModelStore`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from msgspec.structs import replace

from streams.data.keeping import Keeping
from streams.data.read_models import Position
from streams.data.serde import NotStorable, Serde
from streams.data.store import StoreState
from streams.errors import StoreCorrupt

__all__ = ["ModelsPartition"]


class ModelsPartition:
    """One partition's side of a store; see `PartitionStore`. It keeps no dead letters.

    Args:
        where: The store.
        serde: How the fold takes models.
        position: Where the partition's fold begins.
    """

    def __init__(self, where: Keeping, serde: Serde, position: Position) -> None:
        self._where = where
        self._serde = serde
        self._took(position)

    def _took(self, position: Position) -> None:
        self.position = position
        """The position committed last."""
        self.state = StoreState(
            directory="",
            build=0,
            partition=position.partition,
            start=position.start,
            position=position.offset,
            models=position.models,
            events=position.events,
            declined=position.declined,
            deleted=position.deleted,
            last_event_id=position.last_event_id,
            record_ms=position.record_ms,
        )
        """See PartitionStore."""

    def get(self, model_id: str) -> bytes | None:
        """See PartitionStore."""
        model = self._where.get(model_id)
        if model is None:
            return None
        try:
            return self._serde.encoded(model)
        except NotStorable as error:
            raise StoreCorrupt(
                f"The store gave model {model_id!r} as no {self._serde.model.__qualname__}: {error}."
            ) from error

    def beside(self, prefix: bytes) -> Iterable[tuple[bytes, bytes]]:  # noqa: ARG002
        """See PartitionStore."""
        return ()

    def commit(
        self,
        changes: Iterable[tuple[str, bytes | None]],
        state: StoreState,
        beside: Mapping[bytes, bytes | None] = MappingProxyType({}),
    ) -> None:
        """See PartitionStore."""
        assert not beside, "this keeps no dead letters"
        decode = self._serde.decode
        # What the fold has in memory, it goes on changing: the store gets its own.
        mutations = {model_id: None if raw is None else decode(raw) for model_id, raw in changes}
        position = replace(
            self.position,
            offset=state.position,
            code=self._where.code,
            events=state.events,
            declined=state.declined,
            deleted=state.deleted,
            models=state.models,
            last_event_id=state.last_event_id,
            record_ms=state.record_ms,
        )
        self._where.commit(mutations, position)
        self._took(position)

    def close(self) -> None:
        """See PartitionStore."""
