"""Which generations workers are to fold."""

from __future__ import annotations

from streams.control.record import Generation, Record

__all__ = ["is_wanted"]


def is_wanted(record: Record, one: Generation) -> bool:
    """Say whether a generation is to be folded for good: it is active, kept, or made by a rebuild that goes on."""
    if one.is_folded:
        return True
    if one.halted or one.reset is not None:
        return False
    running = record.running
    return (
        running is not None
        and running.generation == one.id
        and not running.is_paused
        and one.phase in ("repartitioning", "replaying", "verifying", "waiting", "ready")
    )
