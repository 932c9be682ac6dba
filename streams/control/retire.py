"""Removing a generation: its group, its state with the snapshots in it, and then its name in the registry."""

from __future__ import annotations

import time
from collections.abc import Callable

from streams.control.record import Generation, Record
from streams.control.repartitioning import remove_topic
from streams.control.site import Site
from streams.control.transitions import retired
from streams.control.wishes import retiring
from streams.data.repository import remove_state
from streams.errors import StoreLocked
from streams.log import get_logger

__all__ = ["retire", "retire_all"]

log = get_logger(__name__)

_LOOK_S = 0.1


def retire(
    site: Site, generation: str, why: str, *, wait_s: float = 60.0, check_cancelled: Callable[[], None] = lambda: None
) -> Record:
    """Remove a generation that is kept, or whose rebuild was cancelled. What was done before a crash is not done again.

    1. Say in the registry that it is being removed: nobody begins to fold or read it any more, and whoever folds it
       stops.
    2. Wait for them, then delete its group, and its own topic where it has one.
    3. Wait for readers, then remove its state, on this machine and in the snapshot repository.
    4. Take it out of the registry.

    Args:
        site: The projection.
        generation: Its id.
        why: Why.
        wait_s: How long to wait for whoever folds or reads it.
        check_cancelled: Raises where it is not to be waited for any longer; another call goes on.

    Raises:
        GenerationNotFound, NotReady: There is no such generation, or it is not kept.
        GroupActive, StoreLocked: Somebody goes on folding or reading it. It stays as one that is to be removed.
        BrokerError, StorageError, RepositoryError: Kafka, the disk, or the snapshot repository.
    """
    # Step 1
    record = site.update(lambda record: retiring(record, generation, why))
    found = record.find(generation)
    if found is None:
        return record
    # Step 2
    deadline = time.monotonic() + wait_s
    cluster = site.events.cluster
    while cluster.members(found.group) and time.monotonic() < deadline:
        check_cancelled()
        time.sleep(_LOOK_S)
    cluster.delete_group(found.group)
    while not remove_topic(cluster, found):
        check_cancelled()
        if time.monotonic() > deadline:
            cluster.check_inactive(found.topic)  # names who is in it
        time.sleep(_LOOK_S)
    # Step 3
    store = site.place(found).store
    while not store.remove():
        check_cancelled()
        if time.monotonic() > deadline:
            raise StoreLocked(
                f"Generation {generation} in {store.directory} is still read or folded by "
                f"{', '.join(map(str, store.users())) or 'a reader'}. It is not active any more, and is removed once "
                f"they have let go: `refold retire {site.name} {generation}`.",
                projection=site.name,
            )
        time.sleep(_LOOK_S)
    remove_state(site.settings, site.name, found.state)
    # Step 4
    record = site.update(lambda record: retired(record, generation))
    log.info("generation.retired", generation=generation, why=found.why)
    return record


def retire_all(site: Site, which: Callable[[Generation], bool], why: str) -> Record:
    """Remove all generations of which it is true."""
    record = site.record()
    for one in record.generations:
        if which(one):
            record = retire(site, one.id, why)
    return record
