"""`python -m tests.integration.crasher JOB`: a rebuild whose process dies at its N-th durable step, with no clean-up.

Durable steps are those that leave something on disk or in Kafka: records, batches, copies, renames, links, offsets.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from streams import (
    FromBeginning,
    FromCheckpoint,
    FromPosition,
    FromSnapshot,
    RebuildStrategy,
    Snapshots,
    SpecificStreams,
)
from streams.adapters.postgres.partition import PostgresPartition
from streams.adapters.postgres.stores import Postgres
from streams.cluster import Cluster
from streams.compacted import CompactedTopic
from streams.config import FoldSettings
from streams.control.generations import Generations
from streams.data import answers, build
from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.files import FILES
from streams.data.letterbox import Letterbox
from streams.data.rocks_partition import RocksPartition
from tests.integration.kit import Kit
from tests.integration.versions import Fixed, Mended

__all__ = ["DIED", "Job", "beside"]

DIED = 9


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What is done, and where it dies."""

    bootstrap: str
    topic: str
    group: str
    state_dir: str
    kind: str
    """beginning, checkpoint, position, snapshot, restore, streams; take, which takes a snapshot; beside and resume, a
    rebuild beside the live generation; run, which folds live and counts as its steps only the replacing of models; or
    letters and mended, which fold all that there is, and keep what cannot be folded.
    """
    positions: dict[int, int] = {}
    snapshot: str = ""
    streams: list[str] = []
    dies_at: int = 0
    """0: it does not."""
    dies_before: bool = True
    """Before the step, or right after it."""
    dsn: str = ""
    """The PostgreSQL that models are kept in; "" where that is files."""
    schema: str = ""

    @classmethod
    def of(cls, kit: Kit, kind: str, **more: Any) -> Job:
        """Give what is done to a kit's generation."""
        where: dict[str, Any] = (
            {"dsn": kit.kind.conninfo, "schema": kit.kind.schema} if isinstance(kit.kind, Postgres) else {}
        )
        state_dir = str(kit.state_dir)
        return cls(
            bootstrap=kit.bootstrap, topic=kit.topic, group=kit.group, state_dir=state_dir, kind=kind, **where, **more
        )

    def strategy(self) -> RebuildStrategy:
        """Give what rebuilds."""
        strategies: dict[str, Callable[[], RebuildStrategy]] = {
            "beginning": FromBeginning,
            "checkpoint": FromCheckpoint,
            "position": lambda: FromPosition(self.positions),
            "snapshot": lambda: FromSnapshot(self.snapshot),
            "restore": lambda: FromSnapshot(self.snapshot, only_restore=True),
            "streams": lambda: SpecificStreams(self.streams),
        }
        return strategies[self.kind]()

    def run(self) -> None:
        """Do it."""
        kind = Postgres(self.dsn, self.schema) if self.dsn else FILES
        kit = Kit(self.bootstrap, self.topic, self.group, Path(self.state_dir), kind=kind)
        if self.kind == "take":
            current = kit.store.current()
            assert current is not None
            Snapshots(kit.store.directory).take(current, wait_s=10)
        elif self.kind in ("beside", "resume"):
            generations = beside(kit)
            if self.kind == "beside":
                asyncio.run(generations.rebuild(policy="report", approve="auto", keep=timedelta(0), workers=0))
            else:
                asyncio.run(generations.resume(workers=0))
        elif self.kind in ("letters", "mended"):
            kit.settings = FoldSettings(on_error="dead-letter", checkpoint_events=5, session_timeout_s=2)
            if self.kind == "mended":
                kit.projection = Mended()
            kit.fold_all(adopt=True)
        elif self.kind == "run":
            with kit.live() as agent:
                agent.run()
        else:
            asyncio.run(kit.coordinator().rebuild(self.strategy()))


def beside(kit: Kit) -> Generations:
    """The fixed version of the kit's projection, beside what there is."""
    return Generations(
        Fixed(),
        kit.events,
        registry=kit.registry,
        state_dir=kit.state_dir,
        group=kit.group,
        kind=kit.kind or FILES,
        settings=kit.settings,
    )


def _prepare(job: Job) -> None:
    steps = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            is_it = steps == job.dies_at
            if is_it and job.dies_before:
                os._exit(DIED)
            given = call(*arguments, **options)
            if is_it:
                os._exit(DIED)
            return given

        return step

    Letterbox.send = dying(Letterbox.send)  # type: ignore[method-assign]
    Letterbox.write = dying(Letterbox.write)  # type: ignore[method-assign]
    if job.kind == "run":
        vars(answers)["swap"] = dying(vars(answers)["swap"])
        return
    written = dying(build.write_record)
    for module in list(sys.modules.values()):
        if getattr(module, "write_record", None) is build.write_record and module is not build:
            module.write_record = written  # type: ignore[attr-defined]
    build.write_record = written
    for owner, names in (
        (RocksPartition, ("commit", "carry", "snapshot")),
        (PostgresPartition, ("commit", "cut")),
        (Postgres, ("remember", "show", "finish", "forget")),
        (KafkaCheckpointStore, ("claim",)),
        (CompactedTopic, ("update",)),
        (Cluster, ("delete_group",)),
        (Path, ("rename",)),
        (os, ("link",)),
        (shutil, ("rmtree", "copyfile")),
    ):
        for name in names:
            setattr(owner, name, dying(getattr(owner, name)))
    RocksPartition.stamp = staticmethod(dying(RocksPartition.stamp))  # type: ignore[method-assign]


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Job)
    _prepare(given)
    given.run()
