"""Reading the models of a build, beside whoever folds them."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import orjson

from projections.contract import CqrsProjection
from streams.data.build import MANIFEST, Build
from streams.data.query import filter_of
from streams.data.serde import serde_for
from streams.data.split import first_split, split_error
from streams.data.store import StoreState
from streams.data.stores import StoreReader
from streams.errors import ForeignStore, ModelSplit, StateNotFound, StorageError

__all__ = ["ModelReader", "hold"]


class ModelReader:
    """The read models of a build, as last committed by whoever folds them.

    Each partition is seen as of the instant at which the reader was opened, or has caught up last: of a database all as
    of the same one. The build stays there until it is closed, also where a rebuild has replaced it meanwhile.
    """

    def __init__(self, build: Build, projection: CqrsProjection[Any] | None) -> None:
        self.build = build
        """What is read."""
        self._projection = projection
        self._decode = orjson.loads if projection is None else serde_for(projection.model_type()).decode
        self._partitions: dict[int, StoreReader] = {}
        self._open = ExitStack()
        scratch = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="refold-reader-")))
        self._whole = build.stores.reader(scratch)
        self._open.callback(self._whole.close)
        try:
            self._open_new()
        except BaseException:
            self._open.close()
            raise

    def _open_new(self) -> None:
        for number in self.build.partitions():
            if number not in self._partitions:
                self._partitions[number] = self._whole.open(number)

    def catch_up(self) -> None:
        """See the models as they are committed by now.

        Raises:
            StorageError: They cannot be read.
        """
        self._whole.catch_up()
        self._open_new()

    def rest(self) -> None:
        """Hold on to nothing that others need, while nothing is read; what is read next is as of then."""
        self._whole.rest()

    @classmethod
    def of_current(
        cls, current: Callable[[], Build | None], projection: CqrsProjection[Any] | None, directory: Path
    ) -> ModelReader:
        """Open the build that is current, and keep it from being removed; see `RocksStore.reader`."""
        while True:
            build = current()
            if build is None:
                raise StateNotFound(
                    f"{directory.absolute()} holds no read models yet: fold the topic first (`refold run`), or name "
                    "the directory that has them (--state-dir).",
                    projection=None if projection is None else projection.name,
                )
            if projection is not None and build.manifest.projection != projection.name:
                raise ForeignStore(
                    f"{directory} holds the state of projection {build.manifest.projection!r}, not of "
                    f"{projection.name!r}. Name another state directory."
                )
            held = hold(build)
            if held is None:
                continue
            try:
                # It may have been replaced, and even removed, before it was held.
                if current() != build:
                    held.close()
                    continue
                reader = cls(build, projection)
            except BaseException:
                held.close()
                raise
            reader._open.callback(held.close)
            return reader

    def get(self, model_id: str) -> Any | None:
        """Give one model, or None.

        Raises:
            ModelSplit: Several partitions have a part of it.
        """
        raw = self.get_raw(model_id)
        return None if raw is None else self._decode(raw)

    def get_raw(self, model_id: str) -> bytes | None:
        """Give one model as stored.

        Raises:
            ModelSplit: Several partitions have a part of it.
        """
        found = self._find(model_id)
        return None if found is None else found[1]

    def partition_of(self, model_id: str) -> int | None:
        """Say which partition a model is in; None where there is none.

        Raises:
            ModelSplit: Several partitions have a part of it.
        """
        found = self._find(model_id)
        return None if found is None else found[0]

    def get_raw_of(self, partition: int, model_id: str) -> bytes | None:
        """Give one model of one partition as stored."""
        found = self._partitions.get(partition)
        return None if found is None else found.get(model_id)

    def ids(self) -> Iterator[str]:
        """Yield every model's id, by partition and then by id."""
        for number in sorted(self._partitions):
            for model_id in self._partitions[number].ids():
                yield model_id.decode()

    def _find(self, model_id: str) -> tuple[int, bytes] | None:
        found = self._whole.find(model_id)
        if len(found) > 1:
            raise self._split(model_id, found[0][0], found[1][0])
        return found[0] if found else None

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yield every (id, model), by partition and then by id."""
        decode = self._decode
        for model_id, raw in self.raw_items():
            yield model_id, decode(raw)

    def raw_items(self) -> Iterator[tuple[str, bytes]]:
        """Yield every (id, model as stored), by partition and then by id."""
        for number in sorted(self._partitions):
            yield from self._partitions[number].items()

    def select(self, query: Any) -> Iterator[tuple[str, bytes]]:
        """Yield every (id, model as stored) that a query asks for, by partition and then by id.

        Args:
            query: A `Query` of the projection that the reader was opened with.

        Raises:
            ProjectionError: `matches` raised.
        """
        assert self._projection is not None, "a reader of plain JSON has no projection to ask"
        keep = filter_of(self._projection, query)
        return (one for one in self.raw_items() if keep(one[0].encode(), one[1]))

    def states(self) -> dict[int, StoreState]:
        """Give what each partition's store says of itself, by partition."""
        return {number: partition.state() for number, partition in self._partitions.items()}

    def dropped(self) -> dict[int, frozenset[int]]:
        """Give, by partition, the offsets of events that are never to be folded."""
        return {number: frozenset(one.dropped()) for number, one in self._partitions.items()}

    def count(self) -> int:
        """Give the number of models."""
        return sum(state.models for state in self.states().values())

    def check_not_split(self) -> None:
        """Make sure that no model is on several partitions: compare all ids, in bounded memory.

        Raises:
            ModelSplit: One is; it is named with two of its partitions.
        """
        found = first_split({number: one.ids() for number, one in self._partitions.items()})
        if found is not None:
            raise self._split(*found)

    def _split(self, model_id: str, one: int, other: int) -> ModelSplit:
        return split_error(self.build.manifest.projection, self.build.manifest.topic, model_id, one, other)

    def close(self) -> None:
        """Let go of the files."""
        self._partitions.clear()
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hold(build: Build) -> IO[bytes] | None:
    """Keep a build from being removed, until the file is closed; None where it is gone already."""
    try:
        handle = (build.path / MANIFEST).open("rb")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{build.path / MANIFEST} cannot be read: {error.strerror}.") from error
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle
