"""A worker's code that no generation is of: what is to be done with it."""

from __future__ import annotations

import time
from functools import partial

from streams.control import transitions as to
from streams.control import wishes
from streams.control.begin import begin_beside
from streams.control.record import Record
from streams.control.site import Site
from streams.errors import CqrsError
from streams.log import get_logger
from streams.serve.wanted import is_wanted

__all__ = ["ChangedCode"]

log = get_logger(__name__)

_AGAIN_S = 60.0
_SOON_S = 1.0


class ChangedCode:
    """Sees to the code that this worker has of a projection.

    Args:
        site: The projection.
        address: Where this worker is found, for whoever asks what waits.
    """

    def __init__(self, site: Site, address: str) -> None:
        self._site = site
        self._address = address
        self._asks_s = 0.0
        self.not_brought_up = ""
        """Why it could not be brought up; "" where nothing is in the way."""

    def look(self, record: Record) -> None:
        """Where no generation is of this worker's code, do what is to be done with changed code (`OnChange`)."""
        site = self._site
        if site.can_fold(record.live) or time.monotonic() < self._asks_s:
            return
        if any(is_wanted(record, one) and site.can_fold(one) for one in record.generations):
            return
        self._asks_s = time.monotonic() + _AGAIN_S
        try:
            self._ask_for(record)
            self.not_brought_up = ""
        except CqrsError as error:
            self.not_brought_up = str(error)
            log.warning("code.not_brought_up", projection=site.name, again_in_s=_AGAIN_S, why=str(error))

    def _ask_for(self, record: Record) -> None:
        site = self._site
        version, fingerprint, codec = site.code
        # Code that was replaced is no news: in a rolling update old and new workers would take turns for ever.
        match "ask" if fingerprint in record.past else site.settings.on_change:
            case "adopt":
                site.update(partial(wishes.adopted, version=version, fingerprint=fingerprint, codec=codec))
                log.warning("state.adopted", generation=record.active, now=fingerprint)
            case "rebuild" if record.running is None:
                made = begin_beside(site)
                log.info("rebuild.begun", generation=made.wanted, why=f"other code than {record.active}'s")
            case "rebuild":
                self._asks_s = time.monotonic() + _SOON_S
            case "ask":
                site.update(partial(to.waits, version=version, fingerprint=fingerprint, by=self._address))
