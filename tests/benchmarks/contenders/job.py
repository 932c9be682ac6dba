"""What a contender's process is given, and what it gives back."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import msgspec

__all__ = ["Clock", "Job", "Outcome", "peak_rss_mb"]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one contender."""

    bootstrap_servers: str
    topic: str
    ends: dict[int, int]
    """The topic's end offset by partition; all begin at 0."""
    group: str
    """A name of this run's own: everything made in Kafka has it in its name."""
    directory: str
    """An empty directory of this run's own."""

    @property
    def events(self) -> int:
        """How many events the topic holds."""
        return sum(self.ends.values())

    def path(self, name: str) -> Path:
        """Give a path below this run's directory."""
        return Path(self.directory) / name


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    events: int
    seconds: float
    rss_mb: float
    """The process's peak resident set up to the end of what is timed, in MiB."""
    digest: str | None = None
    """Of the models, see `workload.digest`; None where the contender has none."""
    models: int = 0
    timed_cpu_seconds: float = 0.0
    """Processor time of all of the process's threads within what is timed; 0.0 where a contender does not say."""
    stages: dict[str, float] = {}
    """By stage, the processor time that it took within that, in seconds; see `refold_stages`."""
    cpu_seconds: float = 0.0
    """Processor time of the whole process from start to exit, reading the models back included; filled in by
    the runner. Where a figure is low, it tells whether the machine was busy with something else."""


class Clock:
    """Begins with what is timed."""

    def __init__(self) -> None:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def outcome(self, events: int) -> Outcome:
        """Give what is known at the end of what is timed."""
        seconds, cpu_seconds = time.perf_counter() - self._began, time.process_time() - self._cpu_began
        return Outcome(events=events, seconds=seconds, timed_cpu_seconds=cpu_seconds, rss_mb=peak_rss_mb())


def peak_rss_mb() -> float:
    """Give this process's peak resident set in MiB (not its parent's, which `getrusage` may report)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
