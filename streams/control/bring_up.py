"""Seeing to it that the active generation is of this process's code, before it is folded for good."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Protocol

from streams.control.begin import begin_beside
from streams.control.green import NICE, Green
from streams.control.site import Site
from streams.control.transitions import waits
from streams.data.supervisor import supervised
from streams.errors import RebuildCancelled, RebuildRunning
from streams.log import get_logger

__all__ = ["Stopping", "bring_up"]

log = get_logger(__name__)

_LOOK_S = 1.0


class Stopping(Protocol):
    """A stop that may be asked for at any time."""

    @property
    def is_asked(self) -> bool:
        """Whether it was asked for."""
        ...

    def to(self, target: Callable[[], None]) -> None:
        """Say what to call when it is, or where it was."""
        ...


def bring_up(site: Site, workers: int, *, rebuilds: bool, stop: Stopping) -> bool:
    """See that the active generation is of this process's code, or make one that is, beside it.

    Args:
        site: The projection.
        workers: How many processes replay.
        rebuilds: Make one; otherwise only say in the registry that this code waits.
        stop: Ends the waiting.

    Returns:
        Whether there is something to fold; False where a stop was asked for meanwhile.

    Raises:
        See `Generations.rebuild`.
    """
    record = site.registry.get(site.name)
    if record is None or site.can_fold(record.live):
        return True
    if not rebuilds:
        who = f"process {os.getpid()} on {socket.gethostname()}"
        site.update(lambda record: waits(record, *site.code[:2], who))
        return True  # whoever claims the state refuses, unless the registry is behind it
    while not stop.is_asked:
        record = site.record()
        if site.can_fold(record.live):
            return True
        green = Green(site, supervised(workers, nice=NICE), is_patient=True, hands_over=False)
        stop.to(green.stop)
        try:
            if record.running is None:
                begin_beside(site)
            green.drive()
        except RebuildRunning as error:
            log.info("run.waits", projection=site.name, why=str(error))
            time.sleep(_LOOK_S)
        except RebuildCancelled:
            return False
    return False
