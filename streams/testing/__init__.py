"""What projections, and a user's own parts, are tested with; nothing of it needs a broker."""

from streams.testing.contracts import CheckpointStoreContract
from streams.testing.log import Given, MemoryLog, event
from streams.testing.purity import assert_rebuild_equals_live
from streams.testing.scenario import Scenario
from streams.testing.stores import AtomicReadModelStoreContract, ReadModelStoreContract

__all__ = [
    "AtomicReadModelStoreContract",
    "CheckpointStoreContract",
    "Given",
    "MemoryLog",
    "ReadModelStoreContract",
    "Scenario",
    "assert_rebuild_equals_live",
    "event",
]
