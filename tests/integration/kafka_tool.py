"""Kafka's own command-line tool for consumer groups, from Maven, as an administrator runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from streams.broker._install import install
from streams.broker._jars import KAFKA_VERSION
from streams.broker._lock import FileLock

_TOOL = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand"
_FETCH_S = 300


def consumer_groups(bootstrap: str, *arguments: str) -> str:
    """Run `kafka-consumer-groups.sh`; give what it prints."""
    installation = install()
    classpath = os.pathsep.join(map(str, [*_jars(installation.directory), *installation.jars]))
    command = [str(installation.java), "-XX:TieredStopAtLevel=1", "-cp", classpath, _TOOL]
    done = subprocess.run(
        [*command, "--bootstrap-server", bootstrap, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _jars(installation: Path) -> list[Path]:
    """The tool's jar beside the broker's, fetched once for all test processes."""
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext
    from jgo.parse import Coordinate

    directory = installation.with_name(f"{installation.name}-tools")
    directory.mkdir(exist_ok=True)
    lock = FileLock(directory / "lock")
    assert lock.acquire(timeout_s=_FETCH_S)
    try:
        jar = directory / f"kafka-tools-{KAFKA_VERSION}.jar"
        if not jar.exists():
            repository = os.environ.get("REFOLD_MAVEN_REPOSITORY") or MAVEN_CENTRAL_URL
            context = MavenContext(
                repo_cache=directory / "downloads", local_repos=[], remote_repos={"maven": repository}
            )
            coordinate = Coordinate("org.apache.kafka", "kafka-tools", KAFKA_VERSION, scope="compile")
            found = context.create_dependency(coordinate).artifact.resolve()
            found.rename(jar)
        return [jar]
    finally:
        lock.release()
