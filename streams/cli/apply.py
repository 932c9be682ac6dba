"""`refold apply`: make a rebuild that was planned, if the world is still the one that it was planned for."""

from __future__ import annotations

from pathlib import Path

from streams.cli.performing import Asking, perform
from streams.cli.request import read_plan
from streams.cli.wiring import Flag, FoldOptions
from streams.errors import ConfigError

__all__ = ["apply"]


def apply(plan: Path, /, *, json: Flag = False) -> None:
    """Make a rebuild as refold rebuild --plan-out wrote it down, without asking.

    It is refused where the world has changed since: another topic of the same name, events that retention has deleted,
    another active generation, other code, somebody who folds now or no longer does; and an hour after it was made.

    Example: refold rebuild aircraft-log --plan-out plan.json && refold apply plan.json

    Args:
        plan: The file.
        json: Print the final figures as one JSON object.
    """
    found = read_plan(plan)
    try:
        options = FoldOptions(**found.options)
    except TypeError as error:
        raise ConfigError(f"{plan} has options that this version of refold does not know: {error}.") from error
    perform(found.request, options, Asking(yes=True, json=json), found)
