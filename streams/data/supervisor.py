"""Several agents of one generation, each in a process of its own: started, looked after, stopped, and told as one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from streams.data.agent import AgentStatus
from streams.data.job import AnyJob, Hold, Repartition, Work, instance_of
from streams.data.partition import PartitionStatus
from streams.data.process_runner import ProcessRunner
from streams.data.runner import MakeRunner, Runner
from streams.errors import AgentDied
from streams.log import get_logger

__all__ = ["Supervisor", "supervised"]

log = get_logger(__name__)

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 30.0
_DEATHS = 5
"""So many deaths of one agent, each within a minute of its start, are reported and not mended any more."""
_SOON_S = 60.0
_LOOK_S = 0.02


@dataclass(slots=True)
class _Slot:
    """One of the agents, and those before it that died."""

    number: int
    runner: Runner
    started_s: float = 0.0
    restart_at: float | None = None
    deaths: int = 0
    has_ended: bool = False


class Supervisor:
    """Runs several agents of one job as if they were one; see `Runner`.

    An agent whose process dies is started again, after 0.5 s and then ever later; its partitions go to the others
    meanwhile. One that dies five times, each within a minute, is given up: the others are stopped, and its death is
    raised. An agent that ends with an error of its own is not started again: its partitions go to the others, who come
    to the same one.

    `start` and `wait` are to be called from one thread that lives as long as the agents are to.

    Args:
        job: What is folded into what.
        agents: How many.
        make: Makes each; by default a process of its own.
    """

    def __init__(self, job: AnyJob, agents: int, make: MakeRunner = ProcessRunner) -> None:
        self._job = job
        self._make = make
        self._slots = [_Slot(number, make(_seated(job, number))) for number in range(agents)]
        self._events = 0
        self._work = Work()
        self._nice: int | None = None
        self._wish: Hold | None = None
        self._stopped = False
        self._error: BaseException | None = None

    @property
    def status(self) -> AgentStatus:
        """The figures of all agents together."""
        running = [slot.runner.status for slot in self._slots]
        return AgentStatus(
            partitions=_merged(one.partitions for one in running),
            events=self._events + sum(one.events for one in running),
            models=sum(one.models for one in running),
            work=sum((one.work for one in running), self._work),
            rocksdb_bytes=sum(one.rocksdb_bytes for one in running),
            away_s=max((one.away_s for one in running), default=0.0),
        )

    @property
    def pids(self) -> set[int]:
        """The processes of the agents as they are now."""
        return {pid for slot in self._slots if (pid := getattr(slot.runner, "pid", None)) is not None}

    def start(self) -> None:
        """See Runner."""
        for slot in self._slots:
            self._start(slot)

    def stop(self, *, stays: bool = False) -> None:
        """See Runner."""
        self._stopped = True
        for slot in self._slots:
            slot.runner.stop(stays=stays)

    def renice(self, nice: int) -> None:
        """See Runner; agents that are started later have it too."""
        self._nice = nice
        for slot in self._slots:
            slot.runner.renice(nice)

    def hold(self, wish: Hold | None) -> None:
        """See Runner; agents that are started later are held too."""
        self._wish = wish
        for slot in self._slots:
            slot.runner.hold(wish)

    def wait(self, timeout_s: float) -> bool:
        """See Runner; agents that died are started again from in here."""
        deadline = time.monotonic() + timeout_s
        while True:
            for slot in self._slots:
                self._look(slot)
            if all(slot.has_ended for slot in self._slots):
                return True
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(_LOOK_S, left_s))

    def result(self) -> AgentStatus:
        """See Runner."""
        while not self.wait(1.0):
            pass
        if self._error is not None:
            raise self._error
        return self.status

    def _start(self, slot: _Slot) -> None:
        slot.started_s, slot.restart_at = time.monotonic(), None
        slot.runner.start()

    def _look(self, slot: _Slot) -> None:
        if slot.has_ended:
            return
        if slot.restart_at is not None:
            if self._stopped:
                slot.has_ended = True
            elif time.monotonic() >= slot.restart_at:
                self._events += slot.runner.status.events
                self._work += slot.runner.status.work + Work(restarts=1)
                slot.runner = self._make(_seated(self._job, slot.number))
                if self._nice is not None:
                    slot.runner.renice(self._nice)
                self._start(slot)
                if self._wish is not None:
                    slot.runner.hold(self._wish)
            return
        if not slot.runner.wait(0):
            return
        try:
            slot.runner.result()
        except AgentDied as error:
            if not self._stopped:
                self._mend(slot, error)
                return
            log.warning("agent.died", generation=self._job.generation, agent=slot.number, why=str(error))
        except BaseException as error:  # noqa: BLE001  (raised again by `result`)
            self._error = self._error or error
        slot.has_ended = True

    def _mend(self, slot: _Slot, error: AgentDied) -> None:
        """Have an agent started again in a while, or give it up."""
        now = time.monotonic()
        slot.deaths = slot.deaths + 1 if now - slot.started_s < _SOON_S else 1
        if slot.deaths >= _DEATHS:
            self._error = self._error or AgentDied(
                f"Agent {slot.number} of {self._job.generation} has died {slot.deaths} times, each within "
                f"{_SOON_S:g} s of its start; it is not started again. The last time: {error}",
                projection=self._job.projection.name,
                topic=self._job.topic.name,
            )
            slot.has_ended = True
            self.stop()
            return
        backoff_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (slot.deaths - 1))
        slot.restart_at = now + backoff_s
        log.warning(
            "agent.died",
            generation=self._job.generation,
            agent=slot.number,
            starts_again_in_s=backoff_s,
            why=str(error),
        )


def supervised(agents: int, *, nice: int = 0) -> MakeRunner:
    """Give what makes a supervisor of so many agents.

    Args:
        agents: How many.
        nice: By how much their priority is lowered; see `ProcessRunner`.
    """

    def make(job: AnyJob) -> Runner:
        return Supervisor(job, agents, lambda job: ProcessRunner(job, nice=nice))

    return make


def _seated(job: AnyJob, number: int) -> AnyJob:
    """Give an agent's own job: the group is to know each by itself."""
    if isinstance(job, Repartition) and job.seat:
        job = replace(job, seat=instance_of(job.seat, number))
    return replace(job, instance=instance_of(job.instance, number)) if job.instance else job


def _merged(statuses: Iterable[dict[int, PartitionStatus]]) -> dict[int, PartitionStatus]:
    """Give each partition as the one knows it that is furthest: who has lost it, is behind by then."""
    merged: dict[int, PartitionStatus] = {}
    for partitions in statuses:
        for number, one in partitions.items():
            if number not in merged or one.committed >= merged[number].committed:
                merged[number] = one
    return merged
