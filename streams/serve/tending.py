"""Tending one projection: those of its generations whose code this worker has are folded here, by its own agents."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from streams.control import transitions as to
from streams.control.aligning import wish_of
from streams.control.folding import Folding
from streams.control.founding import found_first
from streams.control.place import note
from streams.control.record import Generation, Record
from streams.control.share import claim_share
from streams.control.showing import Showing
from streams.control.site import Site
from streams.control.space import check_space
from streams.data.agent import AgentStatus
from streams.data.files import FILES
from streams.data.generation import StateStore
from streams.data.job import AnyJob, Job
from streams.data.partition import Phase
from streams.data.process_runner import ProcessRunner
from streams.data.runner import Runner
from streams.errors import CqrsError
from streams.log import get_logger
from streams.serve.changed_code import ChangedCode
from streams.serve.entering import check_untended, leave_for_the_gone
from streams.serve.paths import report_path
from streams.serve.standbys import StandingBy
from streams.serve.wanted import is_wanted

__all__ = ["Tended", "Tending"]

log = get_logger(__name__)

_LOOK_S = 0.05
_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 60.0
_KEPT_UP_S = 60.0
"""A generation that was folded for so long begins with the first backoff again."""
_SWEEP_S = 2.0
_SETTLED = (Phase.READY, Phase.HALTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tended:
    """How one generation is folded here."""

    generation: Generation
    status: AgentStatus = field(default_factory=AgentStatus)
    job: Job | None = None
    """What is folded into what; None where it is not folded here now."""
    pids: frozenset[int] = frozenset()
    """The agents' processes."""
    standing_by: AgentStatus = field(default_factory=AgentStatus)
    """The copies here of partitions that others own, as far as this worker stands by for them."""
    filled: AgentStatus = field(default_factory=AgentStatus)
    """How far what fills the generation's own topic is here, by partition of the event topic."""
    error: str = ""
    """Why it is not folded here, though this worker has its code; "" where it is."""
    failures: int = 0
    """How often it has ended with an error since it was last well."""


@dataclass(slots=True, eq=False)
class _Hand:
    """One generation in hand, or to be taken in hand again."""

    epoch: int
    folding: Folding | None = None
    began_s: float = 0.0
    again_s: float = 0.0
    failures: int = 0
    error: str = ""
    is_replay: bool = False
    """Whether its agents give way to those of a live generation."""
    standing_by: StandingBy | None = None

    def stop(self, *, stays: bool = False) -> None:
        """Ask all that runs of it to end."""
        if self.standing_by is not None:
            self.standing_by.stop()
        if self.folding is not None:
            self.folding.stop(stays=stays)


