"""Kafka's own command-line tool for consumer groups, from Maven, as an administrator runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from streams.broker._install import Installation, install
from streams.broker._jars import KAFKA_VERSION
from streams.broker._lock import FileLock

_TOOL = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
_FETCH_S = 300


def consumer_groups(bootstrap: str, *arguments: str) -> str:
    """Run `kafka-consumer-groups.sh`; give what it prints."""
    installation = install()
    classpath = os.pathsep.join(map(str, [*_jars(installation), *installation.jars]))
    command = [str(installation.java), "-XX:TieredStopAtLevel=1", "-cp", classpath, _TOOL]
    done = subprocess.run(
        [*command, "--bootstrap-server", bootstrap, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _jars(installation: Installation) -> list[Path]:
    """The tool's jars beside the broker's, fetched once for all test processes."""
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext
    from jgo.parse import Coordinate

    directory = installation.directory.with_name(f"{installation.directory.name}-tools")
    directory.mkdir(exist_ok=True)
    # What writes its CSV is of the same version as what writes the broker's JSON.
    jackson = next(jar.stem.rpartition("-")[2] for jar in installation.jars if jar.stem.startswith("jackson-databind-"))
    wanted = (
        ("org.apache.kafka", "kafka-tools", KAFKA_VERSION),
        ("com.fasterxml.jackson.dataformat", "jackson-dataformat-csv", jackson),
    )
    lock = FileLock(directory / "lock")
    assert lock.acquire(timeout_s=_FETCH_S)
    try:
        jars = [directory / f"{artifact}-{version}.jar" for _, artifact, version in wanted]
        for jar, coordinate in zip(jars, wanted, strict=True):
            if not jar.exists():
                repository = os.environ.get("REFOLD_MAVEN_REPOSITORY") or MAVEN_CENTRAL_URL
                context = MavenContext(
                    repo_cache=directory / "downloads", local_repos=[], remote_repos={"maven": repository}
                )
                found = context.create_dependency(Coordinate(*coordinate, scope="compile")).artifact.resolve()
                found.rename(jar)
        return jars
    finally:
        lock.release()
