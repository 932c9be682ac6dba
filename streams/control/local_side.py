"""A generation whose models are on this machine, as one side of a comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from streams.control.compare import Report
from streams.control.runs import Models, NoModels, StoredModels
from streams.control.verify import REPORT
from streams.data.build import Build, write_record
from streams.data.cut import Cut, Held
from streams.types import TopicInfo

__all__ = ["LocalCut", "LocalSide"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSide:
    """See Side."""

    generation: str
    build: Build

    @property
    def projection(self) -> str:
        """See Side."""
        return self.build.manifest.projection

    @property
    def topic(self) -> TopicInfo:
        """See Side."""
        manifest = self.build.manifest
        return TopicInfo(name=manifest.topic, id=manifest.topic_id, partitions=manifest.partitions)

    @contextmanager
    def cut(self) -> Iterator[LocalCut]:
        """See Side."""
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="refold-verify-")))
            yield LocalCut(stack.enter_context(Cut.asked(self.build)), stack, scratch)

    def keep(self, report: Report) -> None:
        """See Side: beside the new generation's state."""
        write_record(self.build.root / REPORT, report)


class LocalCut:
    """See SideCut.

    Args:
        cut: What was asked for.
        stack: Closes what is opened.
        scratch: An empty directory.
    """

    def __init__(self, cut: Cut, stack: ExitStack, scratch: Path) -> None:
        self._cut = cut
        self._stack = stack
        self._scratch = scratch

    def partitions(self) -> Iterable[int]:
        """See SideCut."""
        return self._cut.build.partitions()

    def held(self) -> Mapping[int, Held]:
        """See SideCut."""
        return self._cut.held()

    def set_barrier(self, positions: Mapping[int, int]) -> None:
        """See SideCut."""
        self._cut.set_barrier(positions)

    def copied(self, positions: Mapping[int, int]) -> set[int]:
        """See SideCut."""
        return self._cut.copied(positions)

    def models(self, partition: int) -> Models:
        """See SideCut."""
        path = self._cut.copy(partition)
        if not path.is_dir():
            return NoModels()
        store = self._cut.build.stores.read_cut(partition, path, self._scratch / str(partition))
        self._stack.callback(store.close)
        return StoredModels(store)
