"""Fetching a partition's store from the snapshot repository, on a thread, before it is opened."""

from __future__ import annotations

import errno
import math
import shutil
import threading
import time
from collections.abc import Iterable

from streams.data.build import Build, sync_directory
from streams.data.repository import Kept, Repository
from streams.data.rocks import failure, held_still
from streams.data.rocks_partition import RocksPartition
from streams.data.scratch import Scratch
from streams.data.store import StoreState
from streams.data.store_reader import read_state
from streams.errors import DiskFull, ForeignStore, RepositoryError, StorageError, StoreCorrupt, StoreLocked, at
from streams.log import get_logger

__all__ = ["PATIENCE_S", "WORTH", "Restore"]

log = get_logger(__name__)

WORTH = 10_000
"""So many events are folded again in less time than a snapshot takes to come."""
_HANGS_S = 30.0
PATIENCE_S = 30.0
"""For so long a repository that does not answer is asked again, before the partition is folded again instead."""
_RETRY_S = 1.0
_AT_ONCE = threading.Semaphore(2)
_MB = 1e6


class _Cancelled(Exception):
    pass


class Restore:
    """One partition's store on its way here. `place` is for whoever opens it; the rest goes on by itself.

    Args:
        repository: From where; this restore's own.
        build: What it is a part of.
        topic: The topic's name.
        partition: The partition.
        between: The first and last position that are of use.
        patience_s: How long a repository is asked again that does not answer.
    """

    def __init__(
        self,
        repository: Repository,
        build: Build,
        topic: str,
        partition: int,
        between: tuple[int, int],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._repository = repository
        self._build = build
        self._partition = partition
        self._where = at(topic, partition)
        self._between = between
        self._patience_s = patience_s
        self._is_cancelled = threading.Event()
        self._guard = threading.Lock()
        self._found: tuple[Scratch, StoreState] | None = None
        self._error: DiskFull | None = None
        self._total = 0
        self.came_bytes = 0
        """What has come so far."""
        self.seconds = 0.0
        """What it took."""
        self._moved_s = math.inf
        """When something has come last; it waits for its turn before."""
        self._thread = threading.Thread(target=self._run, name="refold-restore", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether it has come to an end, be it with a store or without one; also where nothing has come for long."""
        return not self._thread.is_alive() or time.monotonic() - self._moved_s > self._patience_s + _HANGS_S

    def __str__(self) -> str:
        """Say how far it is."""
        if not self._total:
            return f"looking for a snapshot in {self._repository.url}"
        return f"{self.came_bytes / _MB:,.1f} of {self._total / _MB:,.1f} MB of a snapshot have come"

    def cancel(self) -> None:
        """Have it end soon; what has come is removed."""
        with self._guard:
            self._is_cancelled.set()
            if self._found is not None:
                self._found[0].close()
                self._found = None

    def place(self) -> StoreState | None:
        """Put what has come in the partition's place; give its state, None where nothing of use has come.

        A store that is there is replaced, unless it is further by now: its lock is held while it is moved away. A crash
        in between leaves no store, as before it had ever come here.

        Raises:
            DiskFull: It had no space for it.
            StoreLocked: Another process has the store open that is there.
            StoreCorrupt, ForeignStore, StorageError: That cannot be opened, or replaced.
        """
        if self._thread.is_alive():
            self.cancel()
            log.warning("snapshot.not_restored", where=self._where, why=f"{self._repository.url} hangs")
            return None
        if self._error is not None:
            raise self._error
        found, self._found = self._found, None
        if found is None:
            return None
        scratch, state = found
        path = self._build.path / str(self._partition)
        try:
            if path.is_dir():
                # Whole and of this build? Not open while it is moved: RocksDB goes by names, also as it is closed.
                RocksPartition.open(path, self._build.fresh(self._partition, 0)).close()
                with held_still(path):
                    if read_state(path).position >= state.position:
                        return None
                    path.rename(scratch.old)
                    scratch.path.rename(path)
            else:
                scratch.path.rename(path)
            sync_directory(path.parent)
        except StoreLocked:
            self._found = found  # for the next try
            raise
        except StorageError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process has begun it meanwhile
                return None
            raise failure(path, "write", error) from error
        finally:
            if self._found is None:
                scratch.close()
        return state

    # On the thread

    def _run(self) -> None:
        began = time.monotonic()
        try:
            with _AT_ONCE:
                self._moved_s = time.monotonic()
                found = self._fetch(began)
            with self._guard:
                if found is not None and self._is_cancelled.is_set():
                    found[0].close()
                else:
                    self._found = found
        except _Cancelled:
            pass
        except DiskFull as error:
            self._error = error
        except StorageError as error:
            log.warning("snapshot.not_restored", where=self._where, why=str(error))
        except Exception:  # a fault of ours must not keep the partition from being folded
            log.exception("snapshot.not_restored", where=self._where)
        self.seconds = time.monotonic() - began

    def _fetch(self, began: float) -> tuple[Scratch, StoreState] | None:
        while True:
            self._check()
            try:
                return self._try_each()
            except RepositoryError as error:
                if time.monotonic() - began > self._patience_s:
                    raise
                log.warning("repository.away", url=self._repository.url, again_in_s=_RETRY_S, why=str(error))
                self._is_cancelled.wait(_RETRY_S)

    def _try_each(self) -> tuple[Scratch, StoreState] | None:
        """Take the furthest one that is whole.

        Raises:
            RepositoryError: The repository does not answer.
            DiskFull, StorageError: The disk.
        """
        for one in self._of_use(self._repository.kept(self._partition)):
            scratch = Scratch(self._build, f"restoring-{self._partition}")
            try:
                return scratch, self._take(one, scratch)
            except (StoreCorrupt, ForeignStore) as error:
                scratch.close()
                log.warning("snapshot.damaged", where=self._where, position=one.position, why=str(error))
            except BaseException:
                scratch.close()
                raise
        return None

    def _of_use(self, kept: Iterable[Kept]) -> list[Kept]:
        first, last = self._between
        return [one for one in kept if first <= one.position <= last]

    def _take(self, one: Kept, scratch: Scratch) -> StoreState:
        snapshot = self._repository.get(self._partition, one.position)
        if snapshot is None:
            raise StoreCorrupt(f"The snapshot of {self._where} at {one.position} was removed meanwhile.")
        self._total, self.came_bytes = snapshot.size_bytes, 0
        free = shutil.disk_usage(self._build.path).free
        if free < self._total:
            raise DiskFull(
                f"{self._build.path} has {free / _MB:,.1f} MB free, and the snapshot of {self._where} takes "
                f"{self._total / _MB:,.1f} MB. It is fetched once there is space."
            )
        scratch.path.mkdir()
        self._repository.fetch(snapshot, scratch.path, self._came)
        found = read_state(scratch.path)
        if found != snapshot.state:
            self._repository.drop(self._partition, one.position)
            raise StoreCorrupt(
                f"The snapshot of {self._where} says {snapshot.state}, and the store in it {found}. It was removed."
            )
        return found

    def _came(self, count: int) -> None:
        self.came_bytes += count
        self._moved_s = time.monotonic()
        self._check()

    def _check(self) -> None:
        if self._is_cancelled.is_set():
            raise _Cancelled
