"""Leading the projections of a worker, while the group has given it the commands: a thread for each."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from streams.control.commands import Command
from streams.control.compare import Report
from streams.control.lead import Compare, Lead
from streams.control.record import Generation, Record
from streams.errors import CqrsError, NotLeading
from streams.log import get_logger
from streams.serve.leadership import Leadership
from streams.serve.serving import Serving
from streams.serve.tending import Tending
from streams.serve.tracing import Tracing
from streams.types import RebuildProgress

__all__ = ["Leading"]

log = get_logger(__name__)

_STEP_S = 0.1
_AGAIN_S = 1.0
_COMMAND_AGAIN_S = 0.2


class Leading:
    """Leads one projection whenever this worker is the leader.

    Args:
        tending: The projection, and what the registry says of it.
        leadership: Whether this worker leads.
        compare: How its generations are compared.
        serving: Says whether a generation is served.
        tracing: Told of rebuilds that have ended.
    """

    def __init__(
        self, tending: Tending, leadership: Leadership, compare: Compare, serving: Serving, tracing: Tracing
    ) -> None:
        self._tending = tending
        self._leadership = leadership
        self._stopped = threading.Event()
        self._due = threading.Event()
        site = tending.site
        self._compare = compare
        self._tracing = tracing
        self._lead = Lead(site, self._compared, partial(serving.why_not, site), leadership.confirm)
        self._thread = threading.Thread(target=self._run, name=f"refold-lead-{site.name}", daemon=True)
        self.beat_s = time.monotonic()
        """When the loop went round last."""
        self.ended: Counter[str] = Counter()
        """Rebuilds that have ended while this worker led, by outcome."""
        self.durations_s: list[float] = []
        """How long they took that have not been taken from here yet."""
        self._known: tuple[str, str] | None = None

    @property
    def progress(self) -> RebuildProgress | None:
        """The figures of the replay that is under way; None where none is, or another worker leads."""
        return self._lead.progress if self._leadership.is_leading else None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end. A step that is being taken is finished, or fenced."""
        self._stopped.set()
        self._due.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; say whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def handle(self, command: Command) -> None:
        """Have a command handled, while a step is being taken too. It is so once, however often it is heard.

        Tried again until it was handled, or another worker leads and hears it too.
        """
        while not self._stopped.is_set():
            try:
                self._lead.handle(command)
            except NotLeading:
                if not self._leadership.is_leading:
                    return
            except CqrsError as error:
                log.warning("command.not_handled", id=command.id, verb=command.verb, why=str(error))
            else:
                self._due.set()
                return
            self._stopped.wait(_COMMAND_AGAIN_S)

    def _compared(self, record: Record, green: Generation, check_cancelled: Callable[[], None]) -> Report:
        """Compare, however long that takes: the loop goes round in it."""

        def check() -> None:
            self.beat_s = time.monotonic()
            check_cancelled()

        return self._compare(record, green, check)

    def _note_end(self, record: Record) -> None:
        """Count a rebuild that has ended since it was last looked at, by whoever led."""
        rebuild, known = record.rebuild, self._known
        self._known = (rebuild.id, rebuild.outcome) if rebuild is not None else ("", "")
        if rebuild is None or rebuild.is_running or known is None or known == self._known:
            return
        self.ended[rebuild.outcome] += 1
        if rebuild.ended_at is not None:
            self.durations_s.append((rebuild.ended_at - rebuild.began_at).total_seconds())
        self._tracing.ended(record.projection, rebuild)

    def _run(self) -> None:
        name = self._tending.site.name
        wait_s = _STEP_S
        while True:
            self._due.wait(wait_s)
            self._due.clear()
            if self._stopped.is_set():
                return
            self.beat_s = time.monotonic()
            wait_s = _STEP_S
            record = self._tending.record
            if record is None or not self._leadership.is_leading:
                continue
            self._note_end(record)
            try:
                self._lead.step(record)
            except NotLeading as error:
                log.info("leader.deposed", projection=name, why=str(error))
                wait_s = _AGAIN_S
            except CqrsError as error:
                log.warning("leader.step_failed", projection=name, again_in_s=_AGAIN_S, why=str(error))
                wait_s = _AGAIN_S
            except Exception:  # a fault of ours must not end the leading
                log.exception("leader.fault", projection=name)
                wait_s = _AGAIN_S
