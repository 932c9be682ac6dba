"""A rebuild beside the live generation, driven from one of its states to the next, from wherever it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from streams.control import changing, wishes
from streams.control import transitions as to
from streams.control.aligning import wish_of
from streams.control.claim_rebuild import claim_rebuild, preflight
from streams.control.compare import Report
from streams.control.making import Making
from streams.control.place import topic_of
from streams.control.record import Generation, Rebuild, Record, facts_of
from streams.control.registry import Watch
from streams.control.repartitioning import check_source, filling_of, make_topic, staged
from streams.control.retire import retire
from streams.control.run import note_end
from streams.control.site import Site
from streams.control.space import check_space
from streams.control.strategies import FromBeginning
from streams.control.verdict import compare_generations, refusal
from streams.control.verify import last_report
from streams.data.files import FILES
from streams.data.runner import MakeRunner
from streams.errors import (
    BrokerUnavailable,
    CodeChanged,
    CqrsError,
    DiskFull,
    NotReady,
    OffsetsPending,
    RebuildCancelled,
    RebuildRunning,
    StorageError,
    TransactionHangs,
)
from streams.log import get_logger
from streams.types import RebuildProgress

__all__ = ["NICE", "Approver", "Green"]

log = get_logger(__name__)

Approver = Callable[[Report], bool]
"""Says whether what a comparison found is as it should be; it may take its time, and folding goes on meanwhile."""

NICE = 10
"""By how much the priority of agents is lowered that replay beside a live generation."""
_LOOK_S = 0.05
_HAND_OVER_S = 8.0


class _Elsewhere(Exception):
    """Somebody has cancelled or paused the rebuild while something took long."""


class Green:
    """Drives the rebuild of one projection that the registry says is under way.

    Each state is in the registry, and so is each step from one to the next (`transitions`): what drives may be killed
    between any two, and another one goes on.

    new → (make the state and the group, pin the ends) → replaying → (fold; at the pinned ends, and close to the
    topic's end) → verifying → (compare) → waiting → (approved) → ready → (switch) → active

    `drive` blocks; the rest may be called from any thread.

    Args:
        site: The projection. Its code must be that of the new generation.
        make_runner: Where the new generation's agents run.
        approver: Asked where a person is to approve; None: `drive` returns then.
        is_patient: Without an approver, wait until somebody approves by the registry.
        hands_over: After the switch, fold on for a moment until others do who follow the registry.
    """

    def __init__(
        self,
        site: Site,
        make_runner: MakeRunner,
        *,
        approver: Approver | None = None,
        is_patient: bool = False,
        hands_over: bool = True,
    ) -> None:
        self._site = site
        self._make_runner = make_runner
        self._approver = approver
        self._is_patient = is_patient
        self._hands_over = hands_over
        self._stopped = threading.Event()
        self._watch: Watch
        self._making: Making
        self._record: Record
        self._id = ""
        self._asked = False
        self._progress = RebuildProgress()
        self.is_orphan = False
        """Whether nobody folds the new generation any more, once `drive` has returned."""

    @property
    def progress(self) -> RebuildProgress:
        """The figures of the replay so far, and what is waited for."""
        return self._progress

    def stop(self) -> None:
        """Leave the rebuild where it is; another driver goes on with it."""
        self._stopped.set()

    def drive(self) -> Record:
        """Go on until the switch is made, the rebuild is cancelled, or a person is to approve.

        Returns:
            The record as it is then.

        Raises:
            NotReady: No rebuild is under way.
            RebuildRunning: Another process of this machine drives it; it is named.
            RebuildCancelled: `stop` was called. The rebuild is where it was.
            CodeChanged: The new generation is of other code than this process has.
            HistoryIncomplete, CqrsError: It cannot be made; it is given up, and nothing is left of it.
            EventError, ProjectionError, StorageError, BrokerError: It cannot be folded; another driver may go on.
        """
        site = self._site
        self._record = site.record()
        running = changing.running(self._record, "driven")
        self._id = running.id
        if running.is_in_place:
            raise NotReady(
                f"{running.generation} is rebuilt in place by the workers that fold it (`refold status {site.name}`): "
                "there is nothing to go on with here. Nothing was changed.",
                projection=site.name,
            )
        green = self._record.find(running.generation)
        assert green is not None, "a record names one that it has"
        if not site.can_fold(green):
            raise CodeChanged(
                f"Generation {green.id} is of other code than this process has of {site.name!r} (version "
                f"{green.version}, fingerprint {green.fingerprint}). Go on with that code, or give it up (`refold "
                f"cancel {site.name}`) and rebuild.",
                projection=site.name,
            )
        place = site.place(green)
        self._progress = RebuildProgress(started_at=datetime.now(UTC), is_running=True)
        self._making = Making(site, green, self._make_runner)
        try:
            with place.store.rebuilding(f"rebuild of {green.id}"), site.registry.watch(site.name) as self._watch:
                try:
                    self._go_on()
                    if self._hands_over and self._newest().active == green.id:
                        self._hand_over()
                finally:
                    self._making.rest()
        except CqrsError as error:
            self._progress = replace(self._progress, is_running=False, error=str(error))
            self._failed(error)
            raise
        record = self._newest()
        found = record.find(green.id)
        if found is not None and found.phase == "retiring":
            record = retire(site, green.id, "its rebuild was cancelled")
        elif record.active == green.id and running.keep_s <= 0:
            record = retire(site, running.replaces, "replaced, and not to be kept")
        self._progress = replace(self._progress, is_running=False, waiting_for="")
        return record

    def _go_on(self) -> None:
        """Take steps until there is none to take."""
        steps: dict[str, Callable[[Rebuild, Generation], bool]] = {
            "new": self._make,
            "repartitioning": self._repartition,
            "replaying": self._replay,
            "verifying": self._compare,
            "waiting": self._wait,
            "ready": self._switch,
        }
        while True:
            self._check_stopped()
            record = self._newest()
            running = record.running
            if running is None or running.id != self._id:
                return
            if running.is_paused:
                self._making.rest()
                self._say(f"`refold resume {self._site.name}`: it is paused")
                time.sleep(_LOOK_S)
                continue
            green = record.find(running.generation)
            assert green is not None, "a record names one that it has"
            self._making.know(green)
            self._making.hold(wish_of(record, green.id))
            try:
                if not steps[green.phase](running, green):
                    return
            except _Elsewhere:
                continue

    # The steps: each gives whether there may be another one

    def _make(self, rebuild: Rebuild, green: Generation) -> bool:
        if green.source is None:
            return self._make_state(rebuild, green)
        marks = check_source(self._site, green)
        self._check_stopped()
        topic = make_topic(self._site.events.cluster, green.topic, topic_of(filling_of(green)))
        targets = {number: one.high for number, one in marks.items()}
        self._update(lambda record: to.repartitioned(record, self._id, topic, targets))
        if self._record.find(green.id) is None:  # it was given up and removed meanwhile, and nobody knows the topic
            self._site.events.cluster.delete_topic(topic.name)
            return True
        log.info("generation.repartitioned", generation=green.id, topic=topic.name, targets=targets)
        return True

    def _repartition(self, rebuild: Rebuild, green: Generation) -> bool:
        """Have the new generation's own topic filled up to the pinned ends; then its state is made."""
        making = self._making
        making.fill()
        making.wait(_LOOK_S)
        try:
            filling = making.filled()
        except OffsetsPending as why:
            self._say(str(why))
            return True
        self._progress = staged(filling.progress, 1)
        making.check_filling(filling)
        return self._make_state(rebuild, green) if filling.is_caught_up() else True

    def _make_state(self, _rebuild: Rebuild, green: Generation) -> bool:
        site, store = self._site, self._site.place(green).store
        build = store.current()
        if build is None:
            ground = site.ground(site.place(green))
            blue = site.place(self._newest().live).store.current()
            if blue is not None and site.kind == FILES:
                check_space(site.state_dir, blue.stores.size_bytes(), site.name)
            preflight(ground)
            claim_rebuild(ground, FromBeginning(), self._check_stopped).lock.release()
            build = store.current()
            assert build is not None, "it was just made"
        made = build.rebuild()
        targets = {} if made is None else made.targets
        self._update(lambda record: to.pinned(record, self._id, facts_of(build), targets))
        log.info("generation.made", generation=green.id, targets=targets)
        return True

    def _replay(self, _rebuild: Rebuild, green: Generation) -> bool:
        making = self._making
        self._fold()
        making.wait(_LOOK_S)
        self._progress = making.folded()
        making.check_fold()
        if self._is_caught_up() and making.is_finished():
            self._progress = making.ended()
            note_end(making.build, self._progress)
            self._update(lambda record: to.caught_up(record, self._id, self._progress))
            log.info("generation.caught_up", generation=green.id, events=self._progress.events_processed)
        return True

    def _compare(self, rebuild: Rebuild, green: Generation) -> bool:
        self._fold()
        if rebuild.policy == "none":
            self._update(lambda record: to.compared(record, self._id, None))
            return True
        self._say("both generations to be compared")
        report: Report | None = None
        try:
            report = compare_generations(self._site, self._newest(), green, self._check_here)
            refused = refusal(report.summary, rebuild)
        except CqrsError as error:
            if isinstance(error, RebuildCancelled):
                raise
            refused = f"they could not be compared: {error}"
        summary = None if report is None else report.summary
        self._update(lambda record: to.compared(record, self._id, summary, refused))
        log.info("generation.compared", generation=green.id, waits=refused or "no")
        return True

    def _wait(self, rebuild: Rebuild, green: Generation) -> bool:
        self._fold()
        self._making.wait(_LOOK_S)
        self._say(f"somebody to approve (`refold switch {self._site.name}`): {rebuild.why}")
        report = last_report(self._site.place(green).store.directory)
        if self._approver is None or self._asked or report is None:
            return self._is_patient
        self._asked = True
        if not self._approver(report):
            return self._is_patient
        self._update(wishes.approved)
        return True

    def _switch(self, _rebuild: Rebuild, green: Generation) -> bool:
        self._fold()
        self._making.wait(_LOOK_S)
        self._making.folded()
        self._making.check_fold()
        if self._is_caught_up():
            self._update(lambda record: to.switched(record, self._id))
            log.info("generation.switched", generation=green.id)
            self._show()
        return True

    # What the steps have in common

    def _show(self) -> None:
        """Have all readers see it; where that cannot be done now, whoever folds it does."""
        try:
            self._site.show()
        except CqrsError as error:
            log.warning("view.not_replaced", projection=self._site.name, why=str(error))

    def _fold(self) -> None:
        """Have the new generation folded, from where it is, and say so at once."""
        if self._making.fold():
            self._progress = self._making.folded()

    def _is_caught_up(self) -> bool:
        try:
            return self._making.is_caught_up()
        except OffsetsPending as why:
            self._say(str(why))
            return False

    def _hand_over(self) -> None:
        """Fold on until others do, who follow the registry; where nobody does so soon, nobody does."""
        site, record = self._site, self._newest()
        cluster, green = site.events.cluster, record.live
        blue = None if record.kept is None else record.kept.group
        deadline = time.monotonic() + (_HAND_OVER_S if blue is not None and cluster.members(blue) else 0.0)
        self.is_orphan = True
        while self.is_orphan and time.monotonic() < deadline and not self._stopped.is_set():
            self._making.wait(_LOOK_S)
            ours = self._making.pids
            self.is_orphan = all(member.pid in ours for member in cluster.members(green.group))

    def _failed(self, error: CqrsError) -> None:
        """Note what has stopped it; where nothing was made yet, or nothing ever will, give it up."""
        if isinstance(error, (RebuildCancelled, RebuildRunning)):
            return
        may_pass = isinstance(error, (BrokerUnavailable, StorageError)) and not isinstance(error, DiskFull)
        try:
            record = self._site.record()
            running = record.running
            green = None if running is None or running.id != self._id else record.find(running.generation)
            is_over = isinstance(error, TransactionHangs) or (green is not None and green.phase == "new")
            if green is not None and is_over and not may_pass:
                self._site.update(lambda record: wishes.cancelled(record, str(error)))
                retire(self._site, green.id, str(error))
            elif green is not None:
                self._site.update(lambda record: to.noted(record, self._id, str(error)))
        except CqrsError as why:  # what has stopped it is what is raised
            log.warning("registry.not_written", projection=self._site.name, why=str(why))

    def _newest(self) -> Record:
        seen = self._watch.record
        if seen is not None and seen.revision > self._record.revision:
            self._record = seen
        return self._record

    def _update(self, change: Callable[[Record], Record]) -> None:
        self._record = self._site.update(change)

    def _say(self, waiting_for: str) -> None:
        self._progress = replace(self._progress, waiting_for=waiting_for)

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            name = self._site.name
            raise RebuildCancelled(
                f"The rebuild of {name!r} was left where it is; {self._record.active} is active. `refold resume "
                f"{name}` goes on with it, and `refold cancel {name}` gives it up.",
                projection=name,
                topic=self._site.events.topic,
            )

    def _check_here(self) -> None:
        """Raise where the rebuild is not to go on just now."""
        self._check_stopped()
        record = self._newest()
        running = record.running
        if running is not None:
            self._making.hold(wish_of(record, running.generation))
        if running is None or running.id != self._id or running.is_paused:
            raise _Elsewhere
