"""Leading one projection of a fleet: taking its rebuilds from one durable state to the next, and removing what is over.

Whoever leads needs no state and folds nothing: workers do, by the registry. So it may be of other code than the
generations, and another leader goes on from any state (`transitions`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from streams.control import transitions as to
from streams.control import wishes
from streams.control.claim_rebuild import ends_of
from streams.control.commands import Command, apply
from streams.control.compare import Report
from streams.control.in_place import completed
from streams.control.place import topic_of
from streams.control.record import Generation, Rebuild, Record
from streams.control.repartitioning import Filling, check_source, filling_of, make_topic, remove_topic, staged
from streams.control.replay import Replay
from streams.control.setting_back import SettingBack
from streams.control.showing import Finishing
from streams.control.site import Site
from streams.control.verdict import refusal
from streams.data.checkpoint import KafkaCheckpointStore
from streams.data.history import check_complete
from streams.data.repository import remove_state
from streams.data.stamp import Pinned, Stamp
from streams.errors import (
    BrokerUnavailable,
    CqrsError,
    GroupActive,
    NotLeading,
    RepositoryError,
    StorageError,
    StoreAway,
    StoreLocked,
    TopicChanged,
    TransactionHangs,
)
from streams.log import get_logger
from streams.types import RebuildProgress

__all__ = ["Compare", "Lead"]

log = get_logger(__name__)

Compare = Callable[[Record, Generation, Callable[[], None]], Report]
"""Compares a generation with the active one; the last argument raises where that is not wanted any more."""


_ASK_S = 1.0
_UNSERVED_S = 5.0
_TELL_S = 10.0
_FORGET_S = 60.0
_ANSWER_S = 120.0
"""For so long a comparison is tried again where those who fold do not answer; then a person is to look."""


class Lead:
    """Takes one step at a time. One thread calls `step`, again and again, while this process leads.

    Args:
        site: The projection.
        compare: How generations are compared.
        why_unserved: Asks who folds a generation whether it is served; says why not, and "" where it is.
        is_leading: Asks the broker whether this process leads still; it may take as long as a call to Kafka does.
    """

    def __init__(
        self, site: Site, compare: Compare, why_unserved: Callable[[Generation], str], is_leading: Callable[[], bool]
    ) -> None:
        self._site = site
        self._why_unserved = why_unserved
        self._unserved_s: float | None = None
        self._told, self._told_s = "", float("-inf")
        self._forget_s = 0.0
        self._unanswered_s: float | None = None
        """Since when those who fold do not answer who compares."""
        self._compare_models = compare
        self._is_leading = is_leading
        self._replay: Replay | None = None
        self._of = ("", 0)
        self._filling: Filling | None = None
        """How far the new generation's own topic is filled, where it has one."""
        self._filling_of = ""
        self._newest: Record | None = None
        """As this process wrote it last."""
        self._asked_s = 0.0
        self._finishing = Finishing()
        self._back = SettingBack(site, self._update, self._check_leading)

    @property
    def progress(self) -> RebuildProgress | None:
        """The figures of the replay that is under way; None where none is."""
        if self._filling is None:
            return None if self._replay is None else self._replay.progress
        if self._replay is not None:
            return staged(self._replay.progress, 2)
        return None if self._filling.progress is None else staged(self._filling.progress, 1)

    def step(self, record: Record) -> None:
        """Take the step that is due, if one is.

        Raises:
            NotLeading: This process does not lead any more. Nothing was written.
            BrokerError, StorageError: It could not be taken; it is tried again.
        """
        if self._newest is not None and self._newest.revision > record.revision:
            record = self._newest  # which is not heard of yet
        running = record.running
        if running is None:
            self._replay = self._filling = None
        elif not running.is_paused:
            green = record.find(running.generation)
            assert green is not None, "a record names one that it has"
            try:
                self._advance(record, running, green)
            except (NotLeading, BrokerUnavailable, StorageError, GroupActive):
                raise
            except CqrsError as error:
                self._failed(running, green, error)
        self._back.judge(record)
        self._keep_house(record)

    def handle(self, command: Command) -> None:
        """Do what a command asks, or remember why not.

        Raises:
            NotLeading: Another worker leads, and hears the command too. Nothing was written.
            BrokerError: It is not known whether it was done; where it was, it is not done again.
        """
        if command.verb == "keep-models":
            self._back.forget_offsets()
        self._update(lambda record: apply(record, command))
        log.info("command.handled", id=command.id, verb=command.verb, projection=command.projection)

    def _advance(self, record: Record, running: Rebuild, green: Generation) -> None:
        match green.phase:
            case "active" if green.reset is not None:
                self._back.set_back(running, green, green.reset)
            case "active":
                self._look_on_in_place(running, green)
            case "new":
                self._make(running, green)
            case "repartitioning":
                self._look_on_filling(running, green)
            case "replaying":
                self._look_on(running, green)
            case "verifying":
                self._compare(record, running, green)
            case "ready":
                self._switch(running, green)

    # The steps

    def _make(self, running: Rebuild, green: Generation) -> None:
        """Pin the ends, and say in the new generation's group where it begins; then in the registry.

        A crash between the two leaves offsets of a state that never was, which the next leader sets again.
        """
        if green.source is not None and green.phase == "new":
            self._make_topic(running, green)
            return
        site, cluster = self._site, self._site.events.cluster
        topic = cluster.topic(green.topic)
        if (topic.id, topic.partitions) != (green.topic_id, green.partitions):
            raise TopicChanged(
                f"{topic.name} is not the topic any more that {green.id} was to be folded from (id {green.topic_id}, "
                f"{green.partitions} partitions; now {topic.id}, {topic.partitions}). Rebuild again.",
                projection=site.name,
                topic=topic.name,
            )
        events = site.events_of(site.place(green))
        marks = ends_of(site.ground(site.place(green)), topic)
        check_complete(
            cluster, topic, marks, projection=site.name, doing="A rebuild", allow_incomplete=site.allow_incomplete
        )
        state = secrets.token_hex(6)
        now_ms = time.time_ns() // 1_000_000
        pinned = {
            number: Pinned(start=one.low, target=one.high, since_ms=now_ms, since_position=one.low)
            for number, one in marks.items()
        }
        stamp = Stamp(generation=green.id, build=green.epoch, directory=state, fingerprint=green.fingerprint)
        self._check_leading()
        if self._site.record().find(green.id) != green:
            return  # somebody else has taken the step
        KafkaCheckpointStore(green.group, events).reset(
            stamp, {number: one.low for number, one in marks.items()}, pinned=pinned
        )
        targets = {number: one.high for number, one in marks.items()}
        facts = {"state": state, "epoch": green.epoch}
        self._update(lambda record: to.pinned(record, running.id, facts, targets))
        log.info("generation.made", generation=green.id, targets=targets)

    def _make_topic(self, running: Rebuild, green: Generation) -> None:
        """Make the topic that the new generation is to fold, and pin the ends up to which it is to be filled."""
        marks = check_source(self._site, green)
        self._check_leading()
        topic = make_topic(self._site.events.cluster, green.topic, topic_of(filling_of(green)))
        targets = {number: one.high for number, one in marks.items()}
        self._update(partial(to.repartitioned, rebuild_id=running.id, topic=topic, targets=targets))
        log.info("generation.repartitioned", generation=green.id, topic=topic.name, targets=targets)

    def _look_on_filling(self, running: Rebuild, green: Generation) -> None:
        filling = self._filled(green)
        self._note(running, _halted(filling))
        if filling.is_caught_up():
            self._make(running, green)

    def _look_on_in_place(self, running: Rebuild, one: Generation) -> None:
        replay = self._looked_at(one)
        self._note(running, _halted(replay))
        if replay.is_caught_up():
            self._update(partial(completed, rebuild_id=running.id, progress=replay.progress))
            log.info("generation.rebuilt", generation=one.id, events=replay.progress.events_processed)

    def _look_on(self, running: Rebuild, green: Generation) -> None:
        replay = self._looked_at(green)
        self._note(running, self._why_halted(green, replay))
        if self._is_caught_up(green, replay) and self._finishing.is_done(self._site.place(green).store.peek()):
            goes_on = running.policy == "none" and not self._why_unserved(green)
            self._update(partial(_past_replay, rebuild_id=running.id, progress=replay.progress, goes_on=goes_on))
            log.info("generation.caught_up", generation=green.id, events=replay.progress.events_processed)

    def _compare(self, record: Record, running: Rebuild, green: Generation) -> None:
        if running.policy == "none":
            self._update(lambda record: to.compared(record, running.id, None))
            return
        try:
            report = self._compare_models(record, green, partial(self._check_wanted, running))
        except (NotLeading, BrokerUnavailable):
            raise
        except StoreLocked as error:
            # Partitions are being handed over, or a worker has just gone: another one has them in a moment.
            now = time.monotonic()
            if self._unanswered_s is None:
                self._unanswered_s = now
            if now - self._unanswered_s < _ANSWER_S:
                self._note(running, f"to be compared again: {error}")
                raise
            refused, summary = f"they could not be compared: {error}", None
        except CqrsError as error:
            refused, summary = f"they could not be compared: {error}", None
        else:
            summary = report.summary
            refused = refusal(summary, running)
        self._unanswered_s = None
        self._update(lambda record: to.compared(record, running.id, summary, refused))
        log.info("generation.compared", generation=green.id, waits=refused or "no")

    def _switch(self, running: Rebuild, green: Generation) -> None:
        replay = self._looked_at(green)
        why = self._why_halted(green, replay)
        if self._is_caught_up(green, replay):
            unserved = self._why_unserved(green)
            if not unserved:
                self._unserved_s = None
                self._update(lambda record: to.switched(record, running.id))
                log.info("generation.switched", generation=green.id)
                return
            why = why or self._overdue(unserved)
        self._note(running, why)

    def _keep_house(self, record: Record) -> None:
        """Retire what is over: once nobody folds it any more, its group and its name. Workers remove their copies."""
        now = datetime.now(UTC)
        for one in record.generations:
            if one.phase == "kept" and one.kept_until is not None and one.kept_until <= now:
                self._update(partial(wishes.retiring, id=one.id, why="its time was over"))
            elif one.phase == "retiring" and not self._site.events.cluster.members(one.group):
                self._check_leading()
                self._site.events.cluster.delete_group(one.group)
                if not remove_topic(self._site.events.cluster, one) or not self._forgotten(one):
                    continue
                self._update(partial(to.retired, id=one.id))
                log.info("generation.retired", generation=one.id, why=one.why)

    def _forgotten(self, gone: Generation) -> bool:
        """Remove a generation's snapshots and its tables; False: not now, and it is tried again after a while."""
        if time.monotonic() < self._forget_s:
            return False
        try:
            remove_state(self._site.settings, self._site.name, gone.state)
            store = self._site.place(gone).store
            if not store.kind.forget(store.directory):
                return False
        except (RepositoryError, StoreAway) as error:
            self._forget_s = time.monotonic() + _FORGET_S
            log.warning("snapshots.not_removed", generation=gone.id, again_in_s=_FORGET_S, why=str(error))
            return False
        return True

    # What the steps have in common

    def _looked_at(self, green: Generation) -> Replay:
        if self._replay is None or self._of != (green.id, green.epoch):
            self._replay, self._of = Replay(self._site.events.cluster, green), (green.id, green.epoch)
        self._replay.look()
        return self._replay

    def _filled(self, green: Generation) -> Replay:
        """Look at how far the new generation's own topic is filled."""
        if self._filling is None or self._filling_of != green.topic_id:
            self._filling, self._filling_of = Filling(self._site.events.cluster, green), green.topic_id
        return self._filling.look()

    def _is_caught_up(self, green: Generation, replay: Replay) -> bool:
        return replay.is_caught_up() and (green.source is None or self._filled(green).is_caught_up())

    def _why_halted(self, green: Generation, replay: Replay) -> str:
        return _halted(replay) or ("" if green.source is None else _halted(self._filled(green)))

    def _overdue(self, unserved: str) -> str:
        """Say what readers wait for with the switch, where they have waited for long."""
        now = time.monotonic()
        if self._unserved_s is None:
            self._unserved_s = now
        if now - self._unserved_s <= _UNSERVED_S:
            return ""
        if now - self._told_s > _TELL_S:  # where its partitions are by now changes all the time
            self._told, self._told_s = f"it waits for {unserved}", now
        return self._told

    def _note(self, running: Rebuild, why: str) -> None:
        """Note what the rebuild waits for, or that it waits no more."""
        if why != running.why:
            self._update(lambda record: to.noted(record, running.id, why))

    def _failed(self, running: Rebuild, green: Generation, error: CqrsError) -> None:
        """Give up a rebuild that cannot be begun, or never ends; note what stops another one."""
        if green.phase == "new" or green.reset is not None or isinstance(error, TransactionHangs):
            self._update(lambda record: wishes.cancelled(record, str(error)))
            log.warning("rebuild.given_up", generation=green.id, why=str(error))
        elif str(error) != running.why:
            self._update(lambda record: to.noted(record, running.id, str(error)))
            log.warning("rebuild.stopped", generation=green.id, why=str(error))

    def _check_wanted(self, running: Rebuild) -> None:
        """Raise where the rebuild is not to go on; asked again and again, it asks Kafka once a second."""
        if time.monotonic() - self._asked_s < _ASK_S:
            return
        self._asked_s = time.monotonic()
        record = self._site.record().running
        if record is None or record.id != running.id or record.is_paused:
            raise NotLeading(f"The rebuild of {self._site.name!r} is not to go on just now.")
        self._check_leading()

    def _check_leading(self) -> None:
        if not self._is_leading():
            raise NotLeading(f"Another worker leads {self._site.name!r} by now. Nothing was written.")

    def _update(self, change: Callable[[Record], Record]) -> None:
        def checked(record: Record) -> Record:
            changed = change(record)
            if changed != record:
                # By now this process is the record's only writer: whoever has woken late is told here.
                self._check_leading()
            return changed

        written = self._site.update(checked)
        if self._newest is None or written.revision > self._newest.revision:  # commands write from another thread
            self._newest = written


def _past_replay(record: Record, *, rebuild_id: str, progress: RebuildProgress, goes_on: bool) -> Record:
    """Give the record once a replay has caught up.

    Args:
        record: The record.
        rebuild_id: The rebuild's.
        progress: Its figures.
        goes_on: Nothing is to be compared, and it is served: take the steps up to the switch at once.
    """
    record = to.caught_up(record, rebuild_id, progress)
    return to.switched(to.compared(record, rebuild_id, None), rebuild_id) if goes_on else record


def _halted(replay: Replay) -> str:
    """Say why partitions are folded no further; "" where all are."""
    halted = replay.halted()
    return f"the new generation is folded no further: {halted}" if halted else ""
