"""A projection's generations: rebuilt beside each other, compared, switched, rolled back, retired."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from projections.contract import CqrsProjection
from streams.config import FoldSettings
from streams.control import transitions as to
from streams.control import wishes
from streams.control.active import ActiveModels
from streams.control.begin import Approve, begin_beside
from streams.control.compare import Report
from streams.control.green import NICE, Approver, Green
from streams.control.hooks import RebuildHook
from streams.control.onlooker import Onlooker, is_led
from streams.control.record import Generation, Policy, Record
from streams.control.registry import Registry
from streams.control.reporters import ProgressReporter, reported
from streams.control.retire import retire
from streams.control.site import Site
from streams.control.threads import stopped_with_its_task
from streams.control.verdict import compare_generations, refusal
from streams.control.verify import last_report
from streams.data.files import FILES
from streams.data.runner import MakeRunner, ThreadRunner
from streams.data.source import KafkaEventStore
from streams.data.stores import Kind
from streams.data.supervisor import supervised
from streams.errors import GenerationNotFound, NotReady
from streams.resolving import load
from streams.types import RebuildProgress

__all__ = ["Generations"]


class Generations:
    """What there is of a projection, and what may be done with it (reference: Zero-Downtime Rebuilds).

    All of it is in the registry: what one process begins, another one may go on with, see, or give up.

    `rebuild`, `resume` and `switch` are coroutines; the other methods block, for as long as Kafka takes.

    Args:
        projection: Whose.
        event_store: The log.
        registry: The topic that says what is active.
        state_dir: Where the state of all generations is, on this machine.
        kind: What the models of new ones are to be kept in: files in the state directory, or `Postgres`.
        group: From which their consumer groups are named; by default what the registry says.
        settings: How to fold; by default from the environment.
        allow_incomplete: Fold what is left where retention or compaction has taken events.
        hooks: Who is told of what becomes of each rebuild (see `RebuildHook`).
    """

    def __init__(
        self,
        projection: CqrsProjection[Any],
        event_store: KafkaEventStore,
        *,
        registry: str | Registry = "refold.registry",
        state_dir: str | os.PathLike[str] = ".refold",
        group: str | None = None,
        kind: Kind = FILES,
        settings: FoldSettings | None = None,
        allow_incomplete: bool = False,
        hooks: Sequence[RebuildHook] = (),
    ) -> None:
        directory = Path(state_dir)
        self.site = Site(
            projection=projection,
            events=event_store,
            registry=registry
            if isinstance(registry, Registry)
            else Registry(event_store.cluster, registry, copies=directory),
            state_dir=directory,
            settings=settings or load(FoldSettings),
            kind=kind,
            group=group,
            allow_incomplete=allow_incomplete,
        )
        """What they have in common."""
        self._hooks = tuple(hooks)
        self._is_patient = False
        self._green: Green | Onlooker | None = None

    @property
    def record(self) -> Record | None:
        """What the registry says now; None where nothing was ever folded."""
        return self.site.registry.get(self.site.name)

    def get_progress(self) -> RebuildProgress:
        """Give the figures of the rebuild that this object drives, or drove last."""
        return RebuildProgress() if self._green is None else self._green.progress

    @property
    def is_orphan(self) -> bool:
        """Whether nobody folds the new generation any more, once what this object drove has come to its end."""
        return self._green is not None and self._green.is_orphan

    def rebuild(
        self,
        *,
        policy: Policy | None = None,
        approve: Approve = "ask",
        approver: Approver | None = None,
        keep: timedelta = timedelta(hours=1),
        workers: int = 1,
        runner: MakeRunner | None = None,
        reporters: Sequence[ProgressReporter] = (),
        is_patient: bool = False,
    ) -> Coroutine[Any, Any, Record]:
        """Fold a new generation beside the active one; once it has caught up, compare the two, and switch.

        Where workers see to the projection, they do that, and this looks on.

        Readers stay with the active one until the switch, which is one record. Cancelling the task leaves the rebuild
        where it is: `resume` goes on with it, `cancel` gives it up.

        Args:
            policy: What the comparison must have found for a switch (`Policy`); by default `validate` where the
                projection has one, `identical` where its code is that of the active generation, otherwise `report`.
            approve: `ask`: a person approves a report; `auto`: nobody need.
            approver: Is asked, with the report; without one, it ends there, and `switch` approves.
            keep: For how long the old generation is kept, and kept up, to be switched back to.
            workers: How many agents replay, each in a process of its own, at a low priority; 0 for one on a thread.
            runner: Where the agent runs, if not so.
            reporters: Who is told of the progress.
            is_patient: Without an approver, wait until somebody approves.

        Returns:
            The record at the end: `active` is the new one; or `rebuild` waits, and `why` says for what.

        Raises:
            NotReady: There is no generation yet.
            RebuildRunning: A rebuild runs already; it is named.
            HistoryIncomplete: Events are gone that it needs. Nothing was changed.
            See `Green.drive`.
        """
        self._made(workers, approver, is_patient=is_patient, runner=runner)

        def work() -> Record:
            begin_beside(self.site, policy=policy, approve=approve, keep_s=keep.total_seconds())
            return self._drive()

        return self._reported(work, reporters)

    def resume(
        self,
        *,
        approver: Approver | None = None,
        workers: int = 1,
        reporters: Sequence[ProgressReporter] = (),
        is_patient: bool = False,
    ) -> Coroutine[Any, Any, Record]:
        """Go on with the rebuild that the registry says is under way, from wherever it is; see `rebuild`.

        Raises:
            NotReady: None is.
            RebuildRunning: Another process of this machine drives it. One that was paused goes on.
        """
        self._made(workers, approver, is_patient=is_patient)

        def work() -> Record:
            self.site.update(lambda record: wishes.paused(record, is_paused=False))
            return self._drive()

        return self._reported(work, reporters)

    def switch(self, *, workers: int = 1, reporters: Sequence[ProgressReporter] = ()) -> Coroutine[Any, Any, Record]:
        """Approve what the comparison found, and switch once the new generation is where the old one is.

        Where that is done already, nothing is.

        Raises:
            NotReady: No rebuild waits for it.
            RebuildRunning: Another process of this machine drives it, and switches now.
        """
        self._made(workers, None, is_patient=False)

        def work() -> Record:
            record = self.site.update(wishes.approved)
            return record if record.running is None else self._drive()

        return self._reported(work, reporters)

    def stop(self) -> None:
        """Leave the rebuild that this object drives where it is."""
        if self._green is not None:
            self._green.stop()

    def pause(self) -> Record:
        """Have the rebuild wait, whoever drives it; what was folded is kept.

        Raises:
            NotReady: None is under way.
        """
        return self.site.update(lambda record: wishes.paused(record, is_paused=True))

    def cancel(self) -> Record:
        """Give the rebuild up, whoever drives it: its generation is removed, and the active one stays.

        Raises:
            NotReady: None is under way.
            GroupActive, StoreLocked: It is still folded; whoever drives it, or `retire`, removes it later.
        """
        record = self.site.update(wishes.cancelled)
        assert record.rebuild is not None, "it was just cancelled"
        return retire(self.site, record.rebuild.generation, "its rebuild was cancelled")

    def rollback(self, generation: str | None = None, *, keep: timedelta = timedelta(hours=1)) -> Record:
        """Make the generation that was active before the active one again, at once; the other one is kept.

        Args:
            generation: Which one; by default the one that was replaced last.
            keep: For how long the one is kept that was active.

        Raises:
            GenerationNotFound: It is not kept.
        """
        record = self.site.update(lambda record: wishes.rolled_back(record, generation, keep.total_seconds()))
        self.site.show()
        return record

    def retire(self, generation: str | None = None) -> Record:
        """Remove a generation that is kept: its group, its state and its snapshots; see `retire.retire`.

        Args:
            generation: Which one; by default all that are kept, or were being removed.
        """
        record = self.site.record()
        gone = [one.id for one in record.generations if one.phase in ("kept", "retiring")]
        for one in gone if generation is None else [generation]:
            record = retire(self.site, one, "retired by hand")
        return record

    def verify(self, generation: str | None = None) -> Report:
        """Compare a generation with the active one, as of the same positions, while both are folded.

        Where its rebuild waits for that, what is found counts: it may be switched to then, or waits for approval.

        Args:
            generation: Which one; by default the one that is being rebuilt, or else the newest that is kept.

        Raises:
            GenerationNotFound: There is no other one.
            NotReady: It has not caught up, or workers see to it.
            StateNotFound, StoreLocked, ProjectionError, StorageError: See `compare_generations`.
        """
        record = self.site.record()
        if is_led(self.site, record):
            name = self.site.name
            raise NotReady(
                f"{name!r} is folded by workers, each of which has a part of the models. Ask one of them: POST "
                f"/v1/projections/{name}/verify, and then GET /v1/projections/{name}/report.",
                projection=name,
            )
        other = self._other(record, generation)
        if other.phase in ("new", "repartitioning", "replaying", "retiring"):
            raise NotReady(
                f"Generation {other.id} is {other.phase}: there is nothing to compare yet.", projection=self.site.name
            )
        report = compare_generations(self.site, record, other)
        running = record.running
        if running is not None and running.generation == other.id:
            refused = refusal(report.summary, running)
            self.site.update(lambda record: to.compared(record, running.id, report.summary, refused))
        return report

    def last_report(self, generation: str) -> Report | None:
        """Give what was found when a generation was last compared on this machine; None where it was not."""
        found = self.site.record().find(generation)
        return None if found is None else last_report(self.site.place(found).store.directory)

    def models(self, *, max_age_s: float = 0.5, plain: bool = False) -> ActiveModels:
        """Read the active generation's models, through switches; see `ActiveModels`."""
        return ActiveModels(
            self.site.projection,
            self.site.registry,
            self.site.state_dir,
            max_age_s=max_age_s,
            plain=plain,
            kind=self.site.kind,
        )

    def _other(self, record: Record, generation: str | None) -> Generation:
        running = record.running
        if generation is None:
            found = record.kept if running is None else record.find(running.generation)
        else:
            found = record.find(generation)
        if found is None or found.id == record.active:
            known = ", ".join(f"{one.id} ({one.phase})" for one in record.generations)
            raise GenerationNotFound(
                f"There is {'no other generation' if generation is None else f'no generation {generation!r}'} of "
                f"{record.projection!r} to be compared with {record.active}: it has {known}.",
                projection=record.projection,
            )
        return found

    def _made(
        self, workers: int, approver: Approver | None, *, is_patient: bool, runner: MakeRunner | None = None
    ) -> None:
        make = runner or (supervised(workers, nice=NICE) if workers else ThreadRunner)
        self._is_patient = is_patient
        self._green = Green(self.site, make, approver=approver, is_patient=is_patient)

    def _drive(self) -> Record:
        assert self._green is not None
        if is_led(self.site, self.site.record()):
            self._green = Onlooker(self.site, is_patient=self._is_patient)
        return self._green.drive()

    def _reported(self, work: Any, reporters: Sequence[ProgressReporter]) -> Coroutine[Any, Any, Record]:
        running: Coroutine[Any, Any, Record] = stopped_with_its_task(work, self.stop)
        if not (reporters or self._hooks):
            return running
        return reported(reporters, self.get_progress, running, self._hooks)
