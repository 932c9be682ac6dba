"""`refold demo`: the main job on real data, from an empty machine to compared read models."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal
from uuid import uuid4

import orjson
from cyclopts import Parameter
from cyclopts.types import PositiveInt
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from projections.datasets import flight_events
from projections.flights import AircraftLog
from streams.adapters.kinds import kind_of
from streams.broker import EmbeddedBroker
from streams.broker.postgres import EmbeddedPostgres
from streams.cli.output import document, shown
from streams.cli.progress import reporter_for
from streams.cli.signals import interrupted_by_signals
from streams.cli.wiring import Flag, warn_of_unknown_variables
from streams.cluster import Cluster
from streams.config import FoldSettings, KafkaSettings, StateSettings
from streams.control.live import live_agent
from streams.control.rebuild import RebuildCoordinator
from streams.data.agent import Agent
from streams.data.checkpoint import KafkaCheckpointStore, generation_id
from streams.data.files import FILES
from streams.data.generation import StateStore
from streams.data.source import KafkaEventStore
from streams.data.stores import Kind
from streams.errors import ConfigError, RebuildError
from streams.loader import Loader
from streams.resolving import load

__all__ = ["demo"]

_SHOWN_AIRCRAFT = "N14228"
_SHOWN_CHARS = 90
_REDRAW_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the demo measured; the object that `--json` prints."""

    events: int
    models: int
    partitions: int
    live_events_per_second: int
    rebuild_events_per_second: int
    identical: bool
    rebuild_seconds: float


def demo(
    *,
    bootstrap_servers: Annotated[str | None, Parameter(env_var="REFOLD_BOOTSTRAP_SERVERS")] = None,
    partitions: PositiveInt = 4,
    store: Literal["files", "postgres"] = "files",
    dsn: str | None = None,
    json: Flag = False,
) -> None:
    """Fold a year of real flights live, rebuild from the beginning, and compare the two byte for byte.

    Starts a real Kafka on this machine, unless an address is given; there the demo uses a topic and a consumer
    group of its own. Everything it made is removed at the end, also after Ctrl-C.

    Example: refold demo

    Args:
        bootstrap_servers: Your own Kafka, as host:port.
        partitions: Partitions of the topic.
        store: What models are kept in: files (RocksDB), or postgres, for which one is started too.
        dsn: Your own PostgreSQL, as a connection string; a schema of the demo's own is made there.
        json: Print the figures as one JSON object.
    """
    warn_of_unknown_variables()
    console = Console(stderr=True, highlight=False, markup=False)
    with interrupted_by_signals(exit_code=130), ExitStack() as stack:
        client: dict[str, str | int | float | bool] | None = None
        if bootstrap_servers is None:
            client = {}  # what REFOLD_KAFKA says is of the user's own brokers
            with _said(console, "Starting Apache Kafka (the first time fetches about 80 MB) …"):
                broker = stack.enter_context(EmbeddedBroker())
            bootstrap_servers = broker.bootstrap_servers
        kafka = load(KafkaSettings, bootstrap_servers=bootstrap_servers, kafka=client)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="refold-demo-")))
        name = f"refold-demo-{uuid4().hex[:8]}"
        kind = _kind(store, dsn, name.replace("-", "_"), console, stack)
        console.print(f"Kafka at {kafka.bootstrap_servers}, topic and group {name}, state in {directory}")
        figures, model = _run(_Parts(kafka, name, directory, kind), partitions, console, stack)
    if json:
        print(shown(document("demo", asdict(figures))))  # noqa: T201
    else:
        _print(figures, model)
    if not figures.identical:
        raise RebuildError("The rebuilt models differ from the live ones.")


def _kind(store: str, dsn: str | None, schema: str, console: Console, stack: ExitStack) -> Kind:
    """Give what models are kept in; a schema that is made for it is dropped in the end."""
    if store == "files":
        if dsn is not None:
            raise ConfigError("--dsn is for --store postgres: say that too.")
        return FILES
    if dsn is None:
        with _said(console, "Starting PostgreSQL …"):
            dsn = stack.enter_context(EmbeddedPostgres()).dsn
    kind = kind_of(load(StateSettings, store="postgres", dsn=dsn, pg_schema=schema))
    stack.callback(kind.remove_all)
    console.print(f"Models in {kind}")
    return kind


class _Parts:
    """The demo's projection with its topic, group and state."""

    def __init__(self, kafka: KafkaSettings, name: str, directory: Path, kind: Kind) -> None:
        self.name = name
        self.kafka = kafka
        self.cluster = Cluster(kafka)
        self.projection = AircraftLog()
        self.events = KafkaEventStore(name, kafka=kafka)
        self.store = StateStore(directory / generation_id(self.projection.name, self.projection.version), kind)
        self.checkpoints = KafkaCheckpointStore(name, self.events)
        self.settings = load(FoldSettings)

    def remove(self) -> None:
        """Remove the topic and the group."""
        with _uninterrupted():
            self.cluster.delete_topic(self.name)
            self.cluster.delete_group(self.name)

    def models(self) -> dict[str, bytes]:
        """Read all models, as stored."""
        with self.store.reader(self.projection) as reader:
            return dict(reader.raw_items())


