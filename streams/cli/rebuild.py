"""`refold rebuild`: fold a projection again, from the beginning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveInt

from streams.cli.performing import Asking, perform
from streams.cli.request import Request
from streams.cli.wiring import Flag, FoldOptions, ProjectionName
from streams.control.begin import Approve
from streams.control.record import Policy

__all__ = ["rebuild"]


def rebuild(
    projection: ProjectionName,
    /,
    *more: Annotated[
        str, Parameter(help="Further projections; each folds what refold.toml says, or all fold --topic.")
    ],
    options: FoldOptions = FoldOptions(),  # noqa: B008 - frozen
    from_: Annotated[str, Parameter(name="--from")] = "beginning",
    snapshot_every: PositiveInt | None = None,
    retries: NonNegativeInt = 0,
    workers: PositiveInt = 1,
    in_place: Flag = False,
    beside: Flag = False,
    verify: Policy | None = None,
    approve: Approve = "ask",
    keep_minutes: NonNegativeFloat = 60.0,
    parallel: PositiveInt = 1,
    adopt: Flag = False,
    dry_run: Flag = False,
    plan_out: Path | None = None,
    yes: Flag = False,
    json: Flag = False,
) -> None:
    """Fold a projection again: the whole topic into new read models, or from where a rebuild was interrupted.

    Before anything is changed, it shows what it is about to do: from and to which offsets, how many events, what is
    gone of the history, the disk it takes, how long it may last, and what readers see meanwhile. A terminal is asked
    for a yes; elsewhere --yes is needed.

    Where somebody folds the projection, or its version was raised, the new models are made beside those that are live,
    which go on being folded and read: once the new ones have caught up, the two are compared, and readers are switched.
    An interruption leaves it where it is: refold resume goes on, refold cancel gives it up.

    Otherwise, and with --in-place, it takes the place of the models that there are, and nobody may be folding them,
    unless only some streams are folded again. Events that arrive after the start are left for `refold run`, which goes
    on from there. An interruption loses nothing: --from checkpoint goes on with the rebuild.

    Of several projections, those that others depend on (depends_on) come first, and where one fails, the others are
    rebuilt all the same. Those that run at once and fold the same topic share one read of it.

    Example: refold rebuild aircraft-log --topic flights --yes

    Args:
        projection: What to rebuild.
        more: Further projections; each folds what refold.toml says, or all fold --topic.
        options: Topic, state and codec.
        from_: Where to begin. beginning: without models, at the first event. checkpoint: where the models are. What
            follows goes on with the models, or a snapshot, of that position: event:ID (right after it), time:ISO
            (2026-03-01T10:00), offset:PARTITION=OFFSET[,PARTITION=OFFSET…], snapshot:ID. And stream:ID[,ID…] folds
            the whole history of these streams (stream:@FILE: an id a line), and touches no other model; others may be
            folding meanwhile.
        snapshot_every: Take a snapshot each time that so many events were folded, and keep the newest three.
        retries: How often to try again where no broker answers, the disk is full, or the projection says that the
            event may be folded later; each time from where it was.
        workers: How many processes fold, sharing the topic's partitions.
        in_place: Take the place of the models that there are.
        beside: Make the new models beside them, also where nobody folds.
        verify: Beside: what the comparison must have found for the switch. identical: no difference (the default where
            the code is the same). report: what you approve (the default where it is not). validate: no difference that
            the projection's validate does not expect (the default where it has one). none: nothing is compared.
        approve: Beside: who approves a report. ask: you; without a terminal it waits for refold switch. auto: nobody.
        keep_minutes: Beside: for how long the old models are kept, and kept up, to be switched back to.
        parallel: Of several projections: how many are rebuilt at once.
        adopt: Keep models that other code has folded, stating that the change does not alter them.
        dry_run: Only show what would be done.
        plan_out: The same, and write it to this file, for refold apply.
        yes: Do not ask.
        json: Print the final figures, or with --dry-run the plan, as one JSON object.
    """
    request = Request(
        projections=(projection, *more),
        from_=from_,
        snapshot_every=snapshot_every,
        retries=retries,
        workers=workers,
        in_place=in_place,
        beside=beside,
        verify=verify,
        approve=approve,
        keep_minutes=keep_minutes,
        parallel=parallel,
        adopt=adopt,
    )
    perform(request, options, Asking(yes=yes, dry_run=dry_run, plan_out=plan_out, json=json))
