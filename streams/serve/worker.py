"""The worker: all projections of a service, folded, rebuilt and watched, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from streams.config import KafkaSettings, WorkerSettings
from streams.control.commands import Command
from streams.control.green import NICE
from streams.control.record import Generation
from streams.control.site import Site
from streams.data.agent import AgentStatus
from streams.data.job import AnyJob, Job, instance_of
from streams.data.process_runner import ProcessRunner
from streams.data.runner import Runner
from streams.data.supervisor import supervised
from streams.errors import ConfigError, CqrsError
from streams.log import get_logger
from streams.memory import cache_share
from streams.serve.auth import Tokens
from streams.serve.comparing import Comparing
from streams.serve.copies import Copies
from streams.serve.finding import Finding
from streams.serve.leadership import Leadership, commands_topic, workers_group
from streams.serve.leading import Leading
from streams.serve.metrics import Metrics
from streams.serve.observing import Observing, Subject
from streams.serve.owners import Owners
from streams.serve.peers import Peers
from streams.serve.producing import Producing
from streams.serve.served import Served
from streams.serve.serving import Serving
from streams.serve.shelf import Shelf
from streams.serve.standbys import chosen
from streams.serve.tasks import tell_of_failed_tasks
from streams.serve.tending import Tending
from streams.serve.tls import Tls
from streams.serve.tracing import Tracing
from streams.serve.wanted import is_wanted
from streams.serve.web import Web

__all__ = ["Worker"]

log = get_logger(__name__)

_SILENT_S = 120.0
"""A loop that has not gone round for so long is stuck: nothing that it waits for takes longer."""


_PASS_ON_AFTER_S = 1.0
_PING_S = 20.0
_TRACES_S = 3.0
_PASSED_ON_S = 600.0


class _Loop(Protocol):
    beat_s: float

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def join(self, timeout_s: float) -> bool: ...


class Worker:
    """One worker of a fleet.

    Its loops are threads: one for each projection that tends its generations here, one that leads it while this worker
    is the leader. The event loop serves HTTP and keeps the membership among the workers.

    Args:
        sites: The projections. Their state directories are this worker's, or shared with others of this machine.
        kafka: Where workers elect their leader.
        settings: How it presents itself.

    Raises:
        ConfigError: The memory that it may take is too little for its agents, or it is to be known again and has no
            name of its own.
    """

    def __init__(self, sites: Sequence[Site], kafka: KafkaSettings, settings: WorkerSettings) -> None:
        self.settings = settings
        self._cache_bytes = _share(settings, sites)
        if settings.static_membership and settings.worker_name is None:
            raise ConfigError(
                "static_membership: groups know a worker again by its name, and this one has none that lasts: give it "
                "one (--worker-name or REFOLD_WORKER_NAME), which no other worker has."
            )
        if settings.static_membership and settings.advertised_address is None and settings.http_port == 0:
            raise ConfigError(
                "static_membership: groups go on telling where a worker was found when it joined, so it must be found "
                "there again: give it an address (--advertised-address) or a port (--http-port)."
            )
        self.name = settings.worker_name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self.began = datetime.now(UTC)
        self.address = ""
        """host:port, once it listens."""
        self._sites = sites
        self.leadership = Leadership(kafka, settings.namespace, self.name, self._heard)
        self.tendings: dict[str, Tending] = {}
        """By projection's name."""
        self.leadings: dict[str, Leading] = {}
        self.owners = Owners()
        self.served = Served()
        self.observing = Observing(self._subjects, self.owners, self.served)
        self.shelf = Shelf()
        self._writers: dict[Path, frozenset[int]] = {}
        """The processes that write to a build, as last seen."""
        self.finding: Finding
        self.read_tokens = Tokens(settings.read_tokens)
        """Of those who may read; workers show each other one."""
        self.comparing = Comparing(self)
        self.serving = Serving(self)
        self.copies = Copies(self)
        self.metrics = Metrics(self)
        self.loop: asyncio.AbstractEventLoop
        self.tls = Tls.of(settings)
        self.peers: Peers
        """By which it asks other workers."""
        self._tracing = Tracing()
        self._producing = Producing(kafka, commands_topic(settings.namespace))
        self.is_draining = False
        """Whether it was told to end."""

    async def run(self, stopped: asyncio.Event) -> None:
        """Work until stopped.

        1. Listen: whoever watches it is answered before Kafka is reached.
        2. Tend every projection; join the workers' group.
        3. Once stopped, be not ready any more; let the leadership go; have all agents drain, commit and leave; and end.

        Raises:
            ConfigError: The port cannot be had.
        """
        # Step 1
        self.loop = asyncio.get_running_loop()
        tell_of_failed_tasks(self.loop)
        self.peers = Peers(self.read_tokens, self.tls)
        web = Web(self)
        port = await web.start()
        self.address = self.settings.advertised_address or _address(self.settings.http_host, port)
        self.finding = Finding(self.address, self.shelf, self.owners, self.observing, self.served)
        log.info("worker.listens", worker=self.name, host=self.settings.http_host, port=port, address=self.address)
        try:
            # Step 2
            for site in self._sites:
                tending = self.tendings[site.name] = Tending(
                    site,
                    self._runner,
                    self.address,
                    workers_group(self.settings.namespace),
                    self._instances(),
                    self._standby if self.settings.standbys else None,
                    self._stands_by_for,
                )
                compare = partial(self.comparing.compare, site)
                self.leadings[site.name] = Leading(tending, self.leadership, compare, self.serving, self._tracing)
            for loop in self._loops().values():
                loop.start()
            self.leadership.address = self.address
            joining = asyncio.create_task(self._be_a_member())
            await stopped.wait()
            # Step 3
            log.info("worker.draining", worker=self.name)
            self.is_draining = True
            joining.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await joining
            for loop in self._loops().values():
                loop.stop()
            await self.leadership.leave()
            await asyncio.to_thread(self._wait_for_loops)
        finally:
            await web.stop()
            await self.peers.close()
            self.finding.close()
            self.shelf.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(self._tracing.close), _TRACES_S)
        log.info("worker.ended", worker=self.name)

    def faults(self) -> list[str]:
        """Say which loops do not go round any more."""
        now = time.monotonic()
        return [
            f"{what}: its loop has not gone round for {silent_s:.0f} s"
            for what, loop in self._loops().items()
            if (silent_s := now - loop.beat_s) > _SILENT_S
        ]

    def _loops(self) -> dict[str, _Loop]:
        return {
            **{f"leading {name}": loop for name, loop in self.leadings.items()},
            **{f"tending {name}": loop for name, loop in self.tendings.items()},
            "observing": self.observing,
        }

    def _keep_shelf(self) -> None:
        """Let go of builds that are not folded here any more, so that they can be removed; open what is served, or will
        be at the next switch.
        """
        tended = [one for tending in list(self.tendings.values()) for one in tending.tended.values()]
        self.shelf.keep_only([*self.copies.builds(), *(one.job.build.path for one in tended if one.job is not None)])
        for one in tended:
            if one.job is None:
                continue
            if one.pids != self._writers.get(one.job.build.path, one.pids):
                self.shelf.let_go(one.job.build.path)
            self._writers[one.job.build.path] = one.pids
            for number, held in one.status.partitions.items():
                target = one.generation.targets.get(number)
                is_about_to_be = target is not None and held.committed >= target
                if is_about_to_be or not self.served.why_not(one.generation, number, held):
                    self.shelf.warm(one.job.build, number, held.committed)

    def _subjects(self) -> Iterator[Subject]:
        """Give the generations that are folded anywhere, for the observer."""
        self._keep_shelf()
        for tending in list(self.tendings.values()):
            record, tended = tending.record, tending.tended
            if record is None:
                continue
            for one in record.generations:
                if not is_wanted(record, one):
                    continue
                status = tended[one.id].status if one.id in tended else AgentStatus()
                filled = tended[one.id].filled if one.id in tended else AgentStatus()
                running = record.running
                is_replayed = (
                    running is not None
                    and running.generation == one.id
                    and bool(one.targets or one.phase == "repartitioning")
                )
                yield Subject(
                    site=tending.site,
                    generation=one,
                    status=status,
                    filled=filled,
                    is_replayed=is_replayed and one.reset is None,
                )

    def _instances(self) -> list[str]:
        if not self.settings.static_membership:
            return []
        return [instance_of(self.name, number) for number in range(self.settings.agents_per_generation)]

    def _runner(self, job: AnyJob, is_replay: bool) -> Runner:
        cache_bytes = None if "cache_bytes" in job.settings.model_fields_set else self._cache_bytes
        if is_replay and self.settings.replay_cache_bytes is not None:
            cache_bytes = self.settings.replay_cache_bytes
        if cache_bytes is not None:
            job = replace(job, settings=job.settings.model_copy(update={"cache_bytes": cache_bytes}))
        if self.settings.static_membership:
            job = replace(job, instance=self.name)
        return supervised(self.settings.agents_per_generation, nice=NICE if is_replay else 0)(job)

    def _standby(self, job: Job) -> ProcessRunner:
        if "cache_bytes" not in job.settings.model_fields_set and self._cache_bytes is not None:
            job = replace(job, settings=job.settings.model_copy(update={"cache_bytes": self._cache_bytes}))
        return ProcessRunner(job, nice=NICE)

    def _stands_by_for(self, generation: Generation) -> frozenset[int] | None:
        """Say for which partitions this worker is to stand by; None where the group says nothing just now."""
        owning = self.owners.known(generation.id)
        if not owning.is_fresh:
            return None
        standbys = self.settings.standbys
        return chosen(self.address, owning.addresses, owning.workers, generation.partitions, standbys)

    def _wait_for_loops(self) -> None:
        deadline = time.monotonic() + self.settings.drain_seconds
        for what, loop in self._loops().items():
            if not loop.join(max(0.1, deadline - time.monotonic())):
                log.warning("worker.not_drained", what=what, within_s=self.settings.drain_seconds)

    async def _pass_on(self, command: Command) -> None:
        """Give a command again whose projection this worker does not have: in a rolling update the next leader may."""
        age_s = (datetime.now(UTC) - command.at).total_seconds()
        log.warning("command.of_nobody", projection=command.projection, verb=command.verb, id=command.id, age_s=age_s)
        if age_s < _PASSED_ON_S:
            await asyncio.sleep(_PASS_ON_AFTER_S)
            try:
                await asyncio.to_thread(self.give, command)
            except CqrsError as error:
                log.warning("command.lost", id=command.id, why=str(error))

    def addresses(self) -> set[str]:
        """Name the addresses of all workers of the fleet; on a thread.

        Raises:
            BrokerError: From Kafka.
        """
        return {self.address, *self.leadership.addresses()}

    def give(self, command: Command) -> None:
        """Give a command to whoever leads; blocks until Kafka has it.

        Raises:
            BrokerUnavailable, BrokerError: It is not known whether Kafka has it.
        """
        self._producing.send(command.projection.encode(), command.encode())

    async def _be_a_member(self) -> None:
        """Join the workers' group, and join again where commands are not heard any more."""
        await self.leadership.join()
        while True:
            await asyncio.sleep(_PING_S)
            try:
                if not self.leadership.is_leading or await self.leadership.hears(self._ping):
                    continue
            except CqrsError as error:
                log.debug("leader.not_pinged", why=str(error))
                continue
            log.error("leader.deaf", worker=self.name, why="a command that it gave itself did not come; it joins again")
            await self.leadership.leave()
            await self.leadership.join()

    def _ping(self, token: bytes) -> None:
        self._producing.send(b"ping", token)

    async def _heard(self, raw: bytes) -> None:
        """Handle a command of those that this worker hears while it leads; the next one comes after it."""
        try:
            command = Command.parse(raw)
        except ConfigError as error:
            log.warning("command.not_understood", why=str(error))
            return
        leading = self.leadings.get(command.projection)
        if leading is None:
            await self._pass_on(command)
            return
        await asyncio.to_thread(leading.handle, command)


def _share(settings: WorkerSettings, sites: Sequence[Site]) -> int | None:
    limit = settings.memory_limit_bytes
    if limit is None:
        return None
    return cache_share(
        limit,
        max(1, len(sites)),
        settings.agents_per_generation,
        stands_by=settings.standbys > 0,
        repartitioned=sum(site.is_repartitioned for site in sites),
    )


def _address(host: str, port: int) -> str:
    return f"{socket.gethostname() if host in ('0.0.0.0', '::') else host}:{port}"
