"""A rebuild that a fleet of workers makes, followed from outside: no state and no code of it is needed here."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

from streams.control import changing
from streams.control.record import Record
from streams.control.repartitioning import Stages
from streams.control.site import Site
from streams.errors import BrokerError, RebuildCancelled
from streams.log import get_logger
from streams.types import RebuildProgress

__all__ = ["Onlooker", "is_led"]

log = get_logger(__name__)

_LOOK_S = 0.1


def is_led(site: Site, record: Record) -> bool:
    """Say whether workers see to a projection, so that nobody else is to drive its rebuilds.

    Raises:
        BrokerError: From Kafka.
    """
    return bool(record.fleet) and bool(site.events.cluster.members(record.fleet))


class Onlooker:
    """Looks on until the fleet has switched, given up, or waits for a person.

    `drive` blocks; the rest may be called from any thread.

    Args:
        site: The projection.
        is_patient: Look on while a person is to approve.
    """

    is_orphan = False
    """Workers fold what they have switched to."""

    def __init__(self, site: Site, *, is_patient: bool = False) -> None:
        self._site = site
        self._is_patient = is_patient
        self._stopped = threading.Event()
        self._progress = RebuildProgress(started_at=datetime.now(UTC), is_running=True)

    @property
    def progress(self) -> RebuildProgress:
        """The figures of the replay so far, and what is waited for."""
        return self._progress

    def stop(self) -> None:
        """Look on no longer; the rebuild goes on."""
        self._stopped.set()

    def drive(self) -> Record:
        """Look on until there is nothing more to be seen.

        Returns:
            The record as it is then.

        Raises:
            NotReady: No rebuild is under way.
            RebuildCancelled: `stop` was called. The rebuild goes on.
            BrokerError: The registry cannot be read.
        """
        site = self._site
        record = site.record()
        id_ = changing.running(record, "looked at").id
        log.info("rebuild.by_workers", projection=site.name, group=record.fleet)
        stages = Stages(site.events.cluster)
        with site.registry.watch(site.name) as watch:
            while True:
                record = watch.record if watch.record is not None else record
                running = record.running
                green = None if running is None else record.find(running.generation)
                if running is None or running.id != id_ or green is None:
                    self._progress = replace(self._progress, is_running=False, waiting_for="")
                    return record
                if green.phase == "waiting" and not self._is_patient:
                    self._progress = replace(self._progress, is_running=False, waiting_for="")
                    return record
                try:
                    stages.look(green)
                except BrokerError as error:
                    log.debug("rebuild.not_seen", why=str(error))
                if stages.progress is not None:
                    self._progress = stages.progress
                waits = running.why or f"the workers: {green.id} is {green.phase}"
                if green.phase not in ("repartitioning", "replaying") or running.why:
                    self._progress = replace(self._progress, waiting_for=waits)
                self._check_stopped()
                time.sleep(_LOOK_S)

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise RebuildCancelled(
                f"The rebuild of {self._site.name!r} goes on: workers make it. `refold pause {self._site.name}` has "
                f"them wait, and `refold cancel {self._site.name}` gives it up.",
                projection=self._site.name,
                topic=self._site.events.topic,
            )
