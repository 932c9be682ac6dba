"""What the snapshot repository has for a directory in which nothing is yet: a disk was lost, or a machine is new."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from streams.config import FoldSettings
from streams.control.ground import Committed, Ground
from streams.control.record import Generation
from streams.data.build import Manifest
from streams.data.repository import Repository, StoredSnapshot
from streams.errors import ForeignStore, StoreCorrupt
from streams.log import get_logger
from streams.types import Watermarks

__all__ = ["groups_state", "of_use", "repository_of"]

log = get_logger(__name__)


def repository_of(settings: FoldSettings, projection: str, one: Generation) -> Repository | None:
    """Give the repository of a generation, as the registry has it; None where the settings name none.

    Raises:
        ConfigError: See `Objects`.
    """
    manifest = Manifest(
        projection=projection,
        version=one.version,
        fingerprint=one.fingerprint,
        codec=one.codec,
        topic=one.topic,
        topic_id=one.topic_id,
        partitions=one.partitions,
        build=one.epoch,
        directory=one.state,
    )
    return Repository.of(settings, manifest) if one.state else None


def of_use(repository: Repository | None, watermarks: Mapping[int, Watermarks]) -> dict[int, StoredSnapshot]:
    """Give the furthest snapshot of each partition from which it can be folded on.

    Args:
        repository: Where to look; None: there is none.
        watermarks: Those of the partitions to look for.

    Raises:
        RepositoryError: The repository does not answer.
    """
    found: dict[int, StoredSnapshot] = {}
    if repository is None:
        return found
    for number, marks in watermarks.items():
        for one in repository.kept(number):
            if not marks.low <= one.position <= marks.high:
                continue
            try:
                snapshot = repository.get(number, one.position)
            except (StoreCorrupt, ForeignStore) as error:
                log.warning("snapshot.damaged", partition=number, position=one.position, why=str(error))
                continue
            if snapshot is not None:
                found[number] = snapshot
                break
    return found


def groups_state(
    ground: Ground, wanted: Manifest, watermarks: Mapping[int, Watermarks], committed: Committed
) -> tuple[Manifest, set[int]] | None:
    """Give the state that a group's offsets are of, where the repository has it, of the code and codec that are wanted.

    Returns:
        What it is of, and the partitions that can be fetched; None where it is to be folded from its beginning.

    Raises:
        RepositoryError: The repository does not answer.
    """
    stamps = [stamp for _, stamp in committed.values()]
    of = {(stamp.directory, stamp.build, stamp.fingerprint) for stamp in stamps if stamp is not None}
    if ground.settings.snapshot_repository is None or len(of) != 1 or None in stamps:
        return None
    ((directory, build, fingerprint),) = of
    manifest = msgspec.structs.replace(wanted, directory=directory, build=build)
    if fingerprint != wanted.fingerprint:
        return None
    found = of_use(Repository.of(ground.settings, manifest), watermarks)
    if not found or any(one.of.codec != wanted.codec for one in found.values()):
        return None
    incomplete = any(one.of.incomplete for one in found.values())
    return msgspec.structs.replace(manifest, incomplete=incomplete), set(found)