def _run(parts: _Parts, partitions: int, console: Console, stack: ExitStack) -> tuple[Figures, dict[str, object]]:
    loader = Loader(parts.kafka, parts.name)
    parts.cluster.topics()  # where nobody answers, that is said before interrupts have to wait
    with _uninterrupted():
        loader.create_topic(partitions)
        stack.callback(parts.remove)
    loaded = _load(loader, console)
    live_rate = _fold_live(parts, loaded, console)
    live = parts.models()
    coordinator = RebuildCoordinator(
        parts.projection,
        parts.events,
        parts.store,
        parts.checkpoints,
        settings=parts.settings,
        reporters=[reporter_for(console)],
    )
    progress = asyncio.run(coordinator.rebuild_from_beginning())
    rebuilt = parts.models()
    figures = Figures(
        events=progress.events_processed,
        models=len(rebuilt),
        partitions=partitions,
        live_events_per_second=round(live_rate),
        rebuild_events_per_second=round(progress.events_per_second),
        identical=rebuilt == live and progress.events_processed == loaded,
        rebuild_seconds=round(progress.elapsed_seconds, 3),
    )
    return figures, orjson.loads(rebuilt[_SHOWN_AIRCRAFT])


def _load(loader: Loader, console: Console) -> int:
    """Write the flights to the topic; give the number of events."""
    columns = (TextColumn("load   "), BarColumn(bar_width=40), TextColumn("{task.completed:>9,} events"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("load", total=None)
        loaded = loader.load(flight_events(), progress=lambda count: bar.update(task, completed=count))
        bar.update(task, total=loaded.records, completed=loaded.records)
    return loaded.records


def _fold_live(parts: _Parts, events: int, console: Console) -> float:
    """Fold as the service would, until the lag is 0; give the events per second."""
    ends = {p: marks.high for p, marks in parts.cluster.watermarks(parts.cluster.topic(parts.name)).items()}
    columns = (
        TextColumn("live   "),
        BarColumn(bar_width=40),
        TextColumn("lag {task.fields[lag]:>9,}  {task.fields[rate]:>9,.0f} events/s"),
    )
    total = sum(ends.values())
    claimed = live_agent(parts.projection, parts.events, parts.store, parts.checkpoints, parts.settings)
    with Progress(*columns, console=console) as bar, claimed as agent:
        started = time.monotonic()
        with _running(agent) as ended:
            task = bar.add_task("live", total=total, lag=total, rate=0.0)
            lag = total
            while lag and not ended.wait(_REDRAW_S):
                folded = agent.status.partitions
                lag = sum(max(0, end - (max(0, folded[p].committed) if p in folded else 0)) for p, end in ends.items())
                rate = agent.status.events / (time.monotonic() - started)
                bar.update(task, completed=total - lag, lag=lag, rate=rate)
        return events / (time.monotonic() - started)


@contextmanager
def _running(agent: Agent) -> Iterator[threading.Event]:
    """Run an agent on a thread for the time of the block; the event is set if it ends by itself."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            agent.run()
        except BaseException as error:  # noqa: BLE001  (raised again by the block's end)
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="refold-agent")
    thread.start()
    try:
        yield ended
    finally:
        with _uninterrupted():
            agent.stop()
            thread.join()
    if failures:
        raise failures[0]


def _short(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} …"


def _print(figures: Figures, shown: dict[str, object]) -> None:
    """Print one aircraft and the figures, for people."""
    aircraft = "\n".join(f"  {name}: {_short(value)}" for name, value in shown.items())
    same = "identical, byte for byte" if figures.identical else "DIFFERENT"
    text = (
        f"Aircraft {_SHOWN_AIRCRAFT}, as rebuilt:\n{aircraft}\n\n"
        f"events            {figures.events:>10,}\n"
        f"models            {figures.models:>10,}\n"
        f"partitions        {figures.partitions:>10,}\n"
        f"folded live       {figures.live_events_per_second:>10,} events/s\n"
        f"rebuilt           {figures.rebuild_events_per_second:>10,} events/s, in {figures.rebuild_seconds:.1f} s\n"
        f"live and rebuilt  {same}"
    )
    print(text)  # noqa: T201


def _said(console: Console, what: str) -> AbstractContextManager[object]:
    """Show what is going on: a spinner on a terminal, a line where there is none."""
    if console.is_terminal:
        return console.status(what)
    console.print(what)
    return nullcontext()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let an interrupt wait for the block's end, so that what it makes or removes is so for certain."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt
