"""`python -m tests.benchmarks.service`: what a fleet of two workers costs, and how fast it answers.

One topic, as in `replay`. Two workers, each with one agent for a generation and a state directory of its own:

- `library_s`: the topic rebuilt by two agents of the library, with no worker. `fleet_s`: by the two workers, beside an
  active generation, from the command until readers are switched. `fleet_ratio` is the one over the other. Medians.
- `idle_cpu`, `idle_rss_mb`: what a worker's own process takes of a core, and of memory, where nothing comes in; its
  agents apart (`idle_agents_cpu`, `idle_agents_rss_mb`).
- `query_p50_ms`, `query_p99_ms`: single models asked of their owners, `queries` a second, while a rebuild runs at full
  speed on the same cores; `query_errors` is how many were answered by anything but a model.
- `visible_p50_ms`, `visible_p99_ms`: from handing an event to the producer until a query that waits for it
  (`min_position`) is answered, while events come in at `rate` a second.
- `restart_s`: from starting a worker again, with its state, until it is ready and answers.

`models_equal` is true where the fleet gives, page by page, the models that the library has made.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import aiohttp
from confluent_kafka import Message, Producer

from streams import KafkaCheckpointStore, KafkaEventStore, RebuildCoordinator, RocksStore
from streams.broker._ports import free_ports
from tests.benchmarks.contenders.refold import OrderSummary
from tests.benchmarks.generations import traffic
from tests.benchmarks.kafka import say
from tests.benchmarks.replay import add_common_options, positive
from tests.benchmarks.runner import Runner, run_in_process
from tests.benchmarks.workload import Workload

__all__ = ["main"]

_ROOT = Path(__file__).parents[2]
_PROJECTION = "tests.benchmarks.contenders.refold:OrderSummary"
_NAME = OrderSummary.name
_DEADLINE_S = 300.0


class Worker:
    """One worker's process."""

    def __init__(self, runner: Runner, topic: str, home: Path, name: str, *, mark: str = "", **variables: str) -> None:
        (self.port,) = free_ports(1)
        command = [sys.executable, "-m", "streams", "--log-level", "warning", "worker", "--projections", _PROJECTION]
        command += ["--topic", topic, "--state-dir", str(home / name), "--http-port", str(self.port)]
        mark = f"{runner.mark}{mark}"
        command += ["--registry", f"{mark}-registry", "--namespace", mark]
        command += ["--group", f"{mark}-service", "--worker-name", f"{name}-{self.port}"]
        environment = {**os.environ, "REFOLD_BOOTSTRAP_SERVERS": runner.bootstrap_servers, **variables}
        self.process = subprocess.Popen(command, cwd=_ROOT, env=environment)

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Give status and document; (0, None) where nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(f"http://127.0.0.1:{self.port}{path}", data), timeout=30) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, None

    def wait(self) -> None:
        """Wait until it is ready."""
        wait("a worker to be ready", lambda: self.ask("/readyz")[0] == 200)

    def agents(self) -> list[int]:
        """Give the processes of its agents."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(one) for one in found.stdout.split()]

    def stop(self) -> None:
        """Have it end."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def wait(what: str, look: Any) -> None:
    """Wait for something."""
    deadline = time.monotonic() + _DEADLINE_S
    while not look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {_DEADLINE_S:g} s: {what}")
        time.sleep(0.05)


@contextmanager
def two(runner: Runner, topic: str, home: Path) -> Iterator[list[Worker]]:
    """Two workers that are ready, each with a share."""
    workers = [Worker(runner, topic, home, name) for name in ("one", "two")]
    try:
        for one in workers:
            one.wait()
        yield workers
    finally:
        for one in workers:
            if one.process.poll() is None:
                one.process.kill()
            one.process.wait()


