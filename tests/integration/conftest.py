"""Projections wired to the session's broker, and a broker that a test may break."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streams.adapters.postgres.stores import Postgres
from streams.broker import EmbeddedBroker
from streams.broker.postgres import EmbeddedPostgres
from tests.conftest import GroupFactory, TopicFactory
from tests.integration.kit import Kit


@pytest.fixture
def new_kit(bootstrap_servers: str, topic: TopicFactory, group: GroupFactory, tmp_path: Path) -> Callable[..., Kit]:
    """Makes a Kit over a fresh topic and group."""

    def make(partitions: int = 4, config: dict[str, str] | None = None, **parts: Any) -> Kit:
        return Kit(bootstrap_servers, topic(partitions, config), group(), tmp_path / "state", **parts)

    return make


@pytest.fixture
def pg_kit(new_kit: Callable[..., Kit], database: EmbeddedPostgres) -> Callable[..., Kit]:
    """Makes a Kit whose models are in a schema of its own."""

    def make(**parts: Any) -> Kit:
        return new_kit(**{"kind": Postgres(database.dsn, f"t{uuid.uuid4().hex[:12]}"), **parts})

    return make


@pytest.fixture
def private_broker() -> Iterator[EmbeddedBroker]:
    """A broker of this test's own, to be killed."""
    with EmbeddedBroker() as broker:
        yield broker
