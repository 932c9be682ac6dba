"""Running a projection for good: those of its generations that the registry says are to be folded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self

from streams.control.aligning import wish_of
from streams.control.claim import claim_live
from streams.control.folding import Folding
from streams.control.founding import found_first
from streams.control.place import Place, note
from streams.control.record import Generation, Record
from streams.control.retire import retire
from streams.control.showing import Showing
from streams.control.site import Site
from streams.data.agent import AgentStatus, Job
from streams.data.runner import MakeRunner
from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["Running"]

log = get_logger(__name__)

_LOOK_S = 0.05
_KEEPING_S = 2.0
_AGAIN_S = 5.0
_LAST_WORD_S = 3.0


class Running:
    """Folds the active generation, and follows the registry: what becomes active and is of this code is folded too.

    One that is replaced goes on being folded while it is kept, so that a switch back loses nothing. One whose time is
    over is removed.

    Use it in `with`, whose block calls `run`, from one thread. `stop`, `job` and `status` are for any.

    Args:
        site: The projection.
        make_runner: Where the agents of each generation run.
        adopt: State that the code or the codec changed but the fold did not.
    """

    def __init__(self, site: Site, make_runner: MakeRunner, *, adopt: bool = False) -> None:
        self._site = site
        self._make_runner = make_runner
        self._adopt = adopt
        self._stopped = threading.Event()
        self._foldings: dict[str, Folding] = {}
        self._again: dict[str, float] = {}
        self._kept_s = 0.0
        self._shown: Folding | None = None
        self._keeper: threading.Thread | None = None
        self._place: Place
        self._is_noted = False
        self._showing = Showing(site)

    def __enter__(self) -> Self:
        """Claim the active generation and have it folded; where there is none yet, found the first one.

        Raises:
            See `claim_live`.
        """
        site = self._site
        record = site.registry.get(site.name)
        if record is None and site.is_repartitioned:
            record = found_first(site)
        place = site.active(record)
        first = self._shown = Folding(site.ground(place), self._make_runner)
        first.start(partial(claim_live, adopt=self._adopt))
        self._foldings[place.generation] = first
        self._place = place
        self._keep(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and wait for the end of all that is folded.

        Raises:
            Whatever has ended the generation that is shown.
        """
        self._close()

    @property
    def job(self) -> Job:
        """What is folded into what, of the generation that is shown: the active one, where this process folds it."""
        assert self._shown is not None
        return self._shown.job

    @property
    def status(self) -> AgentStatus:
        """The figures of the same."""
        return AgentStatus() if self._shown is None else self._shown.status

    def stop(self) -> None:
        """Ask `run` to end: what is at hand is finished and committed, and the groups are left."""
        self._stopped.set()
        for folding in list(self._foldings.values()):
            folding.stop()

    def run(self) -> None:
        """Go on until stopped.

        Raises:
            See `Agent.run`, of the generation that is shown. What goes wrong with another one is logged.
        """
        site = self._site
        with site.registry.watch(site.name, is_patient=True) as watch:
            while not self._stopped.is_set():
                for id_, folding in list(self._foldings.items()):
                    if folding.wait(_LOOK_S if folding is self._shown else 0.0):
                        self._end(id_, folding)
                if self._stopped.is_set():
                    return  # what has ended, was to end, and is not to be taken on again
                if not self._foldings:
                    self._stopped.wait(_LOOK_S)
                if watch.record is not None and self._is_noted:
                    self._reconcile(watch.record)
                for id_, folding in self._foldings.items():
                    folding.hold(wish_of(watch.record, id_))
                self._keep_house(watch.record)
                self._showing.look(watch.record)

    def _close(self) -> None:
        self.stop()
        try:
            for id_, folding in list(self._foldings.items()):
                self._end(id_, folding)
        finally:
            if self._keeper is not None:
                self._keeper.join(_LAST_WORD_S)  # what it is at, the next run goes on with

    def _reconcile(self, record: Record) -> None:
        """Fold what is to be folded, and nothing else."""
        for id_, folding in list(self._foldings.items()):
            known = record.find(id_)
            if known is None or not known.is_folded:
                log.info("generation.let_go", generation=id_, phase="gone" if known is None else known.phase)
                folding.stop()
                self._end(id_, folding)
        for one in record.generations:
            if one.is_folded and one.id not in self._foldings and self._site.can_fold(one):
                self._take_on(one)
        if record.active in self._foldings:
            self._shown = self._foldings[record.active]

    def _take_on(self, generation: Generation) -> None:
        if time.monotonic() < self._again.get(generation.id, 0.0):
            return
        folding = Folding(self._site.ground(self._site.place(generation)), self._make_runner)
        try:
            folding.start()
        except CqrsError as error:
            self._again[generation.id] = time.monotonic() + _AGAIN_S
            log.warning("generation.not_folded", generation=generation.id, again_in_s=_AGAIN_S, why=str(error))
            return
        log.info("generation.taken_on", generation=generation.id, phase=generation.phase)
        self._foldings[generation.id] = folding

    def _end(self, id_: str, folding: Folding) -> None:
        """Let go of a generation. What has ended the one that is shown, is raised."""
        del self._foldings[id_]
        try:
            folding.close()
        except CqrsError as error:
            if folding is self._shown:
                raise
            self._again[id_] = time.monotonic() + _AGAIN_S
            log.warning("generation.not_folded", generation=id_, again_in_s=_AGAIN_S, why=str(error))

    def _keep_house(self, record: Record | None) -> None:
        """Note what there is where that has failed, and remove generations whose time is over; on a thread of its own.

        It waits for Kafka, and for those who fold and read what is removed.
        """
        if time.monotonic() - self._kept_s < _KEEPING_S or (self._keeper is not None and self._keeper.is_alive()):
            return
        self._kept_s = time.monotonic()
        if not self._is_noted:
            self._keep(self._note)
            return
        now = datetime.now(UTC)
        over = [
            one.id
            for one in (() if record is None else record.generations)
            if one.phase == "retiring" or (one.phase == "kept" and one.kept_until is not None and one.kept_until <= now)
        ]
        if over:
            self._keep(partial(self._remove, over))

    def _keep(self, what: Callable[[], None]) -> None:
        self._keeper = threading.Thread(target=what, name="refold-keeper", daemon=True)
        self._keeper.start()

    def _note(self) -> None:
        """Note in the registry what the generation's state says that was claimed; it is folded meanwhile."""
        site, place = self._site, self._place
        try:
            record = site.registry.get(site.name)
            note(site.registry, record, place, site.name, place.group if record is None else record.group)
            self._is_noted = True
        except CqrsError as error:
            log.warning("registry.not_written", projection=site.name, again_in_s=_KEEPING_S, why=str(error))

    def _remove(self, generations: list[str]) -> None:
        for one in generations:
            try:
                retire(self._site, one, "its time was over", wait_s=_AGAIN_S)
            except CqrsError as error:
                log.warning("generation.not_retired", generation=one, why=str(error))
