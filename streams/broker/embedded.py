"""A real single-node Kafka that lives as long as its owner."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from streams.broker._config import Setting, check_settings, properties
from streams.broker._datadir import DataDir
from streams.broker._install import READY, Installation, install
from streams.broker._jars import KAFKA_VERSION
from streams.broker._ports import HOST, free_ports, wait_free
from streams.broker._process import WatchedProcess
from streams.errors import ConfigError, EmbeddedBrokerError
from streams.log import get_logger

__all__ = ["EmbeddedBroker"]

_PORT_TRIES = 5
_PORT_WAIT_S = 5.0

_PORT_TAKEN = re.compile(r"Address already in use|Socket server failed to bind|BindException")
_CLASSES_GONE = re.compile(
    r"NoClassDefFoundError|ClassNotFoundException|Could not find or load main class|zip END header"
    r"|ZipException|Error opening zip|Invalid or corrupt jarfile|ClassFormatError|UnsatisfiedLinkError"
)

_log = get_logger(__name__)


class EmbeddedBroker:
    """One Kafka broker and controller, in a JVM of its own, on 127.0.0.1.

    The JVM ends with this object's process, however that ends. Not for use by several threads at once.

    Args:
        data_dir: Where topics are kept, from one start to the next; one broker at a time has it. None: a
            temporary directory, removed by `stop` or, if this process is killed, right after.
        port: For clients. None: a free one is chosen, once, and kept over `restart`.
        settings: Kafka's broker settings, over the defaults for tests (see `_config.py`).
        start_timeout_s: How long a start may take, once Kafka is installed.
        stop_timeout_s: How long Kafka may take to close its files before it is killed.

    Raises:
        ConfigError: Settings or a port that cannot be.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        port: int | None = None,
        settings: Mapping[str, Setting] | None = None,
        *,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 15.0,
    ) -> None:
        if port is not None and not 0 < port < 65_536:
            raise ConfigError(f"A port is a number from 1 to 65535 (got {port}). Leave it out to have one chosen.")
        check_settings(settings or {})
        self._given_dir = None if data_dir is None else Path(data_dir).expanduser().resolve()
        self._settings = dict(settings or {})
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._port = port
        self._port_is_ours = port is None
        self._data: DataDir | None = None
        self._process: WatchedProcess | None = None

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:port`, from the first start on, also while it is down."""
        if self._port is None:
            raise EmbeddedBrokerError("The embedded broker has no address before its first start. Call start().")
        return f"{HOST}:{self._port}"

    @property
    def data_dir(self) -> Path:
        """Where its files are: `log/` (Kafka's own), `broker.log`, `server.properties`."""
        if self._data is None:
            raise EmbeddedBrokerError("The embedded broker has no data directory while it is stopped. Call start().")
        return self._data.path

    @property
    def pid(self) -> int:
        """The JVM's process id."""
        if self._process is None:
            raise EmbeddedBrokerError("The embedded broker is not running. Call start() or restart().")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the JVM runs; True also while it is paused."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 30) -> str:
        """Give the end of the JVM's log since its last start; empty when there is none."""
        return "" if self._data is None else "\n".join(self._data.read_log().splitlines()[-lines:])

    def check(self) -> None:
        """Do nothing while the broker runs.

        Raises:
            EmbeddedBrokerError: It died by itself; with its exit code and the tail of its log.
        """
        if not self.running:
            raise self._failed("is not running" if self._process is None else "died")

    def start(self) -> EmbeddedBroker:
        """Start it and wait until it serves. Harmless when it runs.

        1. Install Kafka, if this user has not yet.
        2. Lock the data directory, and format it if it is new.
        3. Start the JVM and wait for its word that it serves. Once more if a port of our choice was taken
           meanwhile, or if the installation turned out to be damaged and could be made anew.

        Raises:
            EmbeddedBrokerError: With the tail of Kafka's log where there is one. Nothing is left running.
        """
        if self.running:
            return self
        started = time.monotonic()
        installation = install()  # Step 1
        try:
            if self._data is None:
                self._data = DataDir.take(self._given_dir)  # Step 2
            if not self._data.log_dir.exists():
                installation.format(self._data.log_dir)
            self._serve(installation, self._data)  # Step 3
        except BaseException:
            self.stop()
            raise
        _log.info(
            "broker.started",
            bootstrap_servers=self.bootstrap_servers,
            pid=self.pid,
            seconds=round(time.monotonic() - started, 1),
        )
        return self

    def stop(self, *, keep_data: bool = False) -> None:
        """Stop it cleanly; kill it if that takes longer than `stop_timeout_s`. Harmless when it is stopped.

        Args:
            keep_data: Leave a temporary directory for `restart`, until the last `stop`.
        """
        self._end(cleanly=True)
        if self._data is not None and not keep_data:
            data, self._data = self._data, None
            data.release()

    def kill(self) -> None:
        """Kill it with SIGKILL. Its data stays, for `restart` or `stop`. Harmless when it is stopped."""
        self._end(cleanly=False)

    def restart(self) -> None:
        """Start it again, with the same port and data; stop it cleanly before if it runs.

        Raises:
            EmbeddedBrokerError: As `start`; or its temporary data went with `stop`.
        """
        if self._data is None and self._given_dir is None:
            raise EmbeddedBrokerError(
                "The embedded broker's temporary data is gone, so it cannot be restarted. "
                "Use kill() or stop(keep_data=True) before restart(), or give a data_dir."
            )
        self._end(cleanly=True)
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nobody answers."""
        if self._process is not None:
            self._process.send("stop")

    def resume(self) -> None:
        """Let it go on after `pause`."""
        if self._process is not None:
            self._process.send("continue")

    def __enter__(self) -> EmbeddedBroker:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, *, cleanly: bool) -> None:
        """End the JVM, and keep the data and the lock on them."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if cleanly and process.poll() is None:
                process.send("continue")  # a paused JVM would not see the next one
                process.send("terminate")
                if not process.wait(self._stop_timeout_s):
                    _log.warning("broker.stop_too_slow", killed_after_s=self._stop_timeout_s, pid=process.pid)
        finally:
            process.close()

    def _serve(self, installation: Installation, data: DataDir) -> None:
        """Start the JVM until it serves, with the second chances that there are."""
        port_tries, repaired = 0, False
        while True:
            self._launch(installation, data)
            problem = self._wait_ready(data)
            if problem is None:
                return
            log = data.read_log()
            failure = self._failed(problem)
            crashed = self._process is not None and (self._process.poll() or 0) > 128  # by a signal
            self._end(cleanly=False)
            if _PORT_TAKEN.search(log):
                port_tries += 1
                if port_tries < _PORT_TRIES:  # ours: another; the user's: _launch says that it is taken
                    continue
            elif not repaired and (
                installation.discard_if_damaged()
                if _CLASSES_GONE.search(log)
                else crashed and installation.forget_aot_cache()
            ):
                repaired = True
                installation = install()
                continue
            if _CLASSES_GONE.search(log):
                raise EmbeddedBrokerError(
                    f"Kafka's installation is damaged. Remove {installation.directory} and start again.\n{failure}"
                ) from failure
            raise failure

    def _launch(self, installation: Installation, data: DataDir) -> None:
        """Start the JVM on free ports."""
        if self._port is not None and not wait_free(self._port, timeout_s=_PORT_WAIT_S if self._port_is_ours else 0):
            raise EmbeddedBrokerError(
                f"Port {self._port} on {HOST} is taken by another process, so no broker can listen there. "
                f"See who has it (lsof -i :{self._port}), give another --port, or none to have one chosen."
            )
        port, controller_port = free_ports(2)
        settings = data.path / "server.properties"
        settings.write_text(properties(data.log_dir, self._port or port, controller_port, self._settings))
        data.begin_log()
        self._process = WatchedProcess(
            installation.broker_command(settings),
            log=data.log,
            directory=data.path,
            lock_fd=data.lock_fd,
            remove=data.path if data.temporary else None,
        )
        self._candidate = self._port or port

    def _wait_ready(self, data: DataDir) -> str | None:
        """Wait until the broker serves; otherwise say what it did instead."""
        assert self._process is not None
        deadline = time.monotonic() + self._start_timeout_s
        while READY not in data.read_log():
            if self._process.poll() is not None:
                return "died at its start"
            if time.monotonic() >= deadline:
                return f"was not ready within {self._start_timeout_s:g} s"
            time.sleep(0.02)
        self._port = self._candidate
        return None

    def _failed(self, what: str) -> EmbeddedBrokerError:
        code = None if self._process is None else self._process.poll()
        exit_code = "" if code is None else f" with exit code {code}"
        address = f" at {HOST}:{self._port}" if self._port else ""
        kept = f" Its whole log: {self._data.log}." if self._data and not self._data.temporary else ""
        return EmbeddedBrokerError(
            f"The embedded Kafka {KAFKA_VERSION}{address} {what}{exit_code}.{kept} The end of its log:\n"
            f"{self.log_tail() or '(it logged nothing)'}"
        )
