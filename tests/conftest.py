"""What tests share: one real broker for the session, and fresh topics and groups on it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Protocol

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from streams.broker import EmbeddedBroker
from streams.broker.postgres import EmbeddedPostgres

TOPIC_TIMEOUT_S = 30.0
LOOK_TIMEOUT_S = 10.0


class TopicFactory(Protocol):
    """Makes a topic of a fresh name, and gives the name. It is deleted after the test."""

    def __call__(self, partitions: int = 1, config: Mapping[str, str] | None = None) -> str: ...


class GroupFactory(Protocol):
    """Gives a consumer group's name that nobody has used."""

    def __call__(self, prefix: str = "group") -> str: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("refold")
    group.addoption(
        "--bootstrap-servers",
        default=os.environ.get("REFOLD_TEST_BOOTSTRAP_SERVERS"),
        metavar="HOST:PORT",
        help="the Kafka to test against; default: REFOLD_TEST_BOOTSTRAP_SERVERS, else an embedded broker",
    )


@pytest.fixture(scope="session")
def bootstrap_servers(request: pytest.FixtureRequest) -> Iterator[str]:
    """A real broker's address. No broker is a failure, never a skip."""
    given = request.config.getoption("--bootstrap-servers")
    if given:
        AdminClient({"bootstrap.servers": given}).list_topics(timeout=LOOK_TIMEOUT_S)
        yield given
        return
    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session")
def database() -> Iterator[EmbeddedPostgres]:
    """A real PostgreSQL; tests use a schema each."""
    with EmbeddedPostgres() as started:
        yield started


@pytest.fixture(scope="session")
def admin(bootstrap_servers: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap_servers})


@pytest.fixture
def topic(admin: AdminClient, request: pytest.FixtureRequest) -> Iterator[TopicFactory]:
    made: list[str] = []

    def make(partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
        name = f"{request.node.originalname[:100]}-{uuid.uuid4().hex[:12]}"
        new = NewTopic(name, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        deadline = time.monotonic() + TOPIC_TIMEOUT_S
        while True:
            try:
                admin.create_topics([new])[name].result(TOPIC_TIMEOUT_S)
            except KafkaException as error:
                # A machine that stands still for seconds has the broker's own controller take it for dead.
                if error.args[0].code() != KafkaError.INVALID_REPLICATION_FACTOR or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                made.append(name)
                return name

    yield make
    if made:
        for deleted in admin.delete_topics(made).values():
            try:
                deleted.result(TOPIC_TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:  # the test deleted it itself
                    raise


@pytest.fixture
def group() -> GroupFactory:
    def name(prefix: str = "group") -> str:
        return f"{prefix}-{uuid.uuid4().hex[:12]}"

    return name
