"""Several workers on one machine, each with a state directory of its own, as a service runs them."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from projections.contract import CqrsProjection
from streams.control.record import Record
from streams.control.registry import Registry
from tests.integration.kit import TALLY, Kit, read_log, until
from tests.support import Tally, as_json, folded

SESSION_S = 6


@dataclass
class Worker:
    """One `refold worker`."""

    process: subprocess.Popen[bytes]
    port: int
    state_dir: Path
    log: Path
    context: ssl.SSLContext | None = None
    """How it is asked; None: by plain HTTP."""

    def get(self, path: str, timeout_s: float = 10.0) -> tuple[int, Any]:
        """Ask it; give the status and the document."""
        status, _, body = self.ask("GET", path, timeout_s=timeout_s)
        return status, body

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 10.0,
        port: int | None = None,
        context: ssl.SSLContext | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """Ask it; give status, headers and document."""
        where = "127.0.0.1", self.port if port is None else port
        connection: http.client.HTTPConnection
        if self.context is None:
            connection = http.client.HTTPConnection(*where, timeout=timeout_s)
        else:
            connection = http.client.HTTPSConnection(*where, timeout=timeout_s, context=context or self.context)
        with contextlib.closing(connection):
            raw = None if body is None else orjson.dumps(body)
            connection.request(method, path, raw, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            told = {key.lower(): value for key, value in answer.getheaders()}
            is_json = "json" in told.get("content-type", "")
            return answer.status, told, orjson.loads(content) if is_json and content else content.decode()

    def is_ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/status")[1]
        return found

    def is_leader(self) -> bool:
        try:
            return bool(self.status()["worker"]["is_leader"])
        except OSError:
            return False

    def agents(self) -> list[int]:
        """The processes of its agents."""
        found = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", "agent_process"], capture_output=True, text=True, check=False
        )
        return [int(one) for one in found.stdout.split()]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def terminate(self, within_s: float = 40.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def output(self) -> str:
        return self.log.read_text()


@dataclass
class Fleet:
    """Workers of one namespace, over a Kit's topic and registry."""

    kit: Kit
    projection: str = TALLY
    projection_object: CqrsProjection[Any] = field(default_factory=Tally)
    workers: list[Worker] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = None
    """How workers are asked; None: by plain HTTP."""
    config: Path | None = None
    """A refold.toml that says which projections workers have, and of which topics; None: the one of the Kit's."""

    @property
    def registry(self) -> Registry:
        return Registry(self.kit.cluster, self.kit.registry)

    def record(self) -> Record:
        found = self.registry.get(self.projection_object.name)
        assert found is not None
        return found

    def start(
        self,
        name: str,
        *arguments: str,
        projections: str | None = None,
        state: str | None = None,
        port: int | None = None,
        namespace: str | None = None,
        **variables: str,
    ) -> Worker:
        """Start a worker; the state directory is that of its name, or another one's, and the port one that is free."""
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        home = self.kit.state_dir.parent
        state_dir = home / f"state-{state or name}"
        log = home / f"worker-{name}-{len(self.workers)}.log"
        command = [sys.executable, "-m", "streams", "--log-format", "json", "worker"]
        if self.config is None:
            command += ["--projections", projections or self.projection, "--topic", self.kit.topic]
            command += ["--group", self.kit.group]
        else:
            command += ["--config", str(self.config)]
        command += ["--state-dir", str(state_dir), "--http-port", str(port)]
        command += ["--namespace", namespace or self.kit.topic, "--worker-name", f"{name}-{port}", *arguments]
        settings = {"REFOLD_SESSION_TIMEOUT_S": str(SESSION_S), **self.variables, **variables}
        with log.open("w") as handle:
            process = subprocess.Popen(
                command,
                env=self.kit.environment(**settings),
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=Path(__file__).parents[2],
            )
        worker = Worker(process, port, state_dir, log, self.context)
        self.workers.append(worker)
        return worker

    def ready(self, *workers: Worker) -> None:
        """Wait until workers serve their share."""
        for one in workers:
            until(
                f"the worker at {one.port} to be ready",
                partial(_settled, one),
                deadline_s=60,
            )
            assert one.process.poll() is None, one.output()

    def listening(self, *workers: Worker) -> None:
        """Wait until workers have heard what the registry says, whether they serve anything or not."""
        for one in workers:
            until(f"the worker at {one.port} to listen", partial(_listens, one, self.projection_object.name))
            assert one.process.poll() is None, one.output()

    def leader(self) -> Worker:
        """Wait for a worker that leads, and give it."""
        found: list[Worker] = []

        def look() -> bool:
            found[:] = [one for one in self.workers if one.process.poll() is None and one.is_leader()]
            return len(found) == 1

        until("one worker to lead", look, deadline_s=30)
        return found[0]

    def owners(self, generation: str) -> dict[int, str]:
        """By partition, where it is served, as the group says."""
        record = self.record().find(generation)
        assert record is not None
        return {
            number: one.address or "" for one in self.kit.cluster.members(record.group) for number in one.partitions
        }

    def expected(self) -> dict[str, Any]:
        """The models by a plain fold of the whole topic."""
        log = read_log(self.kit.bootstrap, self.kit.cluster.topic(self.kit.topic))
        models: dict[str, Any] = {}
        by_model = self.projection_object.partition_by == "model"
        together = [[one for records in log.values() for one in records]]
        for records in together if by_model else log.values():
            models |= folded(records, self.projection_object, self.kit.codec)
        return as_json(models, self.projection_object)

    def models(self, worker: Worker, page: int = 7) -> dict[str, Any]:
        """All models, by pages, as one worker gives them; where a partition is handed over meanwhile, once more."""
        deadline = time.monotonic() + 30
        while (found := self._models(worker, page)) is None:
            assert time.monotonic() < deadline, "no worker serves all of them"
        return found

    def _models(self, worker: Worker, page: int) -> dict[str, Any] | None:
        name, cursor = self.projection_object.name, None
        found: dict[str, Any] = {}
        generations: set[str] = set()
        while True:
            query = f"?limit={page}" + (f"&cursor={cursor}" if cursor else "")
            status, answer = worker.get(f"/v1/projections/{name}/models{query}")
            if status == 503:
                return None
            assert status == 200, answer
            for one in answer["models"]:
                assert one["id"] not in found, f"{one['id']} was given twice"
                found[one["id"]] = one["model"]
            generations.add(answer["generation"])
            cursor = answer["next"]
            if cursor is None:
                assert len(generations) == 1
                return found

    def stop(self) -> None:
        for one in self.workers:
            if one.process.poll() is None:
                with contextlib.suppress(OSError):
                    os.kill(one.process.pid, signal.SIGCONT)
                one.process.kill()
            one.process.wait()


@contextlib.contextmanager
def fleet(kit: Kit, **parts: Any) -> Iterator[Fleet]:
    """Workers, which are killed at the end."""
    found = Fleet(kit, **parts)
    try:
        yield found
    finally:
        found.stop()


def soon(what: str, look: Callable[[], bool], deadline_s: float = 30.0) -> float:
    """Wait for something; give how long that took."""
    began = time.monotonic()
    until(what, look, deadline_s=deadline_s)
    return time.monotonic() - began


def _listens(worker: Worker, projection: str) -> bool:
    if worker.process.poll() is not None:
        return True
    try:
        return worker.status()["projections"][projection]["active"] is not None
    except OSError:
        return False


def _settled(worker: Worker) -> bool:
    return worker.is_ready() or worker.process.poll() is not None
