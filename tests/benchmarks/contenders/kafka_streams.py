"""Kafka Streams: the small Java program in `kafka_streams/`, built by Maven where `mvn` exists.

One processor with a RocksDB store, its cache (64 MiB, as refold has) and its changelog; two threads,
at-least-once, Jackson's streaming parser, the parallel collector, larger batches than the defaults,
commits every 30 s (its default) and at each partition's end. Timed in the JVM from the first event folded
until the offsets are committed, so that starting Java is not counted, and nor is joining the group.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson

from tests.benchmarks.contenders.job import Job, Outcome
from tests.benchmarks.workload import Model, digest

__all__ = ["run", "unavailable"]

_PROJECT = Path(__file__).parents[1] / "kafka_streams"
_BUILD_TIMEOUT_S = 600
_JVM = (
    "-Xms1g",
    "-Xmx1g",
    "-XX:+UseParallelGC",
)  # 13 s of CPU a million events, against 17 s with the default G1
_built: list[str | None] = []


def unavailable() -> str | None:
    """Build the program, once in a process; say so where that cannot be done."""
    if not _built:
        _built.append(_build())
    return _built[0]


def run(job: Job) -> Outcome:
    """Run the program once and read what it wrote."""
    classpath = os.pathsep.join((str(_PROJECT / "target" / "classes"), str(_PROJECT / "target" / "lib" / "*")))
    program = [_java(), *_JVM, "-cp", classpath, "refold.bench.Main"]
    ends = [f"{partition}={end}" for partition, end in job.ends.items()]
    subprocess.run(
        [*program, job.bootstrap_servers, job.topic, job.group, job.directory, *ends],
        check=True,
    )
    seconds, rss_kb = job.path("figures.txt").read_text().split()
    sha, count = digest(_models(job))
    return Outcome(
        events=job.events,
        seconds=float(seconds),
        rss_mb=round(int(rss_kb) / 1024, 1),
        digest=sha,
        models=count,
    )


def _build() -> str | None:
    if shutil.which("mvn") is None:
        return "mvn is not installed"
    target = _PROJECT / "target"
    target.mkdir(exist_ok=True)
    with (target / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two benchmarks at once must not build into one directory
        stamp = target / "built"
        sources = [_PROJECT / "pom.xml", *_PROJECT.glob("src/**/*.java")]
        if stamp.exists() and all(source.stat().st_mtime < stamp.stat().st_mtime for source in sources):
            return None
        print("  building kafka_streams with Maven", file=sys.stderr, flush=True)
        try:
            done = subprocess.run(
                ["mvn", "-q", "-B", "package"],
                cwd=_PROJECT,
                stdout=subprocess.DEVNULL,  # it names repository hosts
                stderr=subprocess.DEVNULL,
                timeout=_BUILD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"`mvn package` in tests/benchmarks/kafka_streams took over {_BUILD_TIMEOUT_S} s"
        if done.returncode:
            return f"`mvn package` in tests/benchmarks/kafka_streams failed with exit status {done.returncode}"
        stamp.touch()
        return None


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    return str(Path(home) / "bin" / "java") if home else "java"


def _models(job: Job) -> Iterator[tuple[str, Model]]:
    with job.path("models.tsv").open("rb") as lines:
        for line in lines:
            key, _, model = line.rstrip(b"\n").partition(b"\t")
            yield key.decode(), orjson.loads(model)
