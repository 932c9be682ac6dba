"""`refold worker`: Refold as a service."""

from __future__ import annotations

import asyncio
import os
import threading

from streams.cli.signals import drained_by_signals
from streams.cli.wiring import WorkerOptions
from streams.config import KafkaSettings, WorkerSettings
from streams.control.site import Site
from streams.errors import ConfigError
from streams.log import get_logger

__all__ = ["worker"]

log = get_logger(__name__)

_LAST_WORD_S = 5.0
"""How much longer than its agents a worker may take to end."""


def worker(
    options: WorkerOptions = WorkerOptions(),  # noqa: B008 - frozen
    *,
    projections: str | None = None,
) -> None:
    """Fold, rebuild, watch and serve all projections of a service, with other workers, until stopped.

    Each worker folds the partitions that the groups give it, of those generations whose code it has, and keeps its own
    copies of their models. One of them leads: it takes rebuilds from step to step. SIGTERM and SIGINT end it cleanly:
    it is not ready any more, agents commit and leave, and the exit code is 0.

    Example: refold worker --projections orders,customers --http-port 8080

    Args:
        options: Topic, state, and how it presents itself.
        projections: Those that refold.toml names, shipped ones, or module:Class, with commas between; by default all
            that refold.toml names.
    """
    from streams.serve.worker import Worker

    file = options.file()
    names = [name.strip() for name in projections.split(",")] if projections is not None else list(file.projections)
    if not names or "" in names:
        raise ConfigError(
            "No projections: name them (--projections NAME,…), or have refold.toml name them ([projections.NAME])."
        )
    kafka, settings = options.settings(file, KafkaSettings, WorkerSettings)
    sites = [options.wire(name).site() for name in names]
    _check_apart(sites)
    with_time = settings.drain_seconds + _LAST_WORD_S

    async def work() -> None:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        with drained_by_signals(lambda: _ask(loop, stopped), exit_code=0, within_s=with_time):
            await Worker(sites, kafka, settings).run(stopped)
        _end_within(_LAST_WORD_S)

    asyncio.run(work())


def _end_within(seconds: float) -> None:
    """End the process where its event loop does not: all is done, and a client that was stopped as it started may leave
    tasks behind that heed no cancellation.
    """
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()


def _ask(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    loop.call_soon_threadsafe(stopped.set)


def _check_apart(sites: list[Site]) -> None:
    names = [site.name for site in sites]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"Projections are named twice: {', '.join(twice)}.")
    groups = [site.group for site in sites if site.group is not None]
    for group in sorted({group for group in groups if groups.count(group) > 1}):
        sharing = " and ".join(site.name for site in sites if site.group == group)
        raise ConfigError(
            f"{sharing} are given one group, {group!r}, and a group is of one projection. Leave --group out, or have "
            "refold.toml name one for each."
        )
