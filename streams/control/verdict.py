"""What is found of a generation beside the active one, and whether it may be switched to without a person."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from streams.control.aligning import Aligned, aligned, can_be_aligned
from streams.control.compare import Report
from streams.control.local_side import LocalSide
from streams.control.record import Generation, Rebuild, Record, Summary
from streams.control.site import Site
from streams.control.verify import verify
from streams.data.build import Build
from streams.errors import StateNotFound, StoreAway
from streams.log import get_logger

__all__ = ["aligning", "compare_generations", "refusal"]

log = get_logger(__name__)

_AGAIN_S = 2.0


def compare_generations(
    site: Site, record: Record, other: Generation, check_cancelled: Callable[[], None] = lambda: None
) -> Report:
    """Compare a generation with the active one, as of the same positions; see `verify`.

    Where the database does not answer meanwhile, all of it is done again once it does.

    Raises:
        StateNotFound: The state of one of them is not on this machine.
        NotReady, StoreLocked, ProjectionError, StorageError: See `verify`.
    """

    def side(generation: Generation) -> LocalSide:
        build: Build | None = site.place(generation).store.current()
        if build is None:
            raise StateNotFound(
                f"Generation {generation.id} has no state in {site.place(generation).store.directory.absolute()}: "
                "they are compared where both are.",
                projection=site.name,
            )
        return LocalSide(generation=generation.id, build=build)

    validate = site.projection if site.validates and site.can_fold(other) else None
    deadline = time.monotonic() + site.events.kafka.outage_limit_s
    while True:
        check_cancelled()
        try:
            return verify(
                side(record.live),
                side(other),
                validate=validate,
                align=aligning(site, record.live, other, check_cancelled),
                check_cancelled=check_cancelled,
            )
        except StoreAway as error:
            if time.monotonic() > deadline:
                raise
            log.warning("verify.again", projection=site.name, again_in_s=_AGAIN_S, why=str(error))
            time.sleep(_AGAIN_S)


def aligning(
    site: Site, one: Generation, other: Generation, check_cancelled: Callable[[], None]
) -> Callable[[float], AbstractContextManager[Aligned]] | None:
    """Give what has topics of their own have the same events; None where neither generation has one."""
    if not can_be_aligned(one, other):
        return None
    return lambda wait_s: aligned(site, one, other, wait_s, check_cancelled)


def refusal(found: Summary, rebuild: Rebuild) -> str:
    """Say why a person is to look at what was found before the switch; "" where nobody need."""
    if found.is_identical:
        return ""
    differ = found.changed + found.added + found.removed
    parts = [f"{differ:,} of {max(found.models_before, found.models_after):,} models differ"] if differ else []
    parts += [f"partition {number} was not compared: {why}" for number, why in sorted(found.not_compared.items())]
    what = "; ".join(parts)
    if rebuild.policy == "identical":
        return f"{what}, and they were to be identical: is the code impure, or the old state damaged?"
    if rebuild.policy == "validate":
        unexpected = f"; `validate` does not expect {found.unexpected:,} of them" if found.unexpected else ""
        return f"{what}{unexpected}" if unexpected or found.not_compared else ""
    return "" if rebuild.approve == "auto" else what
