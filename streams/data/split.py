"""Models of which several partitions have a part: found, and said."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import islice

from streams.data.build import Build
from streams.data.fold import Fold
from streams.errors import ModelSplit, at

__all__ = ["HeldElsewhere", "SplitWatch", "first_split", "split_error"]

_CHUNK = 10_000
_MANY_NEW = 1000


class SplitWatch:
    """Finds models that are on two of the partitions that one process folds, while it folds.

    Args:
        build: What is folded.
    """

    def __init__(self, build: Build) -> None:
        self._build = build
        self.is_behind = False
        """Whether there were too many new models to look each up, so that `compare` is due."""

    def look(self, partition: int, folds: Mapping[int, Fold]) -> None:
        """Make sure that models that are new in a partition are not in another one too.

        Many at once, as in a replay, are left to one comparison of all at its end.

        Args:
            partition: The one that is about to be committed.
            folds: All that this process has.

        Raises:
            ModelSplit: One is.
        """
        new = folds[partition].cache.new_ids()
        if len(new) > _MANY_NEW:
            self.is_behind = True
            return
        for number, other in folds.items():
            if number != partition:
                for model_id in new:
                    if other.cache.has(model_id):
                        raise self.error(model_id, *sorted((partition, number)))

    def compare(self, ids: Mapping[int, Iterator[bytes]]) -> None:
        """Compare all models as committed.

        Args:
            ids: See `first_split`.

        Raises:
            ModelSplit: One is on two partitions.
        """
        self.is_behind = False
        found = first_split(ids)
        if found is not None:
            raise self.error(*found)

    def error(self, model_id: str, one: int, other: int) -> ModelSplit:
        """Say that a model is on two partitions."""
        manifest = self._build.manifest
        return split_error(manifest.projection, manifest.topic, model_id, one, other)


def first_split(sources: Mapping[int, Iterator[bytes]]) -> tuple[str, int, int] | None:
    """Find an id that several partitions have, in bounded memory: the id and two of the partitions; None where none is.

    Args:
        sources: By partition, its ids in the order of their bytes.
    """
    chunks = {number: list(islice(ids, _CHUNK)) for number, ids in sources.items()}
    while len(chunks := {number: chunk for number, chunk in chunks.items() if chunk}) > 1:
        # Up to the smallest of the chunks' last ids, every partition's ids are here.
        pivot = min(chunk[-1] for chunk in chunks.values())
        here = {number: chunk[: bisect_right(chunk, pivot)] for number, chunk in chunks.items()}
        if len(set().union(*here.values())) < sum(map(len, here.values())):
            owner: dict[bytes, int] = {}
            for number, ids in sorted(here.items()):
                for model_id in ids:
                    if owner.setdefault(model_id, number) != number:
                        return model_id.decode(), owner[model_id], number
        for number, ids in here.items():
            chunks[number] = chunks[number][len(ids) :] or list(islice(sources[number], _CHUNK))
    return None


class HeldElsewhere(ModelSplit):
    """A store has a model in another partition than the one that is to be committed. Who knows the topic says so."""

    def __init__(self, model_id: str, partition: int | None, other: int) -> None:
        super().__init__(f"Model {model_id!r} is in partitions {partition} and {other}.", partition=partition)
        self.model_id = model_id
        self.other = other

    def __reduce__(self) -> tuple[type[HeldElsewhere], tuple[str, int | None, int]]:
        return HeldElsewhere, (self.model_id, self.partition, self.other)


def split_error(projection: str, topic: str, model_id: str, one: int, other: int) -> ModelSplit:
    """Say that events of one model are on two partitions, why that may be, and what can be done."""
    return ModelSplit(
        f"Model {model_id!r} is on {at(topic, one)} and on {at(topic, other)}: its events are spread over "
        "both, so each "
        "holds a part of it, in no defined order. Partitions were added to the topic, two producers choose partitions "
        "differently (murmur2 and CRC32), or the stream is not what the records are keyed by. Say so in the "
        'projection: with `partition_by = "model"` the events are written once more, keyed by model, and folded from '
        "there.",
        projection=projection,
        topic=topic,
        partition=one,
    )
