"""What `refold run` shows of a group: a live view on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streams.cli.output import duration
from streams.cli.partitions import partitions_table
from streams.cluster import Cluster
from streams.control.status import GroupView, view_group
from streams.data.agent import AgentStatus, Job
from streams.data.locks import peek_all
from streams.data.partition import Phase
from streams.errors import BrokerError
from streams.log import get_logger

__all__ = ["RunView", "drawn", "percent", "shown_while"]

log = get_logger(__name__)

_LOOK_S = 1.0
_ANSWER_S = 3.0
_JOIN_S = 1.0
_WINDOW_S = 5.0
_BAR_WIDTH = 30


class Folds(Protocol):
    """What is shown: an agent, or whatever runs some."""

    @property
    def job(self) -> Job:
        """What is folded into what."""
        ...

    @property
    def status(self) -> AgentStatus:
        """The figures as of now."""
        ...


@contextmanager
def shown_while(agent: Folds, cluster: Cluster, console: Console, *, every_s: float, verbose: bool) -> Iterator[None]:
    """Show how a group is getting on while the block runs, from a thread of its own.

    Args:
        agent: The member that this process is.
        cluster: Kafka.
        console: Where to draw, where that is a terminal; otherwise lines are logged.
        every_s: How often to log them.
        verbose: Draw each partition too.
    """
    view = RunView(agent, cluster.within(_ANSWER_S))
    ended = threading.Event()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def work() -> None:
                while not ended.is_set():
                    view.look()
                    live.update(view.render(verbose=verbose), refresh=True)
                    ended.wait(_LOOK_S)

            with _running(work, ended):
                yield
    else:

        def work() -> None:
            view.look()  # what the first rate is since
            while not ended.wait(every_s):
                view.look()
                view.log()

        with _running(work, ended):
            yield


@contextmanager
def _running(work: Any, ended: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work, name="refold-view", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_JOIN_S)


class RunView:
    """A group as one of its members sees it, again and again.

    Args:
        agent: The member.
        cluster: Kafka.
    """

    def __init__(self, agent: Folds, cluster: Cluster) -> None:
        self._agent = agent
        self._cluster = cluster
        self._window: deque[tuple[float, int, int]] = deque()
        self.group: GroupView | None = None
        """As seen last; None before the first look, and while nobody answers."""
        self.status = AgentStatus()
        """The member, likewise."""
        self.trouble = ""
        """Why the group cannot be seen."""

    def look(self) -> None:
        """Look at the group."""
        job = self._agent.job
        self.status = self._agent.status
        filled_by = job.repartition
        try:
            self.group = view_group(
                self._cluster,
                job.topic,
                job.group,
                build=job.build,
                agent=self.status,
                live=peek_all(job.build.path / "folding"),
                filling=None if filled_by is None else (filled_by.topic, filled_by.group),
            )
            self.trouble = ""
        except BrokerError as error:
            self.group, self.trouble = None, str(error)
            return
        self._window.append((time.monotonic(), self.group.done, sum(one.events for one in self.group.partitions)))
        while self._window[-1][0] - self._window[0][0] > _WINDOW_S:
            self._window.popleft()

    def rates(self) -> tuple[float, float]:
        """Give events and offsets a second, of the whole group, over the last seconds."""
        if len(self._window) < 2:
            return 0.0, 0.0
        (then, done_then, events_then), (now, done, events) = self._window[0], self._window[-1]
        return max(0, events - events_then) / (now - then), max(0, done - done_then) / (now - then)

    def waiting(self) -> str:
        """Say what keeps this process, or the group, from folding; "" where nothing does."""
        if self.trouble:
            return self.trouble
        if self.status.away_s:
            return f"waiting for a broker to answer; none has for {duration(self.status.away_s)}"
        if self.group is not None and self.group.gone:
            pids = ", ".join(str(one.pid) for one in self.group.gone)
            limit_s = self._agent.job.settings.session_timeout_s
            return f"waiting up to {limit_s:g} s for the killed member's session to end (process {pids})"
        if not self.status.partitions:
            others = 0 if self.group is None else sum(1 for one in self.group.members if one.partitions)
            return f"standing by: {others} other members hold all partitions" if others else "joining the group"
        return ""

    def troubles(self) -> list[str]:
        """Say which partitions are not folded, and why."""
        topic = self._agent.job.topic.name
        views = () if self.group is None else self.group.partitions
        found = [f"{topic}[{one.partition}] {one.phase}: {one.why}" for one in views if one.why]
        filling = None if self.group is None else self.group.filling
        views = () if filling is None else filling.partitions
        topic = "" if filling is None else filling.topic
        return [*found, *(f"{topic}[{one.partition}] {one.phase}: {one.why}" for one in views if one.why)]

    def render(self, *, verbose: bool) -> RenderableType:
        """Draw it: a bar, figures, and what is the matter."""
        parts: list[RenderableType] = []
        if self.group is not None and self.status.partitions:
            parts.append(drawn(self.group.done, self.group.total, self._figures(self.group)))
        parts += [Text(waiting, style="yellow") for waiting in (self.waiting(),) if waiting]
        parts += [Text(trouble, style="red") for trouble in self.troubles()]
        if verbose and self.group is not None:
            parts.append(partitions_table(self.group))
        return Group(*parts)

    def _figures(self, group: GroupView) -> list[str]:
        events_rate, offsets_rate = self.rates()
        seconds = group.lag_seconds()
        old = f", {duration(seconds)}" if group.lag and seconds is not None else ""
        eta = duration(group.lag / offsets_rate) if group.lag and offsets_rate else "-"
        return [
            f"{events_rate:,.0f} events/s",
            f"lag {group.lag:,} records{old}",
            f"ETA {eta}",
            f"{sum(one.models for one in group.partitions):,} models",
        ]

    def log(self) -> None:
        """Log it as one line."""
        if self.group is None:
            log.warning("run.lag_unknown", why=self.trouble)
            return
        facts: dict[str, Any] = {
            "events": self.status.events,
            "events_per_second": round(self.rates()[0]),
            "models": self.status.models,
            "partitions": sorted(self.status.partitions),
        }
        for phase in (Phase.OPENING, Phase.RESTORING, Phase.STALLED, Phase.HALTED):
            found = {number: one.why for number, one in self.status.partitions.items() if one.phase is phase}
            if found:
                facts[str(phase)] = found
        waiting = self.waiting()
        if self.status.partitions:
            facts["lag_records"] = self.group.lag
            facts["lag_seconds"] = self.group.lag_seconds()
        log.info("run.status", **facts, **({"waiting": waiting} if waiting else {}))


def drawn(done: int, total: int, figures: Iterable[str]) -> RenderableType:
    """Draw a bar with its percentage and sum, and figures below it; it fits into 80 columns.

    Args:
        done: Offsets that are done.
        total: Of so many; 0 is all done.
        figures: What else there is to say.
    """
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_row(
        ProgressBar(total=max(1, total), completed=done if total else 1, width=_BAR_WIDTH),
        percent(done, total),
        f"{done:,} of {total:,}",
    )
    return Group(bar, Text("   ".join(figures)))


def percent(done: int, total: int) -> str:
    """Write a percentage, rounded down: 100.0 % is written only when it is true."""
    tenths = 1000 * done // total if total else 1000
    return f"{tenths // 10:3d}.{tenths % 10} %"
