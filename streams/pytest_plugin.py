"""What refold gives to pytest, which finds it by itself. Nothing of the engine is loaded before a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from projections.contract import CqrsProjection
    from streams.testing.scenario import Scenario

__all__ = ["refold_broker", "refold_scenario"]


@pytest.fixture
def refold_scenario() -> Callable[[CqrsProjection[Any]], Scenario]:
    """Make a `Scenario` of a projection."""
    from streams.testing.scenario import Scenario

    return Scenario


@pytest.fixture(scope="session")
def refold_broker() -> Iterator[str]:
    """Give the address of a real Kafka that runs for this session (`pip install refold[embedded]`)."""
    from streams.broker import EmbeddedBroker

    with EmbeddedBroker() as broker:
        yield broker.bootstrap_servers
