"""`refold run`: fold a topic until stopped."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from rich.console import Console

from streams.cli.parts import naming_commands
from streams.cli.signals import Stop, drained_by_signals
from streams.cli.view import shown_while
from streams.cli.wiring import Flag, ProjectionName, RunOptions
from streams.control.bring_up import bring_up
from streams.control.running import Running
from streams.data.runner import ThreadRunner
from streams.data.supervisor import supervised
from streams.log import get_logger

__all__ = ["run"]

log = get_logger(__name__)


def run(
    projection: ProjectionName,
    /,
    options: RunOptions = RunOptions(),  # noqa: B008 - frozen
    *,
    adopt: Flag = False,
    workers: PositiveInt = 1,
    report_seconds: PositiveFloat = 5.0,
    verbose: Annotated[bool, Parameter(name=("--verbose", "-v"), negative=())] = False,
) -> None:
    """Fold a topic into read models, from where the state is, until stopped.

    What is folded is the generation that the registry calls active. After a switch the new one is, where this process
    has its code, and the old one for as long as it is kept.

    On a terminal it shows how far the whole group is; elsewhere it logs that. SIGTERM and SIGINT end it cleanly: the
    event at hand is finished, everything is committed, the consumer group is left, and the exit code is 0.

    Example: refold run aircraft-log --topic flights

    Args:
        projection: What to fold.
        options: Topic, state and codec.
        adopt: Take on the state of changed code, stating that the change does not alter the fold.
        workers: How many processes fold each generation, sharing the topic's partitions.
        report_seconds: How often to log events, rate and lag, where no terminal shows them.
        verbose: Show each partition too, on a terminal.
    """
    stop = Stop()
    with naming_commands(projection), drained_by_signals(stop.ask, exit_code=0):
        wired = options.wire(projection)
        site = wired.site()
        # What fills a topic of its own is a process beside the one that folds it.
        make_runner = supervised(workers) if workers > 1 or site.is_repartitioned else ThreadRunner
        if adopt or wired.settings.on_change == "adopt":
            adopt = True
        elif not bring_up(site, workers, rebuilds=wired.settings.on_change == "rebuild", stop=stop):
            return
        with Running(site, make_runner, adopt=adopt) as running:
            stop.to(running.stop)
            log.info(
                "run.started",
                projection=wired.projection.name,
                topic=wired.events.topic,
                group=running.job.group,
                state=str(running.job.build.root),
            )
            console = Console(stderr=True, highlight=False, markup=False)
            if console.is_terminal:
                console.print(
                    f"{wired.projection.name} from topic {wired.events.topic}, group {running.job.group}, "
                    f"state in {running.job.build.root}. Ctrl-C stops it.",
                    soft_wrap=True,
                    highlight=False,
                )
            with shown_while(running, wired.events.cluster, console, every_s=report_seconds, verbose=verbose):
                running.run()
    status = running.status
    if console.is_terminal:
        console.print(f"Stopped after {status.events:,} events.", highlight=False)
    log.info(
        "run.stopped",
        events=status.events,
        positions={p: one.committed for p, one in status.partitions.items()},
    )
