"""Whether a disk can hold what a rebuild is about to write."""

from __future__ import annotations

import shutil
from pathlib import Path

from streams.errors import DiskFull

__all__ = ["check_space", "free_bytes"]

_MB = 1e6


def free_bytes(directory: Path) -> int | None:
    """Give what is free where a directory is, or is to be; None where nobody can tell."""
    for path in (directory.absolute(), *directory.absolute().parents):
        if path.exists():
            return shutil.disk_usage(path).free
    return None


def check_space(directory: Path, needed: int, projection: str) -> None:
    """Make sure that a disk has the space that further models will take, by those that there are.

    Args:
        directory: Where they are to be.
        needed: What those take that there are, in bytes.
        projection: Whose they are.

    Raises:
        DiskFull: It has not. Nothing was changed.
    """
    free = free_bytes(directory)
    if free is not None and free < needed:
        raise DiskFull(
            f"{directory.absolute()} has {free / _MB:,.1f} MB free, and models beside those of {projection!r} will "
            f"take about {needed / _MB:,.1f} MB, as these do. Nothing was changed. Make space (`refold retire`, "
            "`refold snapshots P prune`), name another state directory, or rebuild in place.",
            projection=projection,
        )
