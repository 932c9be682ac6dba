"""Kafka's jars: which, and from where."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from streams.errors import EmbeddedBrokerError
from streams.log import get_logger

__all__ = ["KAFKA_VERSION", "fetch_jars", "is_whole_jar"]

KAFKA_VERSION = "4.4.0"
"""The Apache Kafka that is embedded."""

_COORDINATES = (
    ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION),
    ("org.slf4j", "slf4j-simple", "1.7.36"),  # or Kafka logs nothing; 1.7 is what its slf4j-api is
)

_log = get_logger(__name__)


def is_whole_jar(jar: Path) -> bool:
    """Say whether a jar is a whole zip archive whose checksums are right."""
    try:
        with zipfile.ZipFile(jar) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, ValueError):
        return False


def fetch_jars(target: Path) -> None:
    """Resolve Kafka from the Maven repository, and put its jars into `target`.

    The repository is Maven Central, or what REFOLD_MAVEN_REPOSITORY says. jgo's layers are used rather than
    `jgo.build`, which reads every jar to tell modules from others, and may fetch a second JDK for that.
    """
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.maven import MavenContext
    from jgo.parse import Coordinate

    mirror = os.environ.get("REFOLD_MAVEN_REPOSITORY")
    _log.info("broker.fetching", kafka=KAFKA_VERSION, megabytes=46, into=str(target.parent), note="once per user")
    partial, downloads = target.with_name("jars.partial"), target.with_name("downloads")
    context = MavenContext(repo_cache=downloads, local_repos=[], remote_repos={"maven": mirror or MAVEN_CENTRAL_URL})
    try:
        wanted = [context.create_dependency(Coordinate(*item, scope="compile")) for item in _COORDINATES]
        direct, transitive = context.resolver.resolve(wanted)
        partial.mkdir()
        for dependency in [*direct, *(each for each in transitive if each.scope in ("compile", "runtime"))]:
            jar = dependency.artifact.resolve()
            if not is_whole_jar(jar):
                raise EmbeddedBrokerError(
                    f"{jar.name} was fetched incompletely ({jar.stat().st_size} bytes). Start again to fetch it again."
                )
            jar.rename(partial / jar.name)
    except EmbeddedBrokerError:
        raise
    except Exception as error:  # jgo raises requests' errors, RuntimeError, ValueError, AssertionError and others
        where = "the repository of REFOLD_MAVEN_REPOSITORY" if mirror else "Maven Central"
        raise EmbeddedBrokerError(
            f"Kafka {KAFKA_VERSION} could not be fetched from {where} ({type(error).__name__}), which the "
            "first start needs. Check the network and HTTPS_PROXY, or set REFOLD_MAVEN_REPOSITORY to the URL "
            "of a mirror, and start again; or use a broker of your own: --bootstrap-servers."
        ) from error
    partial.rename(target)
    shutil.rmtree(downloads)
