"""Having those who read models where they are kept, and not through refold, see what is active."""

from __future__ import annotations

import time
from concurrent.futures import Future

from streams.control.record import Generation, Record
from streams.control.site import Site
from streams.control.threads import on_thread
from streams.data.build import Build
from streams.data.files import FILES
from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["Finishing", "Showing"]

log = get_logger(__name__)

_AGAIN_S = 2.0


class Finishing:
    """Makes builds ready to be read (`Kind.finish`), which may take minutes, on a thread of its own.

    A process that ends does not wait for it: whoever asks next goes on with it.
    """

    def __init__(self) -> None:
        self._of: Build | None = None
        self._done: Future[None] | None = None

    def is_done(self, build: Build | None) -> bool:
        """Say whether a build is ready; begin to make it so where it is not.

        Raises:
            StorageError: It cannot be; asked again, it is tried again.
        """
        if build is None or build.is_in_files:
            return True
        if self._done is None or self._of is None or self._of.path != build.path:
            self._of = build
            self._done = on_thread(lambda: build.kind.finish(build.stores), "refold-finishing", daemon=True)
        if not self._done.done():
            return False
        done, self._done = self._done, None
        done.result()
        return True


class Showing:
    """Shows the active generation, each time that it is another one, and makes it ready to be read.

    Args:
        site: The projection.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._shown: tuple[str, int, str] | None = None
        self._finished: tuple[str, int, str] | None = None
        self._finishing = Finishing()
        self._again_s = 0.0

    def look(self, record: Record | None) -> None:
        """See to it; what cannot be done now is tried again after a while."""
        if record is None or self._site.kind == FILES or time.monotonic() < self._again_s:
            return
        live = record.live
        if record.running is not None and record.running.is_in_place:
            return  # what was there before is seen until it is over
        key = (live.id, live.epoch, live.state)
        if key == self._shown == self._finished:
            return
        try:
            is_elsewhere = live.kept_in != self._site.kind.name
            if key != self._shown and (self._site.show() or is_elsewhere):
                self._shown = key
            if key == self._shown and self._finishing.is_done(self._build(live)):
                self._finished = key
        except CqrsError as error:
            log.warning("view.not_replaced", projection=self._site.name, again_in_s=_AGAIN_S, why=str(error))
        if key != self._finished:
            self._again_s = time.monotonic() + _AGAIN_S

    def _build(self, live: Generation) -> Build | None:
        return self._site.place(live).store.peek()
