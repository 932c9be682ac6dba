"""`unshare -rm python -m tests.integration.full_disk …`: a rebuild onto a disk that is full for a while.

In a mount namespace of its own the state is on a file system of 40 MB, nearly all of it taken; that is given back once
the rebuild waits.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from streams.config import FoldSettings
from tests.integration.kit import Kit, until

__all__ = ["main"]

_MB = 1 << 20


def main(bootstrap: str, topic: str, group: str, directory: str) -> None:
    """Do it, and check the models."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", directory], check=True)
    ballast = Path(directory) / "ballast"
    ballast.write_bytes(bytes(38 * _MB + _MB // 2))  # what is left is less than any rebuild of this writes
    kit = Kit(
        bootstrap,
        topic,
        group,
        Path(directory) / "state",
        settings=FoldSettings(checkpoint_events=20, session_timeout_s=2),
    )
    asyncio.run(_rebuild(kit, ballast.unlink))


async def _rebuild(kit: Kit, make_room: Callable[[], None]) -> None:
    coordinator = kit.coordinator()
    work = asyncio.ensure_future(coordinator.rebuild_from_beginning())
    await asyncio.to_thread(until, "it waits", lambda: work.done() or coordinator.get_progress().waiting_for)
    assert not work.done(), f"it has not waited: {work.exception() or 'the disk was never full'}"
    said = coordinator.get_progress().waiting_for
    assert "No space left on device" in said, said
    make_room()
    progress = await work
    assert progress.completion_percentage() == 100.0
    print(f"waited for {said}; {kit.check()} events")


if __name__ == "__main__":
    main(*sys.argv[1:])
