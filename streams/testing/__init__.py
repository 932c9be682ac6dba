"""What a user's own parts are tested with."""

from streams.testing.contracts import CheckpointStoreContract

__all__ = ["CheckpointStoreContract"]