class Tending:
    """Reconciles what the registry wants of one projection with what runs here, on a thread of its own.

    That thread starts the agents' processes: they end with it.

    Args:
        site: The projection. Its state directory is this worker's.
        make_runner: Where the agents of a generation run; told whether it is replayed beside a live one.
        fleet: The consumer group of the workers.
        address: Where this worker's models are served, as host:port, for the group to tell others.
        instances: By which groups know this worker's agents again (`group.instance.id`); none where they do not.
        stand_by: Makes what stands by for a generation's partitions; None: nothing does.
        stands_by_for: Says of which partitions; None where that is not known just now.
    """

    def __init__(
        self,
        site: Site,
        make_runner: Callable[[AnyJob, bool], Runner],
        address: str,
        fleet: str,
        instances: Sequence[str] = (),
        stand_by: Callable[[Job], ProcessRunner] | None = None,
        stands_by_for: Callable[[Generation], frozenset[int] | None] = lambda _: None,
    ) -> None:
        self.site = site
        self._make_runner = make_runner
        self._address = address
        self._fleet = fleet
        self._instances = instances
        self._stand_by = stand_by
        self._stands_by_for = stands_by_for
        self._stopped = threading.Event()
        self._hands: dict[str, _Hand] = {}
        self._swept_s = 0.0
        self._changed_code = ChangedCode(site, address)
        self._showing = Showing(site)
        self._thread = threading.Thread(target=self._run, name=f"refold-{site.name}", daemon=True)
        self.record: Record | None = None
        """What the registry says, as far as it was heard."""
        self.error = ""
        """Why the projection cannot be tended at all; "" where it is."""
        self.tended: Mapping[str, Tended] = {}
        """How each generation that is to be folded here is, by id; replaced as a whole."""
        self.beat_s = time.monotonic()
        """When the loop went round last."""

    @property
    def waits_for(self) -> str:
        """Say which code the projection waits for, where none of its folded generations is of this worker's; ""."""
        record = self.record
        if record is None or self.site.can_fold(record.live):
            return ""
        not_brought_up = self._changed_code.not_brought_up
        why = f"; it could not be brought up: {not_brought_up}" if not_brought_up else ""
        return f"{record.active} is of other code (version {record.live.version}, {record.live.fingerprint}){why}"

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end: agents finish what is at hand, commit, and leave their groups."""
        self._stopped.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end; say whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # On the thread

    def _run(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while not self._stopped.is_set():
            try:
                record = found_first(self.site)
                if record.fleet != self._fleet:
                    check_untended(self.site, record, self._fleet)
                    record = self.site.update(partial(to.tended, fleet=self._fleet))
                leave_for_the_gone(self.site, record, self._instances, self._address)
                self._instances = ()
                self.record = record
                with self.site.registry.watch(self.site.name) as watch:
                    self.error, backoff_s = "", _FIRST_BACKOFF_S
                    while not self._stopped.wait(_LOOK_S):
                        self._turn(watch.record)
            except CqrsError as error:
                self.error = str(error)
                log.warning("projection.not_tended", projection=self.site.name, again_in_s=backoff_s, why=self.error)
                self._idle(backoff_s)
                backoff_s = min(_LONGEST_BACKOFF_S, backoff_s * 2)
            except Exception:  # a fault of ours must not end what else is folded
                self.error = "a fault in the worker; see its log"
                log.exception("projection.fault", projection=self.site.name)
                self._idle(backoff_s)
        self._end_all()

    def _idle(self, seconds: float) -> None:
        """Wait, and look after what is folded meanwhile."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stopped.wait(_LOOK_S):
            try:
                self._turn(self.record)
            except Exception:  # a fault of ours must not end what else is folded
                log.exception("projection.fault", projection=self.site.name)
                return

    def _turn(self, record: Record | None) -> None:
        self.beat_s = time.monotonic()
        if record is not None:
            self.record = record
            self._reconcile(record)
            self._showing.look(record)
            self._sweep(record)
        for id_, hand in self._hands.items():
            folding = hand.folding
            if folding is not None and (folding.is_started or folding.is_filling) and folding.wait(0.0):
                self._let_go(id_, hand)
            elif record is not None:
                self._look_after_standby(record, id_, hand)
        self._publish()

    def _reconcile(self, record: Record) -> None:
        """Let go of what is not to be folded as it is, and take in hand what is."""
        wanted = {one.id: one for one in record.generations if is_wanted(record, one) and self.site.can_fold(one)}
        going = [hand for id_, hand in self._hands.items() if id_ not in wanted or wanted[id_].epoch != hand.epoch]
        for hand in going:  # all at once: each takes its time
            hand.stop()
        for id_, hand in list(self._hands.items()):
            if hand in going:
                self._let_go(id_, hand)
                del self._hands[id_]
        self._changed_code.look(record)
        for id_, one in wanted.items():
            hand = self._hands.setdefault(id_, _Hand(one.epoch))
            if hand.folding is not None and hand.is_replay and one.is_folded:
                hand.is_replay = False
                hand.folding.renice(0)
            if hand.folding is not None:
                hand.folding.hold(wish_of(record, id_))
            is_due = hand.folding is None or (not hand.folding.is_started and one.phase != "repartitioning")
            if is_due and time.monotonic() >= hand.again_s:
                self._take(record, one, hand)

    def _take(self, record: Record, one: Generation, hand: _Hand) -> None:
        place = self.site.place(one)
        ground = replace(self.site.ground(place), address=self._address)
        folding = hand.folding or Folding(ground, lambda job: self._make_runner(job, not one.is_folded))
        try:
            build = place.store.current()
            if build is not None and build.manifest.build > one.epoch and build.manifest.directory == one.state:
                note(self.site.registry, record, place, self.site.name, record.group)  # rebuilt here, and not noted
                return
            if build is None and not one.is_folded:
                self._check_space(record)
            if one.phase == "repartitioning":
                folding.fill()
            else:
                folding.start(partial(claim_share, generation=one), ground)
        except CqrsError as error:
            self._failed(one.id, hand, error)
            return
        hand.folding, hand.began_s, hand.error = folding, time.monotonic(), ""
        hand.is_replay = not one.is_folded
        log.info("generation.taken_on", generation=one.id, phase=one.phase, epoch=one.epoch)

    def _check_space(self, record: Record) -> None:
        """Make sure that this disk can hold models beside the live ones: where it cannot, other workers fold them.

        Raises:
            DiskFull: It cannot.
        """
        live = self.site.place(record.live).store.current()
        if live is not None and self.site.kind == FILES:
            check_space(self.site.state_dir, live.stores.size_bytes(), self.site.name)

    def _let_go(self, id_: str, hand: _Hand) -> None:
        """Wait for a generation's agents to end, and say so where an error has ended them."""
        folding, hand.folding = hand.folding, None
        standing_by, hand.standing_by = hand.standing_by, None
        if standing_by is not None:
            standing_by.close()
        if folding is None:
            return
        try:
            folding.close()
        except CqrsError as error:
            if time.monotonic() - hand.began_s > _KEPT_UP_S:
                hand.failures = 0
            self._failed(id_, hand, error)
        else:
            log.info("generation.let_go", generation=id_)

    def _look_after_standby(self, record: Record, id_: str, hand: _Hand) -> None:
        """Stand by for the active generation, once what is folded of it here is served."""
        one, folding = record.find(id_), hand.folding
        if self._stand_by is None or one is None or folding is None or not folding.is_started:
            return
        if not folding.job.build.is_in_files:
            return  # whoever owns a partition has its models at once
        held = folding.status.partitions
        if hand.standing_by is None:
            # Not before, or the copies would take the processor from what readers wait for.
            if id_ != record.active or any(part.phase not in _SETTLED for part in held.values()):
                return
            hand.standing_by = StandingBy(self._stand_by)
        wanted = self._stands_by_for(one) if id_ == record.active else frozenset()
        if wanted is not None:
            hand.standing_by.look(folding.job, wanted - held.keys())

    def _failed(self, id_: str, hand: _Hand, error: CqrsError) -> None:
        hand.failures += 1
        hand.error = str(error)
        backoff_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (hand.failures - 1))
        hand.again_s = time.monotonic() + backoff_s
        log.warning("generation.not_folded", generation=id_, again_in_s=backoff_s, why=hand.error)

    def _sweep(self, record: Record) -> None:
        """Remove this machine's copies of generations that are no more."""
        if time.monotonic() - self._swept_s < _SWEEP_S:
            return
        self._swept_s = time.monotonic()
        for gone in record.gone:
            report_path(self.site, gone.id).unlink(missing_ok=True)
        over = [one.directory for one in record.gone]
        over += [one.directory for one in record.generations if one.phase == "retiring"]
        for directory in over:
            path: Path = self.site.state_dir / directory
            if path.is_dir():
                try:
                    if StateStore(path).remove():
                        log.info("state.removed", directory=str(path))
                except CqrsError as error:
                    log.warning("state.not_removed", directory=str(path), why=str(error))

    def _publish(self) -> None:
        record = self.record
        tended: dict[str, Tended] = {}
        for id_, hand in self._hands.items():
            generation = None if record is None else record.find(id_)
            if generation is None:
                continue
            folding = hand.folding
            tended[id_] = Tended(
                generation=generation,
                status=AgentStatus() if folding is None else folding.status,
                job=folding.job if folding is not None and folding.is_started else None,
                filled=AgentStatus() if folding is None else folding.filled,
                pids=frozenset() if folding is None else frozenset(folding.pids),
                standing_by=AgentStatus() if hand.standing_by is None else hand.standing_by.status,
                error=hand.error,
                failures=hand.failures,
            )
        self.tended = tended

    def _end_all(self) -> None:
        for hand in self._hands.values():
            hand.stop(stays=True)
        for id_, hand in self._hands.items():
            self._let_go(id_, hand)
        self._publish()
