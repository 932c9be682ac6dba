"""The registry: every projection's record, in one compacted topic."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from streams.cluster import Cluster
from streams.compacted import CompactedTopic
from streams.control.record import SCHEMAS, Record, schema_of
from streams.errors import BrokerError, BrokerUnavailable, RegistryError
from streams.log import get_logger

__all__ = ["Registry", "Watch"]

log = get_logger(__name__)


class Registry:
    """All projections' records, in one compacted topic that every process reads.

    Args:
        cluster: Where it is.
        topic: The topic's name.
        copies: A directory for copies of what was read, by which readers find models while no broker answers.
    """

    def __init__(self, cluster: Cluster, topic: str = "refold.registry", *, copies: Path | None = None) -> None:
        self._topic = CompactedTopic(cluster, topic)
        self._copies = copies

    def all(self) -> dict[str, Record]:
        """Give every projection's record.

        Raises:
            RegistryError: One is of another schema, or cannot be understood.
            BrokerUnavailable, BrokerError: From Kafka.
        """
        return {key: self._decoded(key, raw) for key, raw in self._topic.read().items()}

    def get(self, projection: str) -> Record | None:
        """Give a projection's record; None where it has none.

        Raises:
            RegistryError: It is of another schema, or cannot be understood.
            BrokerUnavailable, BrokerError: From Kafka.
        """
        raw = self._topic.read().get(projection)
        if raw is None:
            return None
        record = self._decoded(projection, raw)
        self._copy(record, raw)
        return record

    def last_known(self, projection: str) -> Record | None:
        """Give a projection's record as this machine last saw it, without asking Kafka; None where it never did."""
        try:
            raw = None if self._copies is None else self._path(projection).read_bytes()
        except OSError:
            return None
        return None if raw is None else self._decoded(projection, raw)

    def update(
        self, projection: str, change: Callable[[Record | None], Record], *, limit_s: float | None = None
    ) -> Record:
        """Change a projection's record: compare-and-set, see `CompactedTopic.update`.

        Args:
            projection: Whose.
            change: Gives the new record for the old one, or raises where it does not allow that. Called again where
                somebody else wrote meanwhile, so it must go by what it is given alone.
            limit_s: How long to go on trying; by default for over a minute.

        Returns:
            The record as it is now.

        Raises:
            Whatever `change` raises; nothing was written.
            RegistryError: The record is of another schema.
            BrokerUnavailable, BrokerError: From Kafka.
        """

        def changed(raw: bytes | None) -> bytes:
            before = None if raw is None else self._decoded(projection, raw)
            after = change(before)
            if raw is not None and after == before:
                return raw
            revision = 1 if before is None else before.revision + 1
            after = msgspec.structs.replace(after, revision=revision, schema=schema_of(after))
            return msgspec.json.encode(after)

        raw = self._topic.update(projection, changed, limit_s=limit_s)
        record = self._decoded(projection, raw)
        self._copy(record, raw)
        return record

    def watch(self, projection: str, *, is_patient: bool = False) -> Watch:
        """Follow a projection's record, on a thread; close it, or use it in `with`.

        Args:
            projection: Whose.
            is_patient: Begin without one where no broker answers just now.

        Raises:
            BrokerUnavailable, BrokerError: From Kafka.
        """
        return Watch(self, projection, self._topic, is_patient=is_patient)

    def _decoded(self, projection: str, raw: bytes) -> Record:
        try:
            found = msgspec.json.decode(raw)
            if isinstance(found, dict) and found.get("schema") not in SCHEMAS:
                raise RegistryError(
                    f"The record of {projection!r} in topic {self._topic.name!r} has schema {found.get('schema')!r}; "
                    f"this version of refold knows {SCHEMAS[-1]}. Use the version that wrote it. Nothing was changed.",
                    projection=projection,
                )
            return msgspec.convert(found, Record, str_keys=True)
        except msgspec.MsgspecError as error:
            raise RegistryError(
                f"The record of {projection!r} in topic {self._topic.name!r} cannot be understood: {error}. It begins "
                f"{raw[:80]!r}. Nothing was changed.",
                projection=projection,
            ) from error

    def _path(self, projection: str) -> Path:
        assert self._copies is not None
        return self._copies / f"{projection}.registry.json"

    def _copy(self, record: Record, raw: bytes) -> None:
        """Keep a copy where there is state; a courtesy to readers, and no harm where it cannot be."""
        here = self._copies
        if here is None or not any((here / one.directory).is_dir() for one in record.generations):
            return
        path = self._path(record.projection)
        with contextlib.suppress(OSError):
            if path.exists() and path.read_bytes() == raw:
                return
            new = path.with_suffix(f".{threading.get_ident()}.new")
            new.write_bytes(raw)
            new.replace(path)


class Watch:
    """One projection's record, followed by a thread of its own. What cannot be read leaves it as it was."""

    def __init__(self, registry: Registry, projection: str, topic: CompactedTopic, *, is_patient: bool) -> None:
        self.record: Record | None = None
        """The newest that was read."""
        try:
            self.record = registry.get(projection)
        except BrokerUnavailable:
            if not is_patient:
                raise
        self._registry = registry
        self._projection = projection
        self._topic = topic
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="refold-registry", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._closed.is_set():
            with closing(self._topic.follow()) as values:
                for value in values:
                    if self._closed.is_set():
                        return
                    if value is None or value[0] != self._projection:
                        continue
                    try:
                        record = self._registry._decoded(*value)
                    except BrokerError as error:
                        log.warning("registry.unreadable", projection=self._projection, why=str(error))
                        continue
                    if self.record is None or record.revision > self.record.revision:
                        self.record = record

    def close(self) -> None:
        """Stop following."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
