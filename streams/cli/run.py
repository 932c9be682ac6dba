"""`refold run`: fold a topic until stopped."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat
from rich.console import Console

from streams.cli.parts import naming_commands
from streams.cli.signals import Stop, drained_by_signals
from streams.cli.view import shown_while
from streams.cli.wiring import Flag, FoldOptions, ProjectionName
from streams.control.live import live_agent
from streams.log import get_logger

__all__ = ["run"]

log = get_logger(__name__)


def run(
    projection: ProjectionName,
    /,
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    *,
    adopt: Flag = False,
    report_seconds: PositiveFloat = 5.0,
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), negative=())] = False,
) -> None:
    """Fold a topic into read models, from where the state is, until stopped.

    On a terminal it shows how far the whole group is; elsewhere it logs that. SIGTERM and SIGINT end it cleanly: the
    event at hand is finished, everything is committed, the consumer group is left, and the exit code is 0.

    Example: refold run aircraft-log --topic flights

    Args:
        projection: What to fold.
        options: Topic, state and codec.
        adopt: Take on the state of changed code, stating that the change does not alter the fold.
        report_seconds: How often to log events, rate and lag, where no terminal shows them.
        verbose: Show each partition too, on a terminal.
    """
    stop = Stop()
    with naming_commands(projection), drained_by_signals(stop.ask, exit_code=0):
        wired = options.wire(projection)
        with live_agent(
            wired.projection,
            wired.events,
            wired.store,
            wired.checkpoints,
            wired.settings,
            adopt=adopt,
            allow_incomplete=wired.allow_incomplete,
            generation=wired.place.generation,
        ) as agent:
            wired.note()
            log.info(
                "run.started",
                projection=wired.projection.name,
                topic=wired.events.topic,
                group=wired.checkpoints.group,
                state=str(wired.store.directory),
            )
            stop.to(agent.stop)
            console = Console(stderr=True, highlight=False, markup=False)
            if console.is_terminal:
                console.print(
                    f"{wired.projection.name} from topic {wired.events.topic}, group {wired.checkpoints.group}, "
                    f"state in {wired.store.directory}. Ctrl-C stops it.",
                    soft_wrap=True,
                    highlight=False,
                )
            with shown_while(agent, wired.events.cluster, console, every_s=report_seconds, verbose=verbose):
                agent.run()
    status = agent.status
    if console.is_terminal:
        console.print(f"Stopped after {status.events:,} events.", highlight=False)
    log.info(
        "run.stopped",
        events=status.events,
        positions={p: one.committed for p, one in status.partitions.items()},
    )
