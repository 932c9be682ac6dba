"""What projections, and a user's own parts, are tested with; nothing of it needs a broker."""

from streams.testing.contracts import CheckpointStoreContract
from streams.testing.log import Given, MemoryLog, event
from streams.testing.purity import assert_rebuild_equals_live
from streams.testing.scenario import Scenario

__all__ = [
    "CheckpointStoreContract",
    "Given",
    "MemoryLog",
    "Scenario",
    "assert_rebuild_equals_live",
    "event",
]
