"""What is said where events are not in their models, though a rebuild is completed."""

from __future__ import annotations

from streams.errors import DeadLettersLeft

__all__ = ["check_whole", "unfolded"]


def unfolded(dead_letters: int, skipped: int) -> str:
    """Say how many events are not in their models; "" where all are."""
    parts = [f"{dead_letters:,} dead letter{'' if dead_letters == 1 else 's'}"] if dead_letters else []
    parts += [f"{skipped:,} skipped"] if skipped else []
    return " and ".join(parts)


def check_whole(name: str, called: str, dead_letters: int, skipped: int) -> None:
    """Make sure that a rebuild that is completed has all events in their models.

    Args:
        name: The projection's name.
        called: What the command called it.
        dead_letters: Events that wait.
        skipped: Events that were left out.

    Raises:
        DeadLettersLeft: It has not.
    """
    left = unfolded(dead_letters, skipped)
    if left:
        raise DeadLettersLeft(
            f"The rebuild of {name!r} is completed with {left}: these events are not in their models. "
            f"`refold dead-letters {called} list` shows them.",
            projection=name,
        )
