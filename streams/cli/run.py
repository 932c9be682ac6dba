"""`refold run`: fold a topic until stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from cyclopts import Parameter

from streams.cli.signals import Stop, drained_by_signals
from streams.cli.wiring import FoldOptions, ProjectionName
from streams.cluster import Cluster
from streams.control.live import live_agent
from streams.data.agent import Agent, AgentStatus
from streams.data.partition import Phase
from streams.errors import CqrsError
from streams.log import get_logger

__all__ = ["run"]

log = get_logger(__name__)

_JOIN_S = 1.0


def run(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    adopt: Annotated[bool, Parameter(negative=())] = False,
    report_seconds: float = 5.0,
) -> None:
    """Fold a topic into read models, from where the state is, until stopped.

    SIGTERM and SIGINT end it cleanly: the event at hand is finished, everything is committed, the consumer
    group is left, and the exit code is 0.

    Example: refold run aircraft-log --topic flights

    Args:
        projection: What to fold.
        options: Topic, state and codec.
        adopt: Take on the state of changed code, stating that the change does not alter the fold.
        report_seconds: How often to log events, rate and lag.
    """
    stop = Stop()
    with drained_by_signals(stop.ask, exit_code=0):
        wired = options.wire(projection)
        with live_agent(
            wired.projection,
            wired.events,
            wired.store,
            wired.checkpoints,
            wired.settings,
            adopt=adopt,
            allow_incomplete=wired.allow_incomplete,
        ) as agent:
            log.info(
                "run.started",
                projection=wired.projection.name,
                topic=wired.events.topic,
                group=wired.checkpoints.group,
                state=str(wired.store.directory),
            )
            stop.to(agent.stop)
            with _reporting(agent, wired.events.cluster, wired.events.topic, report_seconds):
                agent.run()
    status = agent.status
    log.info(
        "run.stopped",
        events=status.events,
        positions={p: one.committed for p, one in status.partitions.items()},
    )


@contextmanager
def _reporting(agent: Agent, cluster: Cluster, topic: str, every_s: float) -> Iterator[None]:
    """Log events, rate and lag now and then, from a thread of its own."""
    ended = threading.Event()

    def report() -> None:
        events = 0
        while not ended.wait(every_s):
            status = agent.status
            try:
                ends = {p: marks.high for p, marks in cluster.watermarks(cluster.topic(topic)).items()}
            except CqrsError as error:
                log.warning("run.lag_unknown", why=str(error))
                continue
            lag = sum(max(0, ends[p] - max(0, one.committed)) for p, one in status.partitions.items() if p in ends)
            log.info(
                "run.status",
                events=status.events,
                events_per_second=round((status.events - events) / every_s),
                models=status.models,
                partitions=sorted(status.partitions),
                **_troubles(status),
                lag_records=lag,
            )
            events = status.events

    thread = threading.Thread(target=report, name="refold-report", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_JOIN_S)


def _troubles(status: AgentStatus) -> dict[str, dict[int, str]]:
    """Name the partitions that are not folded, by phase."""
    found: dict[str, dict[int, str]] = {}
    for number, one in sorted(status.partitions.items()):
        if one.phase is not Phase.READY:
            found.setdefault(str(one.phase), {})[number] = one.why
    return found
