"""What processes may take of memory, and what that leaves them for models."""

from __future__ import annotations

from streams.errors import ConfigError

__all__ = ["GENERATIONS", "cache_share", "process_share"]

GENERATIONS = 3
"""Generations of a projection that may be folded at one time: the active one, one that is kept, one that is made."""
_WORKER_BYTES = 192 << 20
"""What a worker's own process takes, with what RocksDB takes for its answers."""
_AGENT_BYTES = 112 << 20
"""What an agent takes without any models: the interpreter, the client, and what its stores share (`rocks.py`)."""
_PROCESS_BYTES = 184 << 20
"""The same of one process that is to keep to a limit by itself, with what its stores take once they are large."""
_LETTERS_BYTES = 40 << 20
"""What such a process takes beside it where it may keep dead letters: a producer, consumers, and what is known of each
letter."""
_FILLER_BYTES = 184 << 20
"""What a process takes that fills a generation's own topic: it keeps no models, and reads and writes ahead."""
_GROWTH = 1.5
"""By how much of its cache a process grows at most."""
_RESERVE = 0.9
"""The part of the limit that is shared out."""
_LEAST_BYTES = 4 << 20


def cache_share(
    limit_bytes: int, projections: int, agents_per_generation: int, *, stands_by: bool = False, repartitioned: int = 0
) -> int:
    """Give how much memory for decoded models each agent may have, in bytes.

    Args:
        limit_bytes: What the worker and all its agents may take together.
        projections: How many it sees to.
        agents_per_generation: As the setting of that name.
        stands_by: Whether a further process for each projection keeps copies of what others own.
        repartitioned: For how many of them further processes fill their generations' own topics.

    Raises:
        ConfigError: It is too little for so many processes; the least that would do is named.
    """
    agents = projections * (GENERATIONS * agents_per_generation + stands_by)
    others_bytes = _WORKER_BYTES + repartitioned * GENERATIONS * agents_per_generation * _FILLER_BYTES
    share = ((limit_bytes * _RESERVE - others_bytes) / agents - _AGENT_BYTES) / _GROWTH
    if share < _LEAST_BYTES:
        told = f", as many for the topics of {repartitioned}" if repartitioned else ""
        least = (others_bytes + agents * (_AGENT_BYTES + _GROWTH * _LEAST_BYTES)) / _RESERVE
        raise ConfigError(
            f"memory_limit_bytes: {limit_bytes >> 20} MiB are too little for {agents} agents ({projections} "
            f"projections, {GENERATIONS} generations each while one is rebuilt, {agents_per_generation} agents a "
            f"generation{', one that stands by' if stands_by else ''}{told}). Give {-(-int(least) >> 20) + 1} MiB, "
            "have other workers see to some projections, or say cache_bytes yourself."
        )
    return int(share)


def process_share(limit_bytes: int, *, keeps_letters: bool = False) -> int:
    """Give how much memory for decoded models one process that folds may have, in bytes.

    Args:
        limit_bytes: What it may take all in all.
        keeps_letters: Whether it may keep dead letters.

    Raises:
        ConfigError: It is too little; the least that would do is named.
    """
    process_bytes = _PROCESS_BYTES + (_LETTERS_BYTES if keeps_letters else 0)
    share = (limit_bytes * _RESERVE - process_bytes) / _GROWTH
    if share < _LEAST_BYTES:
        least = int((process_bytes + _GROWTH * _LEAST_BYTES) / _RESERVE)
        raise ConfigError(
            f"memory_limit_bytes: {limit_bytes >> 20} MiB are too little for a process that folds. Give "
            f"{-(-least >> 20) + 1} MiB, or say cache_bytes yourself."
        )
    return int(share)
