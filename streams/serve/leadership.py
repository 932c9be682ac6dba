"""Who leads: the owner of the commands' one partition. With its credentials, the only module that knows Faust.

Faust keeps the membership in the workers' group and hands over the commands; what they mean is the worker's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import faust
from aiokafka.errors import KafkaError

from streams.cluster import Cluster
from streams.config import KafkaSettings
from streams.errors import BrokerError
from streams.log import get_logger
from streams.serve.credentials import faust_arguments

__all__ = ["Leadership", "commands_topic", "workers_group"]

log = get_logger(__name__)

_SESSION_S = 10
_HEARTBEAT_S = 3
_TOPIC_CONFIG = {"cleanup.policy": "delete", "retention.ms": str(7 * 24 * 3600 * 1000)}
_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 10.0
_STOP_S = 5.0
_ASK_S = 3.0
_PING = b"ping "
_HEARS_WITHIN_S = 15.0

_NOISY = ("aiokafka", "faust", "mode")
"""While no broker answers, they log a hundred lines a second; what matters is told by us."""


def commands_topic(namespace: str) -> str:
    """Name the topic of a fleet's commands."""
    return f"refold.{namespace}.commands"


def workers_group(namespace: str) -> str:
    """Name the consumer group whose members are a fleet's workers."""
    return f"refold.{namespace}.workers"


class Leadership:
    """One worker's part in the election, and its ear for commands.

    Args:
        kafka: The cluster.
        namespace: The fleet's name.
        worker: This worker's name, which no other has.
        heard: Called with each command, in order, while this worker leads; at least once.
    """

    def __init__(
        self, kafka: KafkaSettings, namespace: str, worker: str, heard: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._kafka = kafka
        self._topic = commands_topic(namespace)
        self._group = workers_group(namespace)
        self._worker = worker
        self._heard = heard
        self._cluster = Cluster(kafka).within(_ASK_S)
        self._arguments = faust_arguments(kafka)
        self._app: faust.App | None = None
        self._datadir: tempfile.TemporaryDirectory[str] | None = None
        self._ping = b""
        self._pinged = asyncio.Event()
        self.address = ""
        """Where this worker listens, as it is to tell the group; set before it joins."""
        self.is_leading = False
        """Whether the group has given this worker the commands, as far as it has heard."""
        self.why_not = "it has not joined yet"
        """What keeps it from being a member; "" where it is one."""
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)

    def confirm(self) -> bool:
        """Ask the broker whether this worker leads; from any thread. Where it does not answer, it does not."""
        if not self.is_leading:
            return False
        try:
            members = self._cluster.members(self._group)
        except BrokerError:
            return False
        return any(one.client_id == self._client_id and one.partitions for one in members)

    def addresses(self) -> set[str]:
        """Ask the broker who is in the workers' group, and give where they listen.

        Raises:
            BrokerError: From Kafka.
        """
        members = self._cluster.members(self._group)
        return {address for one in members if (address := one.client_id.partition("@")[2])}

    @property
    def _client_id(self) -> str:
        return f"{self._worker}@{self.address}"

    async def join(self) -> None:
        """Make the topic where there is none, and join; tried again until a broker lets it.

        Cancel it to give up; then `leave`.
        """
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await asyncio.to_thread(self._cluster.create_topic, self._topic, 1, _TOPIC_CONFIG)
                self._app = self._made()
                await self._app.start()
            except (BrokerError, KafkaError, OSError) as error:
                self.why_not = str(error) or type(error).__name__
                log.warning("worker.not_joined", group=self._group, again_in_s=backoff_s, why=self.why_not)
                await self._drop()
                await asyncio.sleep(backoff_s)
                backoff_s = min(_LONGEST_BACKOFF_S, backoff_s * 2)
            else:
                self.why_not = ""
                return

    async def hears(self, send: Callable[[bytes], None], within_s: float = _HEARS_WITHIN_S) -> bool:
        """Say whether commands that are given now are heard here, by giving one that means nothing.

        A client may stop reading without a word, and keep its membership all the same (faust #434, #523, #532).

        Args:
            send: Writes a record to the commands' topic; called on a thread.
            within_s: How long it may take.

        Raises:
            BrokerError: It could not be given.
        """
        token = _PING + secrets.token_hex(8).encode()
        self._pinged = asyncio.Event()
        self._ping = token
        await asyncio.to_thread(send, token)
        try:
            await asyncio.wait_for(self._pinged.wait(), within_s)
        except TimeoutError:
            return not self.is_leading  # another one leads meanwhile, and has heard it
        return True

    async def leave(self) -> None:
        """Leave the group, so that another one leads at once."""
        self.is_leading = False
        await self._drop()

    async def _drop(self) -> None:
        app, self._app = self._app, None
        if app is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(app.stop(), _STOP_S)
        if self._datadir is not None:
            self._datadir.cleanup()
            self._datadir = None

    def _made(self) -> faust.App:
        self._datadir = tempfile.TemporaryDirectory(prefix="refold-worker-")
        app = faust.App(
            self._group,
            env={},  # variables of the environment win over arguments otherwise
            broker_client_id=self._client_id,
            datadir=self._datadir.name,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
            autodiscover=False,
            stream_wait_empty=False,
            broker_session_timeout=_SESSION_S,
            broker_heartbeat_interval=_HEARTBEAT_S,
            consumer_metadata_max_age_ms=10_000,
            value_serializer="raw",
            key_serializer="raw",
            **self._arguments,
        )
        topic = app.topic(self._topic, key_type=bytes, value_type=bytes)

        async def commands(stream: Any) -> None:
            async for value in stream:
                if value.startswith(_PING):
                    if value == self._ping:
                        self._pinged.set()
                    continue
                try:
                    await self._heard(value)
                except Exception:  # what is raised here would lose the agent
                    log.exception("command.failed")

        app.agent(topic, name=self._topic)(commands)
        app.on_partitions_assigned.connect(self._on_assigned)
        app.on_partitions_revoked.connect(self._on_revoked)
        return app

    async def _on_assigned(self, _app: Any, /, *args: Any, **kwargs: Any) -> None:
        assigned = args[0] if args else kwargs["assigned"]
        self._lead(any(one.topic == self._topic for one in assigned))

    async def _on_revoked(self, _app: Any, /, *_args: Any, **_kwargs: Any) -> None:
        self._lead(False)

    def _lead(self, is_leading: bool) -> None:
        if is_leading != self.is_leading:
            log.info("worker.leads" if is_leading else "worker.leads_no_more", worker=self._worker, group=self._group)
        self.is_leading = is_leading
