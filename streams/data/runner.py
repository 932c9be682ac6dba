"""Where an agent runs: the seam, and a thread of this process. A process of its own is `ProcessRunner`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeAlias

from streams.data.agent import Agent, AgentStatus
from streams.data.job import AnyJob, Hold, Job
from streams.data.repartition import Repartitioner

__all__ = ["MakeRunner", "Runner", "ThreadRunner"]


class Runner(Protocol):
    """Runs one agent once. Every method may be called from any thread."""

    @property
    def status(self) -> AgentStatus:
        """The agent's figures, a moment old at most; after its end the last ones."""
        ...

    def start(self) -> None:
        """Start the agent; once.

        Raises:
            ConfigError: The job cannot be given to where the agent is to run.
        """
        ...

    def stop(self, *, stays: bool = False) -> None:
        """Ask the agent to end; see `Agent.stop`. Also before `start`, and more than once."""
        ...

    def renice(self, nice: int) -> None:
        """Go on with another priority; where it runs in this process, it keeps that of this process."""
        ...

    def hold(self, wish: Hold | None) -> None:
        """Write nothing more for a moment, or go on, where it is a `Repartitioner`."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Wait for the agent's end, at most so long; say whether it has ended."""
        ...

    def result(self) -> AgentStatus:
        """Give the last status of an agent that has ended.

        Raises:
            Whatever `Agent.run` raised.
            AgentDied: The agent's process died; the message says how.
        """
        ...


MakeRunner: TypeAlias = Callable[[AnyJob], Runner]


class ThreadRunner:
    """Runs an agent on a thread of its own in this process."""

    def __init__(self, job: AnyJob) -> None:
        self._agent = Agent(job) if isinstance(job, Job) else Repartitioner(job)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="refold-agent")

    @property
    def status(self) -> AgentStatus:
        """See Runner."""
        return self._agent.status

    def start(self) -> None:
        """See Runner."""
        self._thread.start()

    def stop(self, *, stays: bool = False) -> None:
        """See Runner."""
        self._agent.stop(stays=stays)

    def renice(self, nice: int) -> None:
        """See Runner."""

    def hold(self, wish: Hold | None) -> None:
        """See Runner."""
        if isinstance(self._agent, Repartitioner):
            self._agent.hold(wish)

    def wait(self, timeout_s: float) -> bool:
        """See Runner."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def result(self) -> AgentStatus:
        """See Runner."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._agent.status

    def _run(self) -> None:
        try:
            self._agent.run()
        except BaseException as error:  # noqa: BLE001  (raised again by `result`)
            self._error = error