def measure(runner: Runner, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Run all and give the report."""
    workload = Workload(events=options.events, keys=options.keys, partitions=options.partitions, seed=options.seed)
    topic = runner.topic(workload)
    library = [library_s(runner, topic, directory / f"library-{number}") for number in range(options.repeat)]
    say(f"  library, two agents: {statistics.median(library):.3f} s")
    report: dict[str, Any] = {"events": options.events, "library_s": round(statistics.median(library), 3)}
    with two(runner, topic, directory) as workers:
        fleet = []
        for _ in range(options.repeat):
            fleet.append(rebuild_s(workers[0]))
            say(f"  fleet: {fleet[-1]:.3f} s")
            workers[0].ask(f"/v1/projections/{_NAME}/retire", {})
            wait("one generation", lambda: len(generations(workers[0])) == 1)
        report |= {"fleet_s": round(statistics.median(fleet), 3)}
        report["fleet_ratio"] = round(report["fleet_s"] / report["library_s"], 3)
        report |= idle(workers[0], options.idle_seconds)
        say(f"  idle: {report['idle_cpu']:.3f} of a core, {report['idle_rss_mb']} MB")
        report |= asyncio.run(queries(workers, options))
        say(f"  queries: p50 {report['query_p50_ms']} ms, p99 {report['query_p99_ms']} ms")
        report["models_equal"] = all_models(workers[1]) == library_models(directory / "library-0")
        with traffic(runner, topic, options):
            time.sleep(3)
            report |= visible(runner, topic, workers)
        say(f"  visible: p50 {report['visible_p50_ms']} ms, p99 {report['visible_p99_ms']} ms")
        workers[1].stop()
        began = time.perf_counter()
        again = workers[1] = Worker(runner, topic, directory, "two")
        again.wait()
        wait("an answer", lambda: again.ask(f"/v1/projections/{_NAME}/models?limit=1")[0] == 200)
        report["restart_s"] = round(time.perf_counter() - began, 3)
        say(f"  restart: {report['restart_s']} s")
        for one in workers:
            one.stop()
    return report | {"rate": options.rate, "queries": options.queries}


def library_s(runner: Runner, topic: str, directory: Path) -> float:
    """Rebuild by the library alone."""
    events = KafkaEventStore(topic, bootstrap_servers=runner.bootstrap_servers)
    checkpoints = KafkaCheckpointStore(f"{runner.mark}-{directory.name}", events)
    coordinator = RebuildCoordinator(OrderSummary(), events, RocksStore(directory), checkpoints, workers=2)
    began = time.perf_counter()
    asyncio.run(coordinator.rebuild_from_beginning())
    return time.perf_counter() - began


def library_models(directory: Path) -> dict[str, Any]:
    """Give the models that the library has made."""
    with RocksStore(directory).reader(None) as reader:
        return dict(reader.items())


def all_models(worker: Worker) -> dict[str, Any]:
    """Give all models, as one worker answers for the fleet."""
    found: dict[str, Any] = {}
    cursor = ""
    while True:
        _, page = worker.ask(f"/v1/projections/{_NAME}/models?limit=1000{cursor}")
        found |= {one["id"]: one["model"] for one in page["models"]}
        if page["next"] is None:
            return found
        cursor = f"&cursor={page['next']}"


def active(worker: Worker) -> str:
    """Give the generation that is active, as a worker knows it."""
    found = worker.ask("/v1/projections")[1]
    return "" if found is None else str(found[_NAME]["active"])


def generations(worker: Worker) -> list[str]:
    """Name the generations that there are."""
    found = worker.ask("/status")[1]
    return [] if found is None else list(found["projections"][_NAME]["generations"])


def rebuild_s(worker: Worker) -> float:
    """Rebuild by the fleet, until readers are switched."""
    before = active(worker)
    began = time.perf_counter()
    status, done = worker.ask(f"/v1/projections/{_NAME}/rebuild", {"policy": "none"})
    if status != 200:
        raise RuntimeError(f"the rebuild was refused: {done}")
    wait("the switch", lambda: active(worker) != before)
    return time.perf_counter() - began


def idle(worker: Worker, seconds: float) -> dict[str, Any]:
    """Say what a worker takes while nothing comes in."""
    time.sleep(3)
    agents = worker.agents()
    before = cpu_s([worker.process.pid]), cpu_s(agents)
    time.sleep(seconds)
    after = cpu_s([worker.process.pid]), cpu_s(agents)
    return {
        "idle_cpu": round((after[0] - before[0]) / seconds, 4),
        "idle_rss_mb": round(rss_mb([worker.process.pid])),
        "idle_agents": len(agents),
        "idle_agents_cpu": round((after[1] - before[1]) / seconds, 4),
        "idle_agents_rss_mb": round(rss_mb(agents)),
    }


def cpu_s(pids: list[int]) -> float:
    """Give the processor time of processes."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def rss_mb(pids: list[int]) -> float:
    """Give the resident memory of processes."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def queries(workers: list[Worker], options: argparse.Namespace) -> dict[str, Any]:
    """Ask owners for single models at a rate, while a rebuild runs."""
    owners: dict[str, str] = {}
    async with aiohttp.ClientSession() as session:
        base = [f"http://127.0.0.1:{one.port}" for one in workers]
        page = await (await session.get(f"{base[0]}/v1/projections/{_NAME}/models?limit=1000")).json()
        ids = [one["id"] for one in page["models"]]
        addresses = {
            str(part["partition"]): part["address"]
            for part in (await (await session.get(f"{base[0]}/status")).json())["projections"][_NAME]["generations"][
                page["generation"]
            ]["partitions"]
        }
        for one in ids[:400]:
            found = await (await session.get(f"{base[0]}/v1/projections/{_NAME}/models/{one}")).json()
            owners[one] = addresses[str(found["partition"])]
        known = list(owners)
        taken: list[float] = []
        errors = 0

        async def ask(model_id: str) -> None:
            nonlocal errors
            began = time.perf_counter()
            async with session.get(f"http://{owners[model_id]}/v1/projections/{_NAME}/models/{model_id}") as answer:
                await answer.read()
                errors += answer.status != 200
            taken.append((time.perf_counter() - began) * 1000)

        before = active(workers[0])
        await session.post(f"{base[0]}/v1/projections/{_NAME}/rebuild", json={"policy": "none"})
        chance, began, count, asked = random.Random(3), time.perf_counter(), 0, []
        while True:
            asked.append(asyncio.create_task(ask(chance.choice(known))))
            count += 1
            if count % options.queries == 0:
                async with session.get(f"{base[0]}/v1/projections") as answer:
                    if (await answer.json())[_NAME]["active"] != before:
                        break
            await asyncio.sleep(max(0.0, began + count / options.queries - time.perf_counter()))
        await asyncio.gather(*asked)
    taken.sort()
    return {
        "query_count": len(taken),
        "query_errors": errors,
        "query_p50_ms": round(statistics.median(taken), 2),
        "query_p99_ms": round(taken[int(len(taken) * 0.99)], 2),
    }


def visible(runner: Runner, topic: str, workers: list[Worker], count: int = 300) -> dict[str, Any]:
    """Say how long it takes from producing an event until a query sees it."""
    producer = Producer({"bootstrap.servers": runner.bootstrap_servers, "linger.ms": 0})
    taken = []
    records = Workload(events=count, keys=100, partitions=1, seed=77).records()
    for number, (key, value) in enumerate(records):
        where: list[Message] = []
        began = time.perf_counter()
        producer.produce(topic, key=key, value=value, on_delivery=lambda _error, message: where.append(message))  # noqa: B023
        while not where:
            producer.poll(0.001)
        least = f"{where[0].partition()}:{where[0].offset() + 1}"
        path = f"/v1/projections/{_NAME}/models/{key.decode()}?min_position={least}"
        status, answer = workers[number % len(workers)].ask(path)
        if status != 200:
            raise RuntimeError(f"{status}: {answer}")
        taken.append((time.perf_counter() - began) * 1000)
    taken.sort()
    return {
        "visible_p50_ms": round(statistics.median(taken), 1),
        "visible_p99_ms": round(taken[int(len(taken) * 0.99)], 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.service", description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=positive, default=1_000_000, help="events (default %(default)s)")
    parser.add_argument("--rate", type=positive, default=2000, help="events a second (default %(default)s)")
    parser.add_argument("--queries", type=positive, default=200, help="queries a second (default %(default)s)")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="(default %(default)s)")
    add_common_options(parser)
    options = parser.parse_args(arguments)
    return run_in_process(measure, options)


if __name__ == "__main__":
    sys.exit(main())
