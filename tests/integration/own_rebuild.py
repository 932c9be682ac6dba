"""`python -m tests.integration.own_rebuild BOOTSTRAP TOPIC PATH`: a rebuild into a store of one's own, to be killed.

It goes on where there is something to go on with, and begins else.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from streams import KafkaEventStore, MemoryCheckpointStore, RebuildCoordinator
from streams.config import FoldSettings, KafkaSettings
from streams.errors import CheckpointError
from tests.integration.sqlite_models import SqliteModels
from tests.support import Tally


def main() -> None:
    """Do it."""
    bootstrap, topic, path = sys.argv[1:]
    coordinator = RebuildCoordinator(
        Tally(),
        KafkaEventStore(topic, kafka=KafkaSettings(bootstrap_servers=bootstrap)),
        SqliteModels(Path(path)),
        MemoryCheckpointStore(),
        settings=FoldSettings(checkpoint_events=100, rate="5000"),
    )
    try:
        progress = asyncio.run(coordinator.rebuild_from_checkpoint())
    except CheckpointError:
        progress = asyncio.run(coordinator.rebuild_from_beginning())
    print(progress.completion_percentage())


if __name__ == "__main__":
    main()
